"""The package in docs/sqlite-backend, which shows how others bring a backend along."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "docs" / "sqlite-backend"
VISIT = """
import json
import sys

from flask import Flask
from flask_serversession import ServerSession, session

app = Flask("example")
app.config.update(SECRET_KEY="a secret", **json.loads(sys.argv[1]))
ServerSession(app)

@app.get("/")
def count():
    session["n"] = session.get("n", 0) + 1
    return str(session["n"])

client = app.test_client()
if len(sys.argv) > 2:
    client.set_cookie("session", sys.argv[2])
text = client.get("/").text
print(text, client.get_cookie("session").value)
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the package, installed."""
    folder = tmp_path_factory.mktemp("example")
    source, target = folder / "source", folder / "installed"
    shutil.copytree(SOURCE, source)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--target", str(target), str(source)),
        ],
        check=True,
    )
    return target


def visit(
    packages: Path | None, settings: dict[str, str], *cookie: str
) -> subprocess.CompletedProcess[str]:
    path = "" if packages is None else str(packages)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", VISIT, json.dumps(settings), *cookie],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_installed_backend_is_chosen_by_its_name(
    packages: Path, tmp_path: Path
) -> None:
    settings = {"SESSION_BACKEND": "sqlite", "SQLITE_PATH": str(tmp_path / "s.db")}
    first = visit(packages, settings)
    assert first.returncode == 0, first.stderr
    number, cookie = first.stdout.split()
    assert number == "1"
    # Another process finds the session by its cookie.
    second = visit(packages, settings, cookie)
    assert second.stdout.split() == ["2", cookie], second.stderr


def test_a_backend_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    run = visit(None, {"SESSION_BACKEND": "sqlite"})
    assert run.returncode == 1
    assert "'SESSION_BACKEND' is 'sqlite'; expected" in run.stderr
    assert "an entry point's name" in run.stderr


def test_a_backend_whose_module_fails_is_named(packages: Path, tmp_path: Path) -> None:
    copy = tmp_path / "broken"
    shutil.copytree(packages, copy)
    (copy / "sqlite_backend.py").write_text("import a_driver_that_is_missing\n")
    run = visit(copy, {"SESSION_BACKEND": "sqlite"})
    assert run.returncode == 1
    assert (
        "ConfigurationError: 'SESSION_BACKEND' is 'sqlite', which cannot be imported:"
        " No module named 'a_driver_that_is_missing'."
    ) in run.stderr
