"""OpenTelemetry sees every round trip, as do others that wrap what it wraps."""

from __future__ import annotations

import collections.abc as cabc
import functools
import typing as t
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa
from flask import Flask
from flask import session

from flask_serversession import ServerSession

from .flask_version import HAS_ONE_CONTEXT
from .servers import PostgresServer
from .servers import ValkeyServer

pytest.importorskip("opentelemetry.instrumentation.redis")
pytest.importorskip("opentelemetry.instrumentation.sqlalchemy")
pytest.importorskip("opentelemetry.instrumentation.flask")

from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

Visit = t.Callable[[t.Callable[[], object]], list[str]]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
def redis_url(valkey_server: ValkeyServer) -> cabc.Iterator[str]:
    url = valkey_server.url.removesuffix("/0") + "/8"
    yield url
    with redis.Redis.from_url(url) as client:
        client.flushdb()


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Note what redis-py sends to a server, and is answered."""
    found: list[object] = []
    send = redis.connection.Connection.send_packed_command

    @functools.wraps(send)
    def send_and_note(connection: t.Any, command: t.Any, **options: t.Any) -> None:
        found.append(command)
        send(connection, command, **options)

    monkeypatch.setattr(
        redis.connection.Connection, "send_packed_command", send_and_note
    )
    return found


def make_visit(app: Flask, exporter: InMemorySpanExporter) -> Visit:
    """Return a function that visits a page, and returns the names of the spans."""
    client = app.test_client()

    def visit(view: t.Callable[[], object]) -> list[str]:
        app.view_functions["index"] = lambda: str(view())
        exporter.clear()
        assert client.get("/").status_code == 200
        return [span.name for span in exporter.get_finished_spans()]

    return visit


def make_app(**config: t.Any) -> Flask:
    app = Flask("shop")
    app.config.update(SECRET_KEY="a secret that is long enough", **config)
    app.add_url_rule("/", "index", lambda: "")
    ServerSession(app)
    return app


def write() -> None:
    session["n"] = session.get("n", 0) + 1


def read() -> None:
    session.get("n")


def log_in() -> None:
    session["_user_id"] = "ada"


def log_out() -> None:
    session.clear()


VIEWS = [write, read, write, log_in, read, write, log_out, read]


@pytest.mark.parametrize("how", ["url", "client", "client alone"])
def test_opentelemetry_sees_every_round_trip_to_redis(
    redis_url: str,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    round_trips: list[object],
    how: str,
) -> None:
    config: dict[str, t.Any] = {"SESSION_BACKEND": "redis"}
    if how == "url":
        config["SESSION_REDIS_URL"] = redis_url
    else:
        config["SESSION_REDIS"] = redis.Redis.from_url(redis_url)
    app = make_app(**config)
    visit = make_visit(app, exporter)
    for view in VIEWS:  # connects, and sends the scripts
        assert visit(view) == []
    instrumentor = RedisInstrumentor()
    if how == "client alone":
        instrumentor.instrument_client(config["SESSION_REDIS"], provider)
    else:
        instrumentor.instrument(tracer_provider=provider)
    try:
        seen: list[list[str]] = []
        for view in VIEWS:
            round_trips.clear()
            seen.append(visit(view))
            assert len(seen[-1]) == len(round_trips)
        assert seen[1] == ["GET"]
        assert seen[2] == ["GET", "EVALSHA"]
        assert all(seen[:-1])
        with app.app_context():
            exporter.clear()
            round_trips.clear()
            assert ServerSession().count() == 0
            assert len(exporter.get_finished_spans()) == len(round_trips) > 0
    finally:
        if how == "client alone":
            instrumentor.uninstrument_client(config["SESSION_REDIS"])
        else:
            instrumentor.uninstrument()
    for view in VIEWS:
        assert visit(view) == []
    app.extensions["serversession"].backend.close()


def test_whatever_wraps_redis_py_sees_every_round_trip(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, round_trips: list[object]
) -> None:
    """As Sentry and Datadog do: functions in place of the methods."""
    app = make_app(SESSION_BACKEND="redis", SESSION_REDIS_URL=redis_url)
    visit = make_visit(app, InMemorySpanExporter())
    for view in VIEWS:
        visit(view)
    seen: list[str] = []
    for cls, name in (
        (redis.Redis, "execute_command"),
        (redis.client.Pipeline, "execute"),
    ):
        original = getattr(cls, name)

        @functools.wraps(original)
        def wrapped(
            *args: t.Any, original: t.Any = original, **kwargs: t.Any
        ) -> object:
            seen.append(original.__name__)
            return original(*args, **kwargs)

        monkeypatch.setattr(cls, name, wrapped)
    round_trips.clear()
    for view in VIEWS:
        visit(view)
    assert len(seen) == len(round_trips)
    assert set(seen) == {"execute_command", "execute"}
    app.extensions["serversession"].backend.close()


def test_a_pipeline_that_is_traced_is_sent_once(
    redis_url: str, provider: TracerProvider, round_trips: list[object]
) -> None:
    app = make_app(SESSION_BACKEND="redis", SESSION_REDIS_URL=redis_url)
    client = app.extensions["serversession"].backend._server.connect()
    client.execute_command("SET", "n", 0)
    RedisInstrumentor().instrument(tracer_provider=provider)
    try:
        answers = client.execute_together(("INCR", "n"), ("HGET", "n", "x"))
        assert answers[0] == 1
        assert isinstance(answers[1], redis.ResponseError)
        with redis.Redis.from_url(redis_url) as other:
            other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        round_trips.clear()
        with pytest.raises(redis.ConnectionError):
            client.execute_together(("INCR", "n"), ("INCR", "n"))
        assert len(round_trips) == 1
        assert client.execute_together(("GET", "n")) == [b"1"]
    finally:
        RedisInstrumentor().uninstrument()
    app.extensions["serversession"].backend.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def sql_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'sessions.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.url


@pytest.mark.parametrize("how", ["url", "engine", "engine alone"])
def test_opentelemetry_sees_every_statement(
    sql_url: str,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    how: str,
) -> None:
    instrumentor = SQLAlchemyInstrumentor()
    engine = sa.create_engine(sql_url) if how == "engine alone" else None
    # The newest SQLAlchemy is newer than the newest instrumentation expects.
    instrumentor.instrument(
        tracer_provider=provider, engine=engine, skip_dep_check=True
    )
    try:
        config: dict[str, t.Any] = {"SESSION_SQLALCHEMY_TABLE": "traced"}
        if how == "url":
            config["SESSION_SQLALCHEMY_URL"] = sql_url
        else:
            engine = engine or sa.create_engine(sql_url)
            config["SESSION_SQLALCHEMY"] = engine
        app = make_app(SESSION_BACKEND="sqlalchemy", **config)
        visit = make_visit(app, exporter)
        visit(write)
        words = [
            [name.partition(" ")[0] for name in visit(view) if name != "connect"]
            for view in VIEWS
        ]
    finally:
        instrumentor.uninstrument()
    # The one that changes, then the one that reads, and so on.
    assert words[:4] == [
        ["SELECT", "UPDATE"],
        ["SELECT"],
        ["SELECT", "UPDATE"],
        ["SELECT", "INSERT", "UPDATE"],
    ]
    assert words[6] == ["DELETE"] or words[6] == ["SELECT", "DELETE"]
    app.extensions["serversession"].backend.close()
    if engine is not None:
        engine.dispose()


@pytest.mark.skipif(
    HAS_ONE_CONTEXT, reason="OpenTelemetry is not made for Flask 3.2 yet"
)
def test_spans_are_those_of_the_request(
    redis_url: str, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    app = make_app(SESSION_BACKEND="redis", SESSION_REDIS_URL=redis_url)
    FlaskInstrumentor().instrument_app(app, tracer_provider=provider)
    RedisInstrumentor().instrument(tracer_provider=provider)
    try:
        visit = make_visit(app, exporter)
        visit(write)
        assert visit(read) == ["GET", "GET /"]
        inner, outer = exporter.get_finished_spans()
        assert outer.context is not None
        assert inner.parent is not None
        assert inner.parent.span_id == outer.context.span_id
    finally:
        RedisInstrumentor().uninstrument()
        FlaskInstrumentor().uninstrument_app(app)
    app.extensions["serversession"].backend.close()
