"""Flask's own test suite, run with server-side sessions.

Its source is fetched from PyPI, in the version that is installed.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def flask_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    version = importlib.metadata.version("flask")
    folder = tmp_path_factory.mktemp("flask")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--no-binary=flask", "--dest", str(folder), f"flask=={version}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        reason = f"Flask's source cannot be fetched: {run.stderr}"
        if os.environ.get("REQUIRE_SERVERS"):
            pytest.fail(reason)
        pytest.skip(reason)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / f"flask-{version}"


def run_suite(source: Path, folder: Path, backend: str, *names: str) -> list[str]:
    """Run tests of Flask's, and give the names of those that fail."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-rfE", *(names or ["tests"])),
            *("-p", "tests.flask_plugin", "-p", "no:valkey", "-p", "no:cacheprovider"),
        ],
        cwd=source,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FLASK_SUITE_BACKEND": backend,
            "FLASK_SUITE_FOLDER": str(folder),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(r"\d+ (passed|failed)", run.stdout), run.stdout + run.stderr
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)


@pytest.mark.parametrize("backend", ["memory", "filesystem"])
def test_every_test_of_flask_passes_that_passes_without(
    flask_source: Path, tmp_path: Path, backend: str
) -> None:
    failed = run_suite(flask_source, tmp_path, backend)
    # Not ours: a new werkzeug or pytest, to which this Flask's tests are too old.
    anyway = run_suite(flask_source, tmp_path, "", *failed) if failed else []
    assert sorted(failed) == sorted(anyway)
