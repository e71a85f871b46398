"""Flask-SQLAlchemy and Flask-Migrate: the table of the sessions is one of the app's."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from pathlib import Path

import flask
import pytest
import sqlalchemy as sa
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

from flask_serversession import ServerSession
from flask_serversession import session

from .backend_configs import Config

pytestmark = pytest.mark.filterwarnings(
    # The env.py of Flask-Migrate tries the old name first.
    "ignore:.*get_engine.*:DeprecationWarning"
)


class Shop:
    """An application with a model, sessions in the same database, and migrations."""

    def __init__(self, folder: Path, url: str, **settings: t.Any) -> None:
        self.db = SQLAlchemy()
        self.app = flask.Flask("shop", root_path=str(folder))
        self.app.config.update(
            {
                "SECRET_KEY": "a secret",
                "TESTING": True,
                "SQLALCHEMY_DATABASE_URI": url,
                "SESSION_BACKEND": "sqlalchemy",
                "SESSION_SQLALCHEMY": self.db,
                "SESSION_SQLALCHEMY_CREATE_TABLE": False,
                **settings,
            }
        )
        self.order = type(
            "Order",
            (self.db.Model,),
            {
                "__tablename__": "orders_of_the_shop",
                "id": self.db.Column(sa.Integer, primary_key=True),
            },
        )
        self.db.init_app(self.app)
        self.extension = ServerSession(self.app)
        Migrate(self.app, self.db, directory=str(folder / "migrations"))
        self.app.add_url_rule("/count", view_func=self.count)

    def count(self) -> str:
        session["n"] = session.get("n", 0) + 1
        return str(session["n"])

    def run(self, *arguments: str) -> str:
        """Run ``flask db``, and give what it prints."""
        result = self.app.test_cli_runner().invoke(args=["db", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    def tables(self) -> set[str]:
        with self.app.app_context():
            return set(sa.inspect(self.db.engine).get_table_names())

    def close(self) -> None:
        with self.app.app_context():
            self.db.engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def shop(
    request: pytest.FixtureRequest,
    make_backend_config: Callable[[str], Config],
    tmp_path: Path,
) -> t.Iterator[Shop]:
    """Give a shop on each database, with an empty folder of migrations."""
    config = make_backend_config(request.param)
    shop = Shop(
        tmp_path,
        config["SESSION_SQLALCHEMY_URL"],
        SESSION_SQLALCHEMY_TABLE=config["SESSION_SQLALCHEMY_TABLE"],
    )
    shop.run("init")
    yield shop
    # The shared servers have tables of other tests, which Alembic must not touch.
    with shop.app.app_context():
        shop.db.drop_all()
        with shop.db.engine.begin() as connection:
            connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version"))
    shop.close()


def only_ours(shop: Shop) -> None:
    """Have Alembic look at the tables of the shop alone, and leave logging alone."""
    env = Path(shop.app.root_path) / "migrations/env.py"
    text = env.read_text()
    for before, after in [
        (
            "context.configure(",
            "context.configure(include_name=lambda name, type_, parents:"
            " type_ != 'table' or name in get_metadata().tables, ",
        ),
        # It disables all loggers that there are.
        ("fileConfig(config.config_file_name)", ""),
    ]:
        assert before in text
        text = text.replace(before, after)
    env.write_text(text)


def test_a_migration_has_the_table_and_creates_it(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    only_ours(shop)
    table = shop.app.config["SESSION_SQLALCHEMY_TABLE"]
    assert {table, "orders_of_the_shop"} <= set(shop.db.metadata.tables)
    # Nothing is there, and nothing makes the table behind the migration's back.
    assert shop.app.test_client().get("/count").status_code == 503
    assert "flask sessions init" in caplog.text
    assert table not in shop.tables()
    shop.run("migrate", "-m", "first")
    shop.run("upgrade")
    assert {table, "orders_of_the_shop"} <= shop.tables()
    client = shop.app.test_client()
    assert [client.get("/count").text for _ in range(2)] == ["1", "2"]
    # What the migration has made is what the metadata says, down to the indexes.
    shop.run("migrate", "-m", "nothing")
    assert len(list(Path(shop.app.root_path).glob("migrations/versions/*.py"))) == 1
    shop.run("downgrade")
    assert table not in shop.tables()


def test_create_all_makes_the_table_too(tmp_path: Path) -> None:
    shop = Shop(tmp_path, f"sqlite:///{tmp_path / 'shop.db'}")
    assert shop.tables() == set()
    with shop.app.app_context():
        shop.db.create_all()
    assert shop.tables() == {"server_sessions", "orders_of_the_shop"}
    client = shop.app.test_client()
    assert [client.get("/count").text for _ in range(2)] == ["1", "2"]
    shop.close()


def test_a_bind_key_puts_the_table_elsewhere(tmp_path: Path) -> None:
    shop = Shop(
        tmp_path,
        f"sqlite:///{tmp_path / 'shop.db'}",
        SQLALCHEMY_BINDS={"sessions": f"sqlite:///{tmp_path / 'sessions.db'}"},
        SESSION_SQLALCHEMY_BIND_KEY="sessions",
    )
    assert set(shop.db.metadatas["sessions"].tables) == {"server_sessions"}
    assert set(shop.db.metadata.tables) == {"orders_of_the_shop"}
    with shop.app.app_context():
        shop.db.create_all()
    assert shop.tables() == {"orders_of_the_shop"}
    assert shop.app.test_client().get("/count").text == "1"
    with shop.app.app_context():
        for engine in shop.db.engines.values():
            engine.dispose()


def test_a_view_that_rolls_back_does_not_lose_its_session(tmp_path: Path) -> None:
    shop = Shop(
        tmp_path,
        f"sqlite:///{tmp_path / 'shop.db'}",
        SESSION_SQLALCHEMY_CREATE_TABLE=True,
    )

    def order() -> str:
        shop.db.session.add(shop.order())
        session["ordered"] = True
        shop.db.session.rollback()
        return ""

    def orders() -> list[t.Any]:
        query = sa.select(sa.func.count()).select_from(shop.order)
        return [session.get("ordered"), shop.db.session.scalar(query)]

    def order_without_commit() -> str:
        shop.db.session.add(shop.order())
        session["ordered"] = "again"
        return ""

    shop.app.add_url_rule("/order", view_func=order)
    shop.app.add_url_rule("/orders", view_func=orders)
    shop.app.add_url_rule("/uncommitted", view_func=order_without_commit)
    with shop.app.app_context():
        shop.db.create_all()
    client = shop.app.test_client()
    client.get("/order")
    assert client.get("/orders").json == [True, 0]
    # Nor does saving a session commit what the view has left open.
    client.get("/uncommitted")
    assert client.get("/orders").json == ["again", 0]
    shop.close()
