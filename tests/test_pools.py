"""More requests at once than there are connections: every one is answered."""

from __future__ import annotations

import collections
import threading
import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_serversession import ServerSession
from flask_serversession import session

from .backend_configs import Config


def run_together(number: int, function: Callable[[], object]) -> None:
    threads = [threading.Thread(target=function) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("size", [1, 5, 20])
@pytest.mark.parametrize("name", ["postgresql", "mariadb", "sqlite"])
def test_requests_that_hold_all_of_the_applications_connections_are_answered(
    name: str, make_backend_config: Callable[[str], Config], tmp_path: Path, size: int
) -> None:
    config = make_backend_config(name)
    db = SQLAlchemy()
    app = Flask("shop", instance_path=str(tmp_path))
    app.config.update(
        SECRET_KEY="k",
        SQLALCHEMY_DATABASE_URI=config.pop("SESSION_SQLALCHEMY_URL"),
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": size, "max_overflow": 0},
        SESSION_SQLALCHEMY=db,
        **config,
    )
    db.init_app(app)
    ServerSession(app)
    all_hold_one = threading.Barrier(size, timeout=30)

    @app.get("/")
    def index() -> str:
        db.session.execute(sa.text("SELECT 1"))
        all_hold_one.wait()
        session["n"] = session.get("n", 0) + 1
        return ""

    codes: collections.Counter[int] = collections.Counter()

    def visit() -> None:
        client = app.test_client()
        for _ in range(2):
            codes[client.get("/").status_code] += 1

    run_together(size, visit)
    assert codes == {200: 2 * size}
    with app.app_context():
        backend: t.Any = app.extensions["serversession"].backend
        backend.close()
        db.engine.dispose()
