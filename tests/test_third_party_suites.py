"""The test suites of Flask and of its extensions, run with server-side sessions.

Each is run twice, once with Flask's own sessions and once with those of this library,
and has to pass the same tests both times. The tests come from the sdists on PyPI, in
the versions that are installed, or from the folder that one was installed from, as
``make test-flask-main`` does. Those of :data:`SUITES` that are not
:attr:`Suite.is_quick` need more packages and more time; ``make test-third-party`` runs
all, in an environment of its own, with the versions that
``tests/third_party/requirements.txt`` names.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import typing as t
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from .figures import Report

PLUGIN = "server_session_plugin"
FOLDER = Path(__file__).parent / "third_party"
IS_COMPLETE = bool(os.environ.get("THIRD_PARTY"))


@dataclasses.dataclass(frozen=True)
class Suite:
    """The tests of a package, as its sdist has them.

    :param package: Its name on PyPI.
    :param paths: The tests in the sdist; those not named here are not of the package
        itself, or need servers that the tests do not start.
    :param least: How many tests pass at least: a suite of which most fail for want of
        a package would prove nothing.
    :param exceptions: Tests that pass with Flask's sessions alone, and why that is so.
    :param is_quick: Whether it is run without being asked for.
    """

    package: str
    paths: tuple[str, ...]
    least: int
    backends: tuple[str, ...] = ("memory",)
    exceptions: t.Mapping[str, str] = dataclasses.field(
        default_factory=dict[str, str], hash=False
    )
    is_quick: bool = False


SUITES = [
    Suite("Flask", ("tests",), 450, ("memory", "filesystem"), is_quick=True),
    Suite("Flask-Login", ("tests",), 100, ("memory", "filesystem"), is_quick=True),
    Suite("Flask-WTF", ("tests",), 50, ("memory", "filesystem"), is_quick=True),
    Suite("Flask-SocketIO", ("test_socketio.py",), 40, is_quick=True),
    Suite("Flask-Dance", ("tests",), 190),
    Suite(
        "Flask-Admin",
        (
            "flask_admin/tests",
            "--ignore=flask_admin/tests/fileadmin/test_fileadmin_azure.py",
            "--ignore=flask_admin/tests/geoa",
            "--ignore=flask_admin/tests/mongoengine",
            "--ignore=flask_admin/tests/pymongo",
            "--ignore=flask_admin/tests/sqla/test_postgres.py",
        ),
        300,
    ),
    Suite("Flask-Security", ("tests",), 600),
]
CASES = [
    pytest.param(suite, backend, id=f"{suite.package}-{backend}")
    for suite in SUITES
    for backend in suite.backends
]


def find_checkout(package: str) -> Path | None:
    """Give the folder that a package was installed from, if it was one."""
    text = importlib.metadata.distribution(package).read_text("direct_url.json")
    url = urlsplit(json.loads(text)["url"] if text else "")
    path = Path(url2pathname(url.path))
    return path if url.scheme == "file" and path.is_dir() else None


class Sources:
    """Fetches the sdists, and runs the tests in them; remembers what has passed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @functools.cache  # noqa: B019 - one object a test run
    def fetch(self, suite: Suite) -> Path:
        """Give the folder with the sources of the version that is installed."""
        version = importlib.metadata.version(suite.package)
        folder = self._folder / suite.package
        if (checkout := find_checkout(suite.package)) is not None:
            ignored = shutil.ignore_patterns(".*", "__pycache__")
            return Path(shutil.copytree(checkout, folder, ignore=ignored))
        run = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *(f"--no-binary={suite.package}", "--dest", str(folder)),
                f"{suite.package}=={version}",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            reason = f"The sources of {suite.package} cannot be fetched: {run.stderr}"
            if os.environ.get("REQUIRE_SERVERS"):
                pytest.fail(reason)
            pytest.skip(reason)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        (source,) = (path for path in folder.iterdir() if path.is_dir())
        return source

    @functools.cache  # noqa: B019 - one object a test run
    def passed(self, suite: Suite, backend: str) -> frozenset[str]:
        """Give the tests that pass; without a backend, with Flask's sessions."""
        folder = self._folder / f"{suite.package}-{backend or 'default'}"
        folder.mkdir()
        names = folder / "passed"
        run = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", *suite.paths),
                *("-p", PLUGIN, "-p", "no:valkey", f"--basetemp={folder / 'tmp'}"),
            ],
            cwd=self.fetch(suite),
            env={
                **os.environ,
                "PYTHONPATH": str(FOLDER),
                "SUITE_BACKEND": backend,
                "SUITE_FOLDER": str(folder / "sessions"),
                "SUITE_PASSED": str(names),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert names.exists(), run.stdout + run.stderr
        passed = frozenset(names.read_text().splitlines())
        assert len(passed) >= suite.least, run.stdout + run.stderr
        return passed


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("suites"))


# Two runs of somebody else's suite, of which the longest takes four minutes.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("suite", "backend"), CASES)
def test_every_test_passes_that_passes_with_flasks_own_sessions(
    sources: Sources,
    suite: Suite,
    backend: str,
    report: Report,
) -> None:
    if not (suite.is_quick or IS_COMPLETE):
        pytest.skip("'make test-third-party' runs this.")
    before = sources.passed(suite, "")
    after = sources.passed(suite, backend)
    report(passed_with_flasks_sessions=len(before), passed_with_these=len(after))
    assert before - after == set(suite.exceptions)
    # And none that fails otherwise.
    assert after <= before
