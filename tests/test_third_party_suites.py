"""The test suites of Flask and of its extensions, run with server-side sessions.

Each is run with Flask's own sessions and then with those of this library, on one
backend after the other, and has to pass the same tests each time. The plugin that puts
our sessions under every application counts what went through them, and
:func:`_compare` fails where that is not what the suite does with Flask's own:
otherwise those might have been compared with themselves.

The tests come from the sdists on PyPI, in the versions that are installed, or from the
folder that one was installed from, as ``make test-flask-main`` does. Those of
:data:`SUITES` that are not :attr:`Suite.is_quick`, and the backends that need a server,
take more packages and more time; ``make test-third-party`` runs all, in an environment
of its own, with the versions that ``tests/third_party/requirements.txt`` names.
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
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from .backend_configs import Config
from .figures import Report
from .flask_version import HAS_ONE_CONTEXT

PLUGIN = "server_session_plugin"
FOLDER = Path(__file__).parent / "third_party"
IS_COMPLETE = bool(os.environ.get("THIRD_PARTY"))
#: Of :data:`.BACKEND_CONFIGS`.
BACKENDS = (
    ("memory", "filesystem", "valkey", "sqlite")
    if IS_COMPLETE
    else ("memory", "filesystem")
)


@dataclasses.dataclass(frozen=True)
class Suite:
    """The tests of a package, as its sdist has them.

    :param package: Its name on PyPI.
    :param paths: The tests in the sdist; those not named here are not of the package
        itself, or need servers or libraries that pip does not install.
    :param least: How many tests pass at least: a suite of which most fail for want of
        a package would prove nothing.
    :param used: How many of them at least look at a session or change it.
    :param stored: How many of them at least have a session stored or removed.
    :param exceptions: Tests that pass with Flask's sessions alone, and why that is so.
    :param own_interfaces: Tests that are about a session interface of their own. In
        all others it is replaced by ours.
    :param folder: Where in the sdist they are run.
    :param options: For pytest.
    :param is_quick: Whether it is run without being asked for.
    """

    package: str
    paths: tuple[str, ...]
    least: int
    used: int
    stored: int
    exceptions: t.Mapping[str, str] = dataclasses.field(
        default_factory=dict[str, str], hash=False
    )
    own_interfaces: frozenset[str] = frozenset()
    folder: str = "."
    # pytest-flask, which Flask-SimpleLogin's tests need, pushes a context in each test
    # that has a fixture "app".
    options: tuple[str, ...] = ("-p", "no:flask")
    is_quick: bool = False

    @property
    def name(self) -> str:
        """Tell it from others of the same package."""
        folder = Path(self.folder).name
        return f"{self.package}-{folder}" if folder else self.package


SUITES = [
    Suite(
        "Flask",
        ("tests",),
        480,
        20,
        20,
        own_interfaces=frozenset(
            {
                "tests/test_reqctx.py::test_session_dynamic_cookie_name",
                "tests/test_reqctx.py::test_session_error_pops_context",
                "tests/test_session_interface.py::test_open_session_with_endpoint",
            }
        ),
        is_quick=True,
    ),
    Suite("Flask-Login", ("tests",), 114, 94, 62, is_quick=True),
    Suite("Flask-WTF", ("tests",), 50, 10, 10, is_quick=True),
    Suite(
        "Flask-SocketIO",
        ("test_socketio.py",),
        40,
        2,
        2,
        exceptions={
            "test_socketio.py::TestSocketIO::test_unmanaged_session": (
                "It asserts that what a handler of an event changes is lost."
            )
        },
        is_quick=True,
    ),
    Suite("Flask-Security", ("tests",), 962, 716, 632),
    Suite(
        "Flask-AppBuilder",
        # The others are of its REST API, which logs in by a token; they take twice as
        # long as all of these.
        (
            *("tests/security", "--ignore=tests/security/test_auth_ldap.py"),
            *("tests/test_addon.py", "tests/test_custom_indexview.py"),
            *("tests/test_detached_user.py", "tests/test_hooks.py"),
            *("tests/test_menu.py", "tests/test_mvc.py", "tests/test_mvc_oauth.py"),
        ),
        170,
        111,
        94,
    ),
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
        378,
        234,
        71,
    ),
    Suite("Flask-Dance", ("tests",), 201, 82, 72),
    Suite(
        "flask-peewee",
        tuple(
            f"flask_peewee/tests/{name}.py"
            for name in (
                *("admin", "auth", "db", "rest", "serializer", "utils"),
                *("test_app", "test_config"),
            )
        ),
        # Three more pass where its tests leave their table in place.
        104,
        84,
        25,
    ),
    Suite("Flask", ("tests",), 24, 21, 11, folder="examples/tutorial"),
    Suite("Flask-HTTPAuth", ("tests",), 121, 12, 12),
    # None of its tests looks at a session; it is about not having one.
    Suite("Flask-JWT-Extended", ("tests",), 180, 0, 0),
    # Its tests keep to the sessions of contexts that they push, which are never saved.
    Suite("Flask-Multipass", ("tests", "--ignore=tests/providers"), 137, 4, 0),
    Suite("flask-oidc", ("tests",), 45, 32, 19),
    Suite("Flask-SimpleLogin", ("tests",), 19, 10, 9, options=()),
]
CASES = [
    pytest.param(
        suite,
        backend,
        id=f"{suite.name}-{backend}",
        # One worker, for the run with Flask's sessions that all its cases share.
        marks=pytest.mark.xdist_group(suite.name),
    )
    for suite in SUITES
    if suite.is_quick or IS_COMPLETE
    for backend in BACKENDS
]


def find_checkout(package: str) -> Path | None:
    """Give the folder that a package was installed from, if it was one."""
    text = importlib.metadata.distribution(package).read_text("direct_url.json")
    url = urlsplit(json.loads(text)["url"] if text else "")
    path = Path(url2pathname(url.path))
    return path if url.scheme == "file" and path.is_dir() else None


@dataclasses.dataclass(frozen=True)
class Results:
    """What the plugin has counted; all but the first are names of tests."""

    apps: int
    failed: frozenset[str]
    passed: frozenset[str]
    opened: frozenset[str]
    used: frozenset[str]
    saved: frozenset[str]
    stored: frozenset[str]
    left_alone: frozenset[str]
    strayed: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what the plugin has written."""
        results = json.loads(path.read_text())
        return cls(results.pop("apps"), **{k: frozenset(v) for k, v in results.items()})


def _run(
    source: Path,
    folder: Path,
    config: Config,
    *args: str,
    own_interfaces: t.Collection[str] = (),
) -> Results:
    """Run tests with the plugin; without a configuration, with Flask's sessions."""
    results = folder / "results"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-o", "addopts="),
            *("-p", PLUGIN, "-p", "no:valkey", f"--basetemp={folder / 'tmp'}", *args),
        ],
        cwd=source,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(FOLDER), str(FOLDER.parents[1])]),
            "SUITE_CONFIG": json.dumps(config),
            "SUITE_OWN_INTERFACES": json.dumps([*own_interfaces]),
            "SUITE_RESULTS": str(results),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert results.exists(), run.stdout + run.stderr
    (folder / "output").write_text(run.stdout + run.stderr)
    return Results.read(results)


def _compare(suite: Suite, before: Results, after: Results) -> None:
    """Check that the same tests pass, and that it was our sessions that they used."""
    own = suite.own_interfaces
    assert after.left_alone == own, "Not these tests bring an interface of their own."
    assert after.strayed <= own, "Applications were left without our interface."
    assert after.apps == before.apps, "Not as many applications were made."
    for what in ("opened", "used", "saved"):
        missing = getattr(before, what) - getattr(after, what) - own
        assert not missing, f"These have {what} none of our sessions."
    assert len(after.used) >= suite.used, "Too few tests have used our sessions."
    assert len(after.stored) >= suite.stored, "Too few tests have stored sessions."
    # Extensions are not made for Flask 3.2 yet.
    if not HAS_ONE_CONTEXT:
        assert len(before.passed) >= suite.least, "Too few tests pass at all."
    assert before.passed - after.passed == set(suite.exceptions)
    # And none that fails otherwise.
    assert after.passed <= before.passed


class Sources:
    """Fetches the sdists, and runs the tests in copies of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @functools.cache  # noqa: B019 - one object a test run
    def fetch(self, package: str) -> Path:
        """Give the folder with the sources of the version that is installed."""
        folder = self._folder / package
        if (checkout := find_checkout(package)) is not None:
            ignored = shutil.ignore_patterns(".*", "__pycache__")
            return Path(shutil.copytree(checkout, folder, ignore=ignored))
        version = importlib.metadata.version(package)
        run = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *(f"--no-binary={package}", "--dest", str(folder)),
                f"{package}=={version}",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            reason = f"The sources of {package} cannot be fetched: {run.stderr}"
            if IS_COMPLETE or os.environ.get("REQUIRE_SERVERS"):
                pytest.fail(reason)
            pytest.skip(reason)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        (source,) = (path for path in folder.iterdir() if path.is_dir())
        return source

    def run(self, suite: Suite, name: str, config: Config) -> Results:
        """Run a suite where no other run has left anything."""
        folder = self._folder / f"{suite.name}-{name}"
        # With links as they are: some lead nowhere.
        shutil.copytree(self.fetch(suite.package), folder / "source", symlinks=True)
        return _run(
            folder / "source" / suite.folder,
            folder,
            config,
            *suite.options,
            *suite.paths,
            own_interfaces=suite.own_interfaces,
        )

    @functools.cache  # noqa: B019 - one object a test run
    def run_without(self, suite: Suite) -> Results:
        """Run a suite with Flask's sessions, once."""
        return self.run(suite, "without", {})


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("suites"))


# Two runs of somebody else's suite, of which the longest takes minutes.
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("suite", "backend"), CASES)
def test_every_test_passes_that_passes_with_flasks_own_sessions(
    sources: Sources,
    suite: Suite,
    backend: str,
    make_backend_config: Callable[[str], Config],
    report: Report,
) -> None:
    before = sources.run_without(suite)
    after = sources.run(suite, backend, make_backend_config(backend))
    report(
        passed_with_flasks_sessions=len(before.passed),
        passed_with_these=len(after.passed),
        that_used_one=len(after.used),
        that_stored_one=len(after.stored),
    )
    _compare(suite, before, after)


# Every way in which an application gets another interface than ours.
TINY = """
import flask
import pytest
from flask.sessions import SecureCookieSessionInterface


class Own(SecureCookieSessionInterface):
    pass


class OwnFlask(flask.Flask):
    session_interface = Own()


class LateFlask(flask.Flask):
    pass


def visit(app):
    app.secret_key = "test"
    app.add_url_rule("/", view_func=count)
    client = app.test_client()
    assert [client.get("/").text for _ in range(2)] == ["1", "2"]


def count():
    flask.session["n"] = flask.session.get("n", 0) + 1
    return str(flask.session["n"])


early = flask.Flask("early")


def test_of_the_module():
    visit(early)


def test_plain():
    visit(flask.Flask("app"))


def test_class_attribute():
    visit(OwnFlask("app"))


def test_late_class_attribute(monkeypatch):
    app = LateFlask("app")
    monkeypatch.setattr(LateFlask, "session_interface", Own(), raising=False)
    visit(app)


def test_late_attribute_of_flask(monkeypatch):
    app = flask.Flask("app")
    monkeypatch.setattr(flask.Flask, "session_interface", Own())
    visit(app)


def test_set_later():
    app = flask.Flask("app")
    app.session_interface = Own()
    visit(app)


def test_set_before():
    class EagerFlask(flask.Flask):
        def __init__(self, name):
            self.session_interface = Own()
            super().__init__(name)

    visit(EagerFlask("app"))


def test_set_at_the_first_request():
    app = flask.Flask("app")

    @app.before_request
    def set_interface():
        app.session_interface = Own()

    visit(app)


def test_context():
    app = flask.Flask("app")
    app.secret_key = "test"
    with app.test_request_context():
        assert not flask.session


def test_nothing():
    pass
"""
VISITING = 8


@pytest.fixture
def run_tiny(tmp_path: Path) -> Callable[..., Results]:
    """Run the tests above; each run needs a name."""
    (tmp_path / "test_tiny.py").write_text(TINY)

    def run(name: str, config: Config, **options: t.Any) -> Results:
        (tmp_path / name).mkdir()
        return _run(tmp_path, tmp_path / name, config, "test_tiny.py", **options)

    return run


TINY_SUITE = Suite("tiny", (), VISITING + 2, VISITING, VISITING)


def test_the_plugin_puts_our_sessions_under_every_application(
    run_tiny: Callable[..., Results],
) -> None:
    before = run_tiny("before", {})
    after = run_tiny("after", {"SESSION_BACKEND": "memory"})
    assert (len(after.used), len(after.stored)) == (VISITING + 1, VISITING)
    assert not after.left_alone
    assert not after.strayed
    _compare(TINY_SUITE, before, after)


def test_the_comparison_fails_if_flasks_sessions_took_the_place_of_ours(
    run_tiny: Callable[..., Results],
) -> None:
    before = run_tiny("before", {})
    with pytest.raises(AssertionError, match="stored sessions"):
        _compare(TINY_SUITE, before, before)


def test_the_comparison_fails_if_one_application_has_another_interface_unasked(
    run_tiny: Callable[..., Results],
) -> None:
    before = run_tiny("before", {})
    for name in ("test_class_attribute", "test_set_later"):
        own = {f"test_tiny.py::{name}"}
        after = run_tiny(name, {"SESSION_BACKEND": "memory"}, own_interfaces=own)
        # It passes, with the interface that it brings.
        assert after.passed == before.passed
        assert after.left_alone == own
        assert not after.stored & own
        named = dataclasses.replace(
            TINY_SUITE,
            own_interfaces=frozenset(own),
            used=VISITING - 1,
            stored=VISITING - 1,
        )
        _compare(named, before, after)
        with pytest.raises(AssertionError, match="interface of their own"):
            _compare(TINY_SUITE, before, after)


def test_the_comparison_fails_if_a_test_is_named_that_brings_no_interface(
    run_tiny: Callable[..., Results],
) -> None:
    own = frozenset({"test_tiny.py::test_plain"})
    before = run_tiny("before", {})
    after = run_tiny("after", {"SESSION_BACKEND": "memory"}, own_interfaces=own)
    with pytest.raises(AssertionError, match="interface of their own"):
        _compare(dataclasses.replace(TINY_SUITE, own_interfaces=own), before, after)
