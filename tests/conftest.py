from __future__ import annotations

import contextlib
import os
import typing as t
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import flask
import pytest
from hypothesis import settings

from . import figures
from .backend_configs import BACKEND_CONFIGS
from .backend_configs import Config
from .backend_configs import Place
from .flask_version import HAS_ONE_CONTEXT
from .servers import MariaDBServer
from .servers import MemcachedServer
from .servers import PgBouncer
from .servers import PostgresServer
from .servers import RedisServer
from .servers import Server
from .servers import ValkeyServer

# The fixture.
report = figures.report

S = t.TypeVar("S", bound=Server)

# The same random examples for everybody, so that who changed nothing meets no failure.
# To look for new ones: pytest --hypothesis-profile=search
settings.register_profile("repeatable", derandomize=True, print_blob=True)
settings.register_profile("search", derandomize=False, print_blob=True)
settings.load_profile("repeatable")

# Before anything imports it, for pytest's messages about its assertions.
pytest.register_assert_rewrite("flask_serversession.testing")


@pytest.fixture(autouse=True)
def _clean_up_at_the_end_of_the_first_interval(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delete no expired records at a random moment, which tests that count would see.

    Tests of that moment are marked with ``random_cleanup``.
    """
    if request.node.get_closest_marker("random_cleanup") is None:
        monkeypatch.setattr(
            "flask_serversession.cleanup.random.SystemRandom.uniform",
            lambda generator, low, high: high,
        )


@pytest.fixture(autouse=True)
def _check_for_leaked_contexts() -> Iterator[None]:
    """Fail a test that leaves a context of Flask's active, and remove it."""
    yield
    leaked: list[str] = []

    while flask.has_request_context() or flask.has_app_context():
        is_request = flask.has_request_context()
        leaked.append("a request context" if is_request else "an app context")
        context: t.Any = (
            flask.globals.request_ctx
            if is_request and not HAS_ONE_CONTEXT
            else flask.globals.app_ctx
        )

        # Left in the wrong order as well, which Flask says after removing it.
        with contextlib.suppress(AssertionError):
            context._get_current_object().pop()

    if leaked:
        pytest.fail(f"The test left {' and '.join(leaked)} active.")


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    with _run(ValkeyServer) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with _run(RedisServer) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with _run(PostgresServer) as server:
        yield server


@pytest.fixture(scope="session")
def pgbouncer_server(postgres_server: PostgresServer) -> Iterator[PgBouncer]:
    with _run(PgBouncer, postgres_server) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDBServer]:
    with _run(MariaDBServer) as server:
        yield server


@pytest.fixture(scope="session")
def memcached_server() -> Iterator[MemcachedServer]:
    with _run(MemcachedServer) as server:
        yield server


@pytest.fixture(scope="session")
def run_server() -> Callable[..., contextlib.AbstractContextManager[t.Any]]:
    """Start a server of a class for a ``with`` statement, where it is installed."""
    return _run


#: Those shared by all tests: a test that kills or pauses a server starts its own.
SERVER_FIXTURES: dict[type[Server], str] = {
    ValkeyServer: "valkey_server",
    RedisServer: "redis_server",
    PostgresServer: "postgres_server",
    MariaDBServer: "mariadb_server",
    MemcachedServer: "memcached_server",
}


@pytest.fixture
def get_server(request: pytest.FixtureRequest) -> Callable[[type[S]], S]:
    """Get the shared server of a class, started when first asked for."""

    def get(server: type[S]) -> S:
        return t.cast(S, request.getfixturevalue(SERVER_FIXTURES[server]))

    return get


@pytest.fixture
def make_backend_config(
    tmp_path: Path, get_server: t.Any
) -> Iterator[Callable[[str], Config]]:
    """Make a configuration by a name from :data:`BACKEND_CONFIGS`.

    Each call gives a fresh one; all are cleaned up after the test.
    """
    with contextlib.ExitStack() as stack:

        def make(name: str) -> Config:
            unique = f"t{uuid.uuid4().hex[:12]}"
            directory = tmp_path / unique
            directory.mkdir()
            place = Place(unique, directory, get_server)
            return stack.enter_context(BACKEND_CONFIGS[name](place))

        yield make


@pytest.fixture(params=list(BACKEND_CONFIGS))
def backend_config(
    request: pytest.FixtureRequest, make_backend_config: Callable[[str], Config]
) -> Config:
    """Give the configuration of each backend in turn, empty and not shared."""
    return make_backend_config(request.param)


@contextlib.contextmanager
def _run(server: type[S], *args: t.Any) -> Iterator[S]:
    if not server.is_available():
        reason = f"{server.__name__} needs {server.package}, which is not installed."

        # Python packages are the tests' own dependencies: never a reason to skip.
        if "Python package" in server.package or os.environ.get("REQUIRE_SERVERS"):
            pytest.fail(reason)

        pytest.skip(reason)

    with server(*args) as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the tests have counted."""
    figures.show(terminalreporter)
