"""What was meant by a backend, a driver or an object that is not what was expected.

What is meant by keys is tested in test_config_checks.py.
"""

from __future__ import annotations

import types
import typing as t
import warnings

import flask
import pytest
import redis
import sqlalchemy as sa
from cachelib import FileSystemCache
from cachelib import SimpleCache
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncEngine

from flask_serversession import ServerSession
from flask_serversession.backends.memory import MemoryBackend

from .test_config import refused

REDIS = "Use 'redis' with 'SESSION_REDIS_URL', such as '{}://localhost:6379/0'."
SQL = "Use 'sqlalchemy' with 'SESSION_SQLALCHEMY_URL', such as '{}'."
POSTGRESQL = SQL.format("postgresql+psycopg://user@host/database")
MYSQL = SQL.format("mysql+pymysql://user@host/database")
SQLITE = SQL.format("sqlite:///sessions.db")
CACHELIB = "Use 'cachelib' with 'SESSION_CACHELIB', such as cachelib.{}."
MEMCACHED = CACHELIB.format("MemcachedCache(['localhost'])")


def named(value: object) -> str:
    """Return what is the same in each process."""
    return value if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("REDIS", "Did you mean 'redis'?"),
        (" redis", "Did you mean 'redis'?"),
        ("reddis", "Did you mean 'redis'?"),
        ("SQLAlchemy", "Did you mean 'sqlalchemy'?"),
        ("cache", "Did you mean 'cachelib'?"),
        ("valkey", REDIS.format("valkey")),
        ("Valkey", REDIS.format("valkey")),
        ("keydb", REDIS.format("redis")),
        ("redis.Redis", REDIS.format("redis")),
        ("redis-cluster", REDIS.format("redis")),
        ("postgres", POSTGRESQL),
        ("PostgreSQL", POSTGRESQL),
        ("psycopg", POSTGRESQL),
        ("sql", POSTGRESQL),
        ("db", POSTGRESQL),
        ("database", POSTGRESQL),
        ("mysql", MYSQL),
        ("mariadb", MYSQL),
        ("sqlite", SQLITE),
        ("sqlite3", SQLITE),
        ("sqlalchemy+sqlite", SQLITE),
        ("memcached", MEMCACHED),
        ("memcache", MEMCACHED),
        ("mongodb", CACHELIB.format("MongoDbCache(...)")),
        ("mongo", CACHELIB.format("MongoDbCache(...)")),
        ("dynamodb", CACHELIB.format("DynamoDbCache(...)")),
        ("uwsgi", CACHELIB.format("UWSGICache()")),
        ("simple", CACHELIB.format("FileSystemCache(path, threshold=0)")),
        ("file", "Use 'filesystem'."),
        ("files", "Use 'filesystem'."),
        ("fs", "Use 'filesystem'."),
        ("disk", "Use 'filesystem'."),
        ("dict", "Use 'memory'."),
        ("ram", "Use 'memory'."),
        ("in-memory", "Did you mean 'memory'?"),
        (
            "flask_serversession.backends.memory.MemoryBackend",
            "Did you mean 'flask_serversession.backends.memory:MemoryBackend'?",
        ),
        ("", "Leave the key out for 'filesystem'."),
        (None, "Leave the key out for 'filesystem'."),
        ("nothing of this kind", ""),
    ],
)
def test_a_backend_by_another_name_is_refused_with_ours(
    name: str | None, remedy: str
) -> None:
    error = refused(SESSION_BACKEND=name)
    start = f"'SESSION_BACKEND' is {name!r}; expected 'cachelib', 'filesystem', "
    assert str(error).startswith(start)
    assert str(error).endswith(f" or a Backend object. {remedy}".rstrip())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            redis.Redis(password="hunter2"),
            "is a redis.client.Redis. Set it to 'redis', and 'SESSION_REDIS' to this"
            " object.",
        ),
        (
            redis.Redis,
            "is the class redis.client.Redis. Set it to 'redis', and 'SESSION_REDIS' to"
            " an instance of this class.",
        ),
        (
            SimpleCache(),
            "is a cachelib.simple.SimpleCache. Set it to 'cachelib', and"
            " 'SESSION_CACHELIB' to this object.",
        ),
        (
            sa.create_engine("postgresql+psycopg://u:hunter2@h/d"),
            "is a sqlalchemy.engine.base.Engine. Set it to 'sqlalchemy', and"
            " 'SESSION_SQLALCHEMY' to this object.",
        ),
        (
            SQLAlchemy(),
            "is a flask_sqlalchemy.extension.SQLAlchemy. Set it to 'sqlalchemy', and"
            " 'SESSION_SQLALCHEMY' to this object.",
        ),
        (
            MemoryBackend,
            "is the class flask_serversession.backends.memory.MemoryBackend. Make an"
            " instance of it.",
        ),
        (
            "redis://:hunter2@host/0",
            "is a URL. Set it to 'redis', and 'SESSION_REDIS_URL' to the URL.",
        ),
        (
            "valkeys://:hunter2@host/0",
            "is a URL. Set it to 'redis', and 'SESSION_REDIS_URL' to the URL.",
        ),
        (
            "postgresql://u:hunter2@host/d",
            "is a URL. Set it to 'sqlalchemy', and 'SESSION_SQLALCHEMY_URL' to the"
            " URL.",
        ),
    ],
    ids=named,
)
def test_what_belongs_into_another_key_is_refused_with_that_key(
    value: object, message: str
) -> None:
    error = refused(SESSION_BACKEND=value)
    assert str(error) == f"'SESSION_BACKEND' {message}"
    assert error.option == "SESSION_BACKEND"


def test_an_object_that_is_nothing_of_the_kind_is_named_by_its_type() -> None:
    assert str(refused(SESSION_BACKEND=5)).startswith("'SESSION_BACKEND' is an int; ")
    error = refused(SESSION_BACKEND=types.SimpleNamespace(password="hunter2"))
    assert "'SESSION_BACKEND' is a types.SimpleNamespace; " in str(error)


class Serializer:
    def dumps(self, data: dict[str, t.Any]) -> bytes:
        raise NotImplementedError

    def loads(self, data: bytes) -> dict[str, t.Any]:
        raise NotImplementedError


INSTANCE = "expected a sqlalchemy.Engine or a Flask-SQLAlchemy object, not "


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"SESSION_BACKEND": "cachelib", "SESSION_CACHELIB": FileSystemCache},
            "'SESSION_CACHELIB' is the class cachelib.file.FileSystemCache; expected an"
            " instance of a cachelib cache, such as cachelib.FileSystemCache(path,"
            " threshold=0), because 'SESSION_BACKEND' is 'cachelib'.",
        ),
        (
            {"SESSION_BACKEND": "cachelib"},
            "'SESSION_CACHELIB' is None; expected an instance of a cachelib cache, such"
            " as cachelib.FileSystemCache(path, threshold=0), because 'SESSION_BACKEND'"
            " is 'cachelib'.",
        ),
        (
            {"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY": sa.Engine},
            f"'SESSION_SQLALCHEMY': {INSTANCE}the class sqlalchemy.engine.base.Engine."
            " Make an instance of it.",
        ),
        (
            {"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY": SQLAlchemy},
            f"'SESSION_SQLALCHEMY': {INSTANCE}the class"
            " flask_sqlalchemy.extension.SQLAlchemy. Make an instance of it.",
        ),
        (
            {"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY": "sqlite://"},
            f"'SESSION_SQLALCHEMY': {INSTANCE}a str. A URL belongs into"
            " 'SESSION_SQLALCHEMY_URL'.",
        ),
        (
            {"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY": orm.Session()},
            f"'SESSION_SQLALCHEMY': {INSTANCE}a sqlalchemy.orm.session.Session. Pass"
            " the engine that it works with.",
        ),
        (
            {
                "SESSION_BACKEND": "sqlalchemy",
                "SESSION_SQLALCHEMY": AsyncEngine.__new__(AsyncEngine),
            },
            f"'SESSION_SQLALCHEMY': {INSTANCE}a sqlalchemy.ext.asyncio.engine."
            "AsyncEngine. Make one without asyncio.",
        ),
        (
            {"SESSION_SERIALIZER": Serializer},
            "'SESSION_SERIALIZER' is the class tests.test_suggestions.Serializer, not"
            " an instance of it; expected 'json', 'msgpack' or an object with 'dumps'"
            " and 'loads'.",
        ),
        (
            {"SESSION_USER_KEY": Flask},
            "'SESSION_USER_KEY' is <class 'flask.app.Flask'>; expected a key of the"
            " session, a list of keys, or a function that is not async and takes the"
            " session and returns the user's id or None.",
        ),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else "",
)
def test_a_class_where_an_instance_is_wanted_is_called_a_class(
    settings: dict[str, t.Any], message: str
) -> None:
    assert str(refused(**settings)) == message


@pytest.mark.parametrize(
    ("url", "driver", "remedy"),
    [
        (
            "mysql://u:hunter2@h/d",
            "MySQLdb",
            "'pip install mysqlclient', or name another one in the URL, such as"
            " 'mysql+pymysql://…'.",
        ),
        (
            "mariadb://u:hunter2@h/d",
            "MySQLdb",
            "'pip install mysqlclient', or name another one in the URL, such as"
            " 'mariadb+pymysql://…'.",
        ),
        ("oracle+oracledb://u:hunter2@h/d", "oracledb", "'pip install oracledb'."),
        ("mssql+pyodbc://u:hunter2@h/d", "pyodbc", "'pip install pyodbc'."),
    ],
)
def test_a_driver_that_is_not_installed_is_named_with_its_package(
    url: str, driver: str, remedy: str
) -> None:
    error = refused(SESSION_BACKEND="sqlalchemy", SESSION_SQLALCHEMY_URL=url)
    assert str(error) == (
        f"'SESSION_SQLALCHEMY_URL' needs the database driver {driver!r}, which is not"
        f" installed. Install it with {remedy}"
    )


APPLICATION = "ServerSession takes a Flask application, not {}. {}"
MAKE = "Make one with Flask(__name__), and pass it."


@pytest.mark.parametrize(
    ("value", "what", "remedy"),
    [
        ("shop", "a str", MAKE),
        ({}, "a dict", MAKE),
        (None, "None", MAKE),
        (Flask, "the class flask.app.Flask", MAKE),
        (
            flask.Blueprint("shop", __name__),
            "a flask.blueprints.Blueprint",
            "Pass the application that it is registered with.",
        ),
        (
            flask.current_app,
            "a werkzeug.local.LocalProxy",
            "Pass the application itself.",
        ),
        (
            type("Quart", (), {"__module__": "quart.app"})(),
            "a quart.app.Quart",
            'Async views work with Flask, too: pip install "flask[async]"',
        ),
    ],
    ids=named,
)
def test_what_is_no_application_is_refused_with_what_to_pass(
    value: t.Any, what: str, remedy: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared below
        ServerSession().init_app(value)
    assert str(caught.value) == APPLICATION.format(what, remedy)


def make_binds(**settings: t.Any) -> str:
    app = Flask("site")
    app.config.update(SECRET_KEY="k", SQLALCHEMY_DATABASE_URI="sqlite://", **settings)
    db = SQLAlchemy(app)
    app.config.update(
        SESSION_BACKEND="sqlalchemy",
        SESSION_SQLALCHEMY=db,
        SESSION_SQLALCHEMY_BIND_KEY="sessions",
    )
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared below
        ServerSession(app)
    return str(caught.value)


def test_a_bind_key_that_there_is_not_is_refused_with_those_there_are() -> None:
    start = "'SESSION_SQLALCHEMY_BIND_KEY' is 'sessions', which 'SQLALCHEMY_BINDS' does"
    end = "Add it there, or leave the key out for the application's own database."
    assert make_binds() == f"{start} not have; it is empty. {end}"
    binds = {"users": "sqlite://", "session": "sqlite://"}
    assert make_binds(SQLALCHEMY_BINDS=binds) == (
        f"{start} not have; it has 'session', 'users'. {end}"
    )


@pytest.mark.parametrize(
    "source",
    [
        {"SESSION_SQLALCHEMY_URL": "sqlite://"},
        {"SESSION_SQLALCHEMY": sa.create_engine("sqlite://")},
    ],
    ids=named,
)
def test_a_bind_key_without_flask_sqlalchemy_is_refused(
    source: dict[str, t.Any],
) -> None:
    error = refused(
        SESSION_BACKEND="sqlalchemy", SESSION_SQLALCHEMY_BIND_KEY="sessions", **source
    )
    assert str(error) == (
        "'SESSION_SQLALCHEMY_BIND_KEY' is 'sessions', which has no effect without a"
        " Flask-SQLAlchemy object in 'SESSION_SQLALCHEMY'. Leave it out, or pass that"
        " object."
    )
    assert error.option == "SESSION_SQLALCHEMY_BIND_KEY"


def test_an_app_context_makes_the_current_application_one() -> None:
    app = Flask("site")
    app.secret_key = "k"
    with app.app_context(), warnings.catch_warnings():
        warnings.simplefilter("error")
        ServerSession(flask.current_app)
    assert "serversession" in app.extensions


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("SESSION_RESAVE", "true", "True"),
        ("SESSION_RESAVE", "False", "False"),
        ("SESSION_PERMANENT", "yes", "True"),
        ("SESSION_PERMANENT", "off", "False"),
        ("SESSION_IDLE_TIMEOUT", "1800", "1800"),
        ("SESSION_TOUCH_INTERVAL", "0.5", "0.5"),
        ("SESSION_IDLE_TIMEOUT", "30 minutes", "timedelta(minutes=30)"),
        ("SESSION_IDLE_TIMEOUT", "1h", "timedelta(hours=1)"),
        ("PERMANENT_SESSION_LIFETIME", "7 days", "timedelta(days=7)"),
        ("SESSION_MAX_PER_USER", "3", "3"),
        ("SESSION_TRACK", "user_agent", "('user_agent',)"),
        ("SESSION_COOKIE_SECURE", "True", "True"),
        ("SESSION_COOKIE_HTTPONLY", "no", "False"),
        ("SESSION_COOKIE_SECURE", "1", "True"),
        # As app.config.from_prefixed_env() reads "0" and "1".
        ("SESSION_COOKIE_SECURE", 0, "False"),
        ("SESSION_COOKIE_SECURE", 1, "True"),
        ("SESSION_COOKIE_HTTPONLY", 0, "False"),
        ("SESSION_COOKIE_PARTITIONED", 1, "True"),
        ("SESSION_REFRESH_EACH_REQUEST", 0, "False"),
        ("SESSION_RESAVE", 1, "True"),
        ("SESSION_CONFLICT", "MERGE", "'merge'"),
        ("SESSION_SERIALIZER", "JSON", "'json'"),
    ],
)
def test_a_value_of_an_environment_variable_is_refused_with_what_it_means(
    key: str, value: object, meant: str
) -> None:
    text = str(refused(**{key: value}))
    assert text.startswith(f"{key!r} is {value!r}; expected ")
    assert text.endswith(f". Did you mean {meant}?")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SESSION_RESAVE", "2"),
        ("SESSION_RESAVE", 2),
        ("SESSION_RESAVE", "maybe"),
        ("SESSION_MAX_SIZE", 0),
        ("SESSION_IDLE_TIMEOUT", "0"),
        ("SESSION_IDLE_TIMEOUT", "9" * 30 + " days"),
        ("SESSION_IDLE_TIMEOUT", "9" * 400),
        ("SESSION_IDLE_TIMEOUT", "soon"),
        ("SESSION_MAX_SIZE", "1MB"),
        ("SESSION_TRACK", "location"),
        ("SESSION_TRACK", True),
        ("SECRET_KEY_FALLBACKS", "hunter2"),
        ("SESSION_ENCRYPTION_KEY", "12345"),
    ],
)
def test_a_value_that_nothing_is_meant_by_gets_no_suggestion(
    key: str, value: object
) -> None:
    text = str(refused(**{key: value}))
    assert "Did you mean" not in text
    assert "hunter2" not in text
