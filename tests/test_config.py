from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import json
import logging
import re
import secrets
import subprocess
import sys
import types
import typing as t
import warnings
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from cachelib import SimpleCache
from flask import Flask
from flask import current_app

from flask_serversession import ConfigurationError
from flask_serversession import ConfigurationWarning
from flask_serversession import ServerSession
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.backends.sqlalchemy.engines import driver_warning
from flask_serversession.config import KEYS
from flask_serversession.config import SessionConfig

BACKEND = MemoryBackend()


def configured(**settings: t.Any) -> SessionConfig:
    app = Flask("site")
    app.config.update({"SECRET_KEY": "a secret", "SESSION_BACKEND": "memory"})
    app.config.update(settings)
    app.testing = True
    ServerSession(app)
    return t.cast(SessionConfig, app.extensions["serversession"].config)


def refused(**settings: t.Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        configured(**settings)
    return caught.value


def test_the_defaults_are_the_documented_ones() -> None:
    app = Flask("site")
    app.secret_key = "a secret"
    ServerSession(app)
    state = app.extensions["serversession"]
    assert state.config == SessionConfig()
    assert state.backend.name == "filesystem"
    assert state.config.touch_interval == 60
    assert state.config.rotation_grace == 10
    assert state.config.max_size == 1024 * 1024


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"SESSION_BACKEND": "reddis"},
            "'SESSION_BACKEND' is 'reddis'; expected 'cachelib', 'filesystem',"
            " 'memory', 'redis', 'sqlalchemy', an entry point's name,"
            " 'package.module:Name' or a Backend object. Did you mean 'redis'?",
        ),
        (
            {"SESSION_IDLE_TIMEOUT": -5},
            "'SESSION_IDLE_TIMEOUT' is -5; expected a positive timedelta or number of"
            " seconds, or None for PERMANENT_SESSION_LIFETIME.",
        ),
        (
            {"SESSION_CONFLICT": "merg"},
            "'SESSION_CONFLICT' is 'merg'; expected 'merge' or 'overwrite' or 'raise'."
            " Did you mean 'merge'?",
        ),
        (
            {"SESSION_RESAVE": "false"},
            "'SESSION_RESAVE' is 'false'; expected True or False. Did you mean False?",
        ),
        (
            {"SESSION_IDLE_TIMEOUT": 10**400},
            f"'SESSION_IDLE_TIMEOUT' is 1{'0' * 76}...; expected a positive timedelta"
            " or number of seconds, or None for PERMANENT_SESSION_LIFETIME.",
        ),
        (
            {"SESSION_MIGRATE_FROM": [["cookie"]]},
            "'SESSION_MIGRATE_FROM' is [['cookie']]; expected 'cookie' or"
            " 'flask-session', a list of them, or a dict of the keys that have"
            " changed.",
        ),
        (
            {"SESSION_BACKEND": "redis://:password@host/0"},
            "'SESSION_BACKEND' is a URL. Set it to 'redis', and 'SESSION_REDIS_URL' to"
            " the URL.",
        ),
        (
            {"SESSION_MAX_SIZE": 0},
            "'SESSION_MAX_SIZE' is 0; expected a positive int.",
        ),
        (
            {"SESSION_ROTATION_GRACE": None},
            "'SESSION_ROTATION_GRACE' is None; expected a timedelta or number of"
            " seconds, 0 for none.",
        ),
        (
            {"SESSION_COOKIE_SAMESITE": "None"},
            "'SESSION_COOKIE_SAMESITE' is 'None', which browsers accept only from a"
            " Secure cookie: set 'SESSION_COOKIE_SECURE' to True.",
        ),
        (
            {"SESSION_COOKIE_SAMESITE": "lacks"},
            "'SESSION_COOKIE_SAMESITE' is 'lacks'; expected 'Strict', 'Lax', 'None',"
            " 'auto' or None.",
        ),
        (
            {"SECRET_KEY": 12345},
            "'SECRET_KEY' is an int that is not shown; expected a str or bytes.",
        ),
        (
            {"SESSION_COOKIE_SECURE": "yes"},
            "'SESSION_COOKIE_SECURE' is 'yes'; expected True, False or 'auto'. Did you"
            " mean True?",
        ),
        (
            {
                "SESSION_COOKIE_NAME": "__Host-id",
                "SESSION_COOKIE_DOMAIN": "example.com",
                "SESSION_COOKIE_PATH": "/app",
            },
            "'SESSION_COOKIE_NAME' is '__Host-id', which needs 'SESSION_COOKIE_SECURE'"
            " to be True and 'SESSION_COOKIE_DOMAIN' to be None and"
            " 'SESSION_COOKIE_PATH' to be '/': browsers ignore the cookie otherwise.",
        ),
        (
            {"SESSION_COOKIE_NAME": "__Secure-id"},
            "'SESSION_COOKIE_NAME' is '__Secure-id', which needs"
            " 'SESSION_COOKIE_SECURE' to be True: browsers ignore the cookie"
            " otherwise.",
        ),
        (
            {"SESSION_BACKEND": "redis"},
            "'SESSION_BACKEND' is 'redis', which needs exactly one of"
            " 'SESSION_REDIS_URL' (such as 'redis://localhost:6379/0') and"
            " 'SESSION_REDIS'.",
        ),
        (
            {"SESSION_BACKEND": "cachelib", "SESSION_CACHELIB": {}},
            "'SESSION_CACHELIB' is a dict; expected an instance of a cachelib cache,"
            " such as cachelib.FileSystemCache(path, threshold=0), because"
            " 'SESSION_BACKEND' is 'cachelib'.",
        ),
        (
            {"SESSION_TRACK": "user_agent"},
            "'SESSION_TRACK' is 'user_agent'; expected a tuple of 'user_agent' and"
            " 'remote_addr', or (). Did you mean ('user_agent',)?",
        ),
        (
            {"PERMANENT_SESSION_LIFETIME": 0},
            "'PERMANENT_SESSION_LIFETIME' is 0; expected a positive timedelta or"
            " number of seconds.",
        ),
        (
            {"SESSION_USER_KEY": ""},
            "'SESSION_USER_KEY' is ''; expected a key of the session, a list of keys,"
            " or a function that is not async and takes the session and returns the"
            " user's id or None.",
        ),
        (
            {"SESSION_SQLALCHEMY_TABLE": "a-b"},
            "'SESSION_SQLALCHEMY_TABLE' is 'a-b'; expected a name of letters, digits"
            " and underscores.",
        ),
        (
            {"SESSION_KEY_PREFIX": "a\nb"},
            "'SESSION_KEY_PREFIX' is 'a\\nb'; expected a str of at most 100 printable"
            " characters.",
        ),
        (
            {"SESSION_FILESYSTEM_PATH": 5},
            "'SESSION_FILESYSTEM_PATH' is 5; expected the path of a folder, as a str or"
            " pathlib.Path.",
        ),
        (
            {"SESSION_FILESYSTEM_PATH": Path},
            "'SESSION_FILESYSTEM_PATH' is <class 'pathlib.Path'>; expected the path of"
            " a folder.",
        ),
        (
            {"SESSION_ABSOLUTE_TIMEOUT": True},
            "'SESSION_ABSOLUTE_TIMEOUT' is True; expected a positive timedelta or"
            " number of seconds, or None for no absolute timeout.",
        ),
        (
            {"SESSION_RENEWAL_INTERVAL": "1"},
            "'SESSION_RENEWAL_INTERVAL' is '1'; expected a positive timedelta or number"
            " of seconds, or None for no renewal. Did you mean 1?",
        ),
        (
            {"SESSION_TOUCH_INTERVAL": -1},
            "'SESSION_TOUCH_INTERVAL' is -1; expected a timedelta or number of seconds,"
            " 0 to record every access.",
        ),
        (
            {"SESSION_CLEANUP_INTERVAL": float("nan")},
            "'SESSION_CLEANUP_INTERVAL' is nan; expected a timedelta or number of"
            " seconds, 0 for no automatic cleanup.",
        ),
        (
            {"SESSION_ON_LOST": "ignore"},
            "'SESSION_ON_LOST' is 'ignore'; expected 'drop' or 'raise'.",
        ),
        (
            {"SESSION_ON_BACKEND_ERROR": None},
            "'SESSION_ON_BACKEND_ERROR' is None; expected 'raise' or 'ignore'.",
        ),
        (
            {"SESSION_ID_GENERATOR": "uuid4"},
            "'SESSION_ID_GENERATOR' is 'uuid4'; expected a function without arguments"
            " that returns a new id, or None.",
        ),
        (
            {"SESSION_SECRET": ["a", ""]},
            "'SESSION_SECRET' is a list that is not shown; expected a str or bytes, or"
            " a list of them with the newest first.",
        ),
        (
            {"SESSION_ENCRYPTION_KEY": {"a": "b"}},
            "'SESSION_ENCRYPTION_KEY' is a dict that is not shown; expected one key, or"
            " a list of keys with the newest first.",
        ),
        (
            {"SESSION_ENCRYPTION_KEY": "too short"},
            "'SESSION_ENCRYPTION_KEY' is a str that is not shown; expected 32 bytes or"
            " their URL-safe base64, as Fernet.generate_key() of the cryptography"
            " package gives, or a list of such keys with the newest first.",
        ),
        (
            {"SESSION_SERIALIZER": "yaml"},
            "'SESSION_SERIALIZER' is 'yaml'; expected 'msgpack' or 'json'.",
        ),
        (
            {"SESSION_SERIALIZER": 5},
            "'SESSION_SERIALIZER' is 5; expected 'msgpack', 'json', or an object with"
            " dumps(dict) -> bytes and loads(bytes) -> dict.",
        ),
        (
            {"SESSION_MIGRATE_FROM": "flask-sesion"},
            "'SESSION_MIGRATE_FROM' is 'flask-sesion'; expected 'cookie' or"
            " 'flask-session', a list of them, or a dict of the keys that have"
            " changed. Did you mean 'flask-session'?",
        ),
        (
            {"SESSION_MIGRATE_UNTIL": "tomorrow"},
            "'SESSION_MIGRATE_UNTIL' is 'tomorrow'; expected a date, a datetime with a"
            " time zone, or either as a str such as '2030-01-31' or"
            " '2030-01-31T12:00:00+00:00'.",
        ),
        (
            {"SESSION_MIGRATE_UNTIL": dt.date.max},
            "'SESSION_MIGRATE_UNTIL' is datetime.date(9999, 12, 31); expected a date"
            " that has a next day.",
        ),
        (
            {"SESSION_MIGRATE_UNTIL": "0001-01-01T00:00:00+01:00"},
            "'SESSION_MIGRATE_UNTIL' is '0001-01-01T00:00:00+01:00'; expected a moment"
            " that UTC can express.",
        ),
        (
            {"SESSION_MIGRATE_FROM": "cookie"},
            "'SESSION_MIGRATE_FROM' is 'cookie', which needs 'SESSION_MIGRATE_UNTIL':"
            " the day after which nobody needs the old sessions any more, such as"
            " '2030-01-31'.",
        ),
        (
            {
                "SESSION_MIGRATE_FROM": "flask-session",
                "SESSION_MIGRATE_UNTIL": "2030-01-31",
                "SESSION_MIGRATE_STORE": SimpleCache(threshold=0),
                "SESSION_USE_SIGNER": "no",
            },
            "'SESSION_USE_SIGNER' is 'no'; expected what Flask-Session had: True or"
            " False.",
        ),
        (
            {"SECRET_KEY_FALLBACKS": "old"},
            "'SECRET_KEY_FALLBACKS' is a str that is not shown; expected a list of str"
            " or bytes, or None.",
        ),
        (
            {"SESSION_COOKIE_HTTPONLY": None},
            "'SESSION_COOKIE_HTTPONLY' is None; expected True or False.",
        ),
        (
            {"SESSION_COOKIE_DOMAIN": "a;b"},
            "'SESSION_COOKIE_DOMAIN' is 'a;b'; expected a str without semicolons and"
            " control characters, or None.",
        ),
        (
            {"SESSION_COOKIE_NAME": "a b"},
            "'SESSION_COOKIE_NAME' is 'a b'; expected a str of letters, digits and any"
            " of !#$%&'*+-.^_`|~.",
        ),
        (
            {"SESSION_COOKIE_SAMESITE": True},
            "'SESSION_COOKIE_SAMESITE' is True; expected 'Strict', 'Lax', 'None',"
            " 'auto' or None.",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_refused_with_key_value_and_remedy(
    settings: dict[str, t.Any], message: str
) -> None:
    error = refused(**settings)
    assert str(error) == message
    assert isinstance(error.option, str)
    assert f"'{error.option}'" in message
    assert isinstance(error, ValueError)


CENTURIES = 1000 * 365.25 * 86400
KEY = base64.urlsafe_b64encode(bytes(32)).decode()


def utc(*args: int) -> dt.datetime:
    return dt.datetime(*args, tzinfo=dt.timezone.utc)


def test_a_folder_may_be_in_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("USERPROFILE", "/home/ada")
    for given in ("~/sessions", Path("~/sessions")):
        config = configured(SESSION_FILESYSTEM_PATH=given)
        assert config.filesystem_path == "/home/ada/sessions"
    error = refused(SESSION_FILESYSTEM_PATH="~nobody-of-this-name/sessions")
    assert "that user has no home folder here" in str(error)


@pytest.mark.parametrize(
    ("key", "given", "taken"),
    [
        ("SESSION_KEY_PREFIX", "", ""),
        ("SESSION_KEY_PREFIX", "p" * 100, "p" * 100),
        ("SESSION_SQLALCHEMY_TABLE", "_a1", "_a1"),
        ("SESSION_SQLALCHEMY_TABLE", "T" * 63, "T" * 63),
        ("SESSION_SQLALCHEMY_SCHEMA", None, None),
        ("SESSION_SQLALCHEMY_SCHEMA", "one", "one"),
        ("SESSION_SQLALCHEMY_SCHEMA", "my-app", "my-app"),
        ("SESSION_SQLALCHEMY_BIND_KEY", "two", "two"),
        ("SESSION_FILESYSTEM_PATH", "/nowhere", "/nowhere"),
        ("SESSION_FILESYSTEM_PATH", Path("/nowhere"), "/nowhere"),
        ("SESSION_IDLE_TIMEOUT", 0.001, 0.001),
        ("SESSION_IDLE_TIMEOUT", CENTURIES, CENTURIES),
        ("SESSION_TOUCH_INTERVAL", 0, 0),
        ("SESSION_TOUCH_INTERVAL", dt.timedelta(0), 0),
        ("SESSION_CLEANUP_INTERVAL", 0, 0),
        ("SESSION_ROTATION_GRACE", 0, 0),
        ("SESSION_MAX_SIZE", 1, 1),
        ("SESSION_MAX_PER_USER", 1, 1),
        ("SESSION_CONFLICT", "overwrite", "overwrite"),
        ("SESSION_CONFLICT", "raise", "raise"),
        ("SESSION_ON_LOST", "raise", "raise"),
        ("SESSION_ON_BACKEND_ERROR", "ignore", "ignore"),
        ("SESSION_SECRET", None, ()),
        ("SESSION_SECRET", "new", ("new",)),
        ("SESSION_SECRET", b"new", (b"new",)),
        ("SESSION_SECRET", ["new", b"old"], ("new", b"old")),
        ("SESSION_SECRET", ("new",), ("new",)),
        ("SESSION_ENCRYPTION_KEY", None, ()),
        ("SESSION_ENCRYPTION_KEY", KEY, (bytes(32),)),
        ("SESSION_ENCRYPTION_KEY", bytes(32), (bytes(32),)),
        ("SESSION_ENCRYPTION_KEY", (KEY, b"k" * 32), (bytes(32), b"k" * 32)),
        ("SESSION_SERIALIZER", "json", "json"),
        ("SESSION_SERIALIZER", json, json),
        ("SESSION_ID_GENERATOR", secrets.token_hex, secrets.token_hex),
        ("SESSION_ID_GENERATOR", None, None),
        ("SESSION_TRACK", ["remote_addr", "user_agent"], ("user_agent", "remote_addr")),
        ("SESSION_TRACK", {"remote_addr"}, ("remote_addr",)),
        ("SESSION_TRACK", frozenset({"user_agent"}), ("user_agent",)),
        ("SESSION_TRACK", (), ()),
        ("SESSION_MIGRATE_FROM", None, ()),
        ("SESSION_MIGRATE_UNTIL", "2030-01-31", utc(2030, 2, 1)),
        ("SESSION_MIGRATE_UNTIL", dt.date(2030, 1, 31), utc(2030, 2, 1)),
        ("SESSION_MIGRATE_UNTIL", utc(2030, 1, 31, 12), utc(2030, 1, 31, 12)),
        ("SESSION_MIGRATE_UNTIL", "2030-01-31T12:00:00Z", utc(2030, 1, 31, 12)),
        ("SESSION_MIGRATE_UNTIL", "2030-01-31T12:00:00z", utc(2030, 1, 31, 12)),
        ("SESSION_MIGRATE_UNTIL", "2030-01-31T12:00:00+02:00", utc(2030, 1, 31, 10)),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", repr(value)),
)
def test_a_right_value_is_taken(key: str, given: object, taken: object) -> None:
    value = getattr(configured(**{key: given}), KEYS[key])
    assert value == taken
    assert type(value) is type(taken) or isinstance(value, float)
    if isinstance(value, dt.datetime):
        assert value.tzinfo is dt.timezone.utc


def test_settings_cannot_be_changed_afterwards() -> None:
    config = configured()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.resave = True  # type: ignore[misc]


def test_sessions_may_be_taken_over_from_one_kind_or_several() -> None:
    config = configured(
        SESSION_MIGRATE_UNTIL="2030-01-31", SESSION_MIGRATE_FROM="cookie"
    )
    assert config.migrate_from == ("cookie",)
    config = configured(
        SESSION_MIGRATE_UNTIL="2030-01-31",
        SESSION_MIGRATE_FROM=["flask-session", "cookie"],
        SESSION_TYPE="filesystem",
        SESSION_MIGRATE_STORE=SimpleCache(threshold=0),
    )
    assert config.migrate_from == ("cookie", "flask-session")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SESSION_KEY_PREFIX", "p" * 101),
        ("SESSION_KEY_PREFIX", b"p"),
        ("SESSION_SQLALCHEMY_TABLE", "T" * 64),
        ("SESSION_SQLALCHEMY_TABLE", "1a"),
        ("SESSION_SQLALCHEMY_TABLE", None),
        ("SESSION_SQLALCHEMY_SCHEMA", ""),
        ("SESSION_SQLALCHEMY_SCHEMA", " a"),
        ("SESSION_SQLALCHEMY_SCHEMA", "a\n"),
        ("SESSION_SQLALCHEMY_SCHEMA", "a" * 64),
        ("SESSION_FILESYSTEM_PATH", ""),
        ("SESSION_FILESYSTEM_PATH", "a\0b"),
        ("SESSION_FILESYSTEM_PATH", b"bytes"),
        ("SESSION_IDLE_TIMEOUT", 0),
        ("SESSION_IDLE_TIMEOUT", CENTURIES + 1),
        ("SESSION_IDLE_TIMEOUT", float("nan")),
        ("SESSION_TOUCH_INTERVAL", False),
        ("SESSION_MAX_SIZE", True),
        ("SESSION_MAX_SIZE", 1.5),
        ("SESSION_MAX_PER_USER", 0),
        ("SESSION_USER_KEY", 5),
        ("SESSION_USER_KEY", []),
        ("SESSION_USER_KEY", ["user", 5]),
        ("SESSION_SECRET", []),
        ("SESSION_SECRET", ""),
        ("SESSION_SECRET", {"a"}),
        ("SESSION_ENCRYPTION_KEY", []),
        ("SESSION_ENCRYPTION_KEY", [KEY, "short"]),
        ("SESSION_SERIALIZER", types.SimpleNamespace(dumps=json.dumps)),
        ("SESSION_SERIALIZER", types.SimpleNamespace(loads=json.loads)),
        ("SESSION_TRACK", "user_agent"),
        ("SESSION_TRACK", ["user_agent", "location"]),
        ("SESSION_TRACK", {"user_agent": True}),
        ("SESSION_MIGRATE_FROM", []),
        ("SESSION_MIGRATE_FROM", ["cookie", "nowhere"]),
        ("SESSION_MIGRATE_FROM", {"cookie": True}),
        ("SESSION_MIGRATE_UNTIL", dt.datetime(2030, 1, 31)),  # noqa: DTZ001
        ("SESSION_MIGRATE_UNTIL", "2030-01-31T12:00:00"),
        ("SESSION_MIGRATE_UNTIL", 1_900_000_000),
        ("SESSION_COOKIE_NAME", 5),
        ("SESSION_COOKIE_NAME", ""),
        ("SESSION_COOKIE_NAME", "sessi\xf3n"),
        ("SESSION_COOKIE_PATH", "/\x7f"),
        ("SESSION_COOKIE_PATH", "/\x00"),
        ("SESSION_COOKIE_PATH", "/\x1f"),
        ("SESSION_COOKIE_SECURE", None),
        ("SECRET_KEY", ["a"]),
        ("SECRET_KEY_FALLBACKS", [5]),
        ("SECRET_KEY_FALLBACKS", b"old"),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", repr(value)),
)
def test_a_value_beyond_the_bounds_is_refused(key: str, value: object) -> None:
    error = refused(**{key: value})
    assert error.option == key
    assert "; expected " in str(error)


def test_a_long_value_is_cut_in_a_message() -> None:
    whole = refused(SESSION_RESAVE="x" * 78)
    assert str(whole) == f"'SESSION_RESAVE' is '{'x' * 78}'; expected True or False."
    cut = refused(SESSION_RESAVE="x" * 79)
    assert str(cut) == f"'SESSION_RESAVE' is '{'x' * 76}...; expected True or False."


def test_all_wrong_keys_are_in_one_message() -> None:
    error = refused(
        SESSION_BACKEND="nowhere:Backend",
        SESSION_RESAVE=2,
        SESSION_TOUCH_INTERVAL="60",
        SESSION_COOKIE_NAME="",
    )
    lines = str(error).splitlines()
    assert error.option == "SESSION_RESAVE"
    assert lines[0] == "4 settings are wrong:"
    assert lines[1] == "- 'SESSION_RESAVE' is 2; expected True or False."
    assert [line.split("'")[1] for line in lines[1:]] == [
        "SESSION_RESAVE",
        "SESSION_TOUCH_INTERVAL",
        "SESSION_COOKIE_NAME",
        "SESSION_BACKEND",
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"SESSION_SECRET": ["hunter2", 7]},
        {"SESSION_ENCRYPTION_KEY": "hunter2"},
        {"SESSION_REDIS_URL": b"redis://:hunter2@localhost"},
        {
            "SESSION_BACKEND": "redis",
            "SESSION_REDIS_URL": "nonsense://:hunter2@localhost",
        },
        {
            "SESSION_BACKEND": "sqlalchemy",
            "SESSION_SQLALCHEMY_URL": "nonsense://u:hunter2@localhost/db",
        },
    ],
    ids=lambda settings: str(list(settings)),
)
def test_no_secret_is_in_a_message(settings: dict[str, t.Any]) -> None:
    assert "hunter2" not in str(refused(**settings))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(90, 90), (1.5, 1.5), (dt.timedelta(minutes=2), 120), (None, None)],
)
def test_durations_are_timedeltas_or_seconds(value: t.Any, seconds: t.Any) -> None:
    assert configured(SESSION_ABSOLUTE_TIMEOUT=value).absolute_timeout == seconds


def test_every_key_is_known_by_its_name() -> None:
    assert KEYS["SESSION_SAVE_UNINITIALIZED"] == "save_uninitialized"
    assert {"SESSION_SECRET", "SESSION_RESAVE", "SESSION_TRACK"} <= set(KEYS)


def test_initializing_twice_is_refused() -> None:
    app = Flask("site")
    app.secret_key = "a secret"
    extension = ServerSession(app)
    with pytest.raises(ConfigurationError, match="already initialized"):
        extension.init_app(app)


def test_nothing_is_created_before_the_first_session(tmp_path: Path) -> None:
    app = Flask("site", instance_path=str(tmp_path / "instance"))
    app.secret_key = "a secret"
    ServerSession(app)
    app.test_client().get("/")
    assert list(tmp_path.iterdir()) == []
    with app.test_client().session_transaction() as session:
        session["n"] = 1
    assert (tmp_path / "instance" / "sessions").is_dir()


# Backends


class Third(MemoryBackend):
    name = "third"

    @classmethod
    def from_config(cls, config: t.Mapping[str, t.Any]) -> Third:
        third = cls()
        third.size = config["THIRD_SIZE"]
        return third

    size: int = 0


def state_of(**settings: t.Any) -> t.Any:
    app = Flask("site")
    app.config.update(SECRET_KEY="a secret", **settings)
    app.testing = True
    ServerSession(app)
    return app.extensions["serversession"]


def test_a_backend_object_is_used_as_it_is() -> None:
    assert state_of(SESSION_BACKEND=BACKEND).backend is BACKEND


def test_a_backend_may_be_named_by_module_and_attribute() -> None:
    here = __name__
    assert state_of(SESSION_BACKEND=f"{here}:BACKEND").backend is BACKEND
    third = state_of(SESSION_BACKEND=f"{here}:Third", THIRD_SIZE=3).backend
    assert (third.name, third.size) == ("third", 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Backend", "cannot be imported: No module named"),
        ("tests.test_config:Missing", "cannot be imported: module"),
        ("builtins:dict", "made a dict instead of"),
        ("tests.test_config:__name__", "neither a Backend nor makes one"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        state_of(SESSION_BACKEND=name)


def test_an_object_that_is_no_backend_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="or a Backend object"):
        state_of(SESSION_BACKEND=object())


@pytest.mark.parametrize("client", ["redis://localhost", object(), {}])
def test_a_wrong_redis_client_is_refused_and_never_replaced(client: t.Any) -> None:
    with pytest.raises(ConfigurationError, match="'SESSION_REDIS'"):
        state_of(SESSION_BACKEND="redis", SESSION_REDIS=client)


@pytest.mark.parametrize("engine", ["sqlite://", object()])
def test_a_wrong_engine_is_refused(engine: t.Any) -> None:
    with pytest.raises(ConfigurationError, match="expected a sqlalchemy"):
        state_of(SESSION_BACKEND="sqlalchemy", SESSION_SQLALCHEMY=engine)


def test_a_flask_sqlalchemy_object_is_taken_in_an_application_factory() -> None:
    from flask_sqlalchemy import SQLAlchemy

    db = SQLAlchemy()
    app = Flask("site")
    app.config.update(
        SECRET_KEY="a secret",
        SQLALCHEMY_DATABASE_URI="sqlite://",
        SESSION_BACKEND="sqlalchemy",
        SESSION_SQLALCHEMY=db,
    )
    with pytest.raises(ConfigurationError, match="is not initialized"):
        ServerSession(app)
    db.init_app(app)
    ServerSession(app)
    assert "server_sessions" in db.metadata.tables


class Lite:
    """What Flask-SQLAlchemy-Lite's object has."""

    def __init__(self, engine: t.Any) -> None:
        self._engine = engine

    @property
    def engines(self) -> dict[str, t.Any]:
        assert current_app
        return {"default": self._engine, "other": self._engine}


@pytest.mark.parametrize("key", [None, "other"])
def test_a_flask_sqlalchemy_lite_object_is_taken(key: str | None) -> None:
    import sqlalchemy as sa

    app = Flask("site")
    app.extensions["sqlalchemy"] = lite = Lite(sa.create_engine("sqlite:///a.db"))
    app.config.update(
        SECRET_KEY="k",
        SESSION_BACKEND="sqlalchemy",
        SESSION_SQLALCHEMY=lite,
        SESSION_SQLALCHEMY_BIND_KEY=key,
    )
    ServerSession(app)
    backend = app.extensions["serversession"].backend
    assert str(backend._engine.url) == "sqlite:///a.db"


def test_an_application_that_is_not_flasks_is_refused() -> None:
    class Quart:
        extensions: t.ClassVar[dict[str, t.Any]] = {}

    with pytest.raises(ConfigurationError, match="takes a Flask application, not a"):
        ServerSession(t.cast("Flask", Quart()))


@pytest.mark.parametrize(
    "url", ["valkey://h:1/0", "valkeys://h:1/0", "valkey+sentinel://h:1/m/0"]
)
def test_valkeys_urls_are_understood(url: str) -> None:
    state_of(SESSION_BACKEND="redis", SESSION_REDIS_URL=url)


@pytest.mark.parametrize("url", ["postgres://u@h/d", "postgres+psycopg://u@h/d"])
def test_the_old_name_of_postgresql_is_understood(url: str) -> None:
    state = state_of(SESSION_BACKEND="sqlalchemy", SESSION_SQLALCHEMY_URL=url)
    backend: t.Any = state.backend
    assert backend._engine.dialect.name == "postgresql"


def test_a_prefix_that_the_backend_cannot_take_is_one_of_the_problems() -> None:
    error = refused(
        SESSION_BACKEND="filesystem", SESSION_KEY_PREFIX="%" * 90, SESSION_RESAVE=1
    )
    assert "2 settings are wrong" in str(error)


def test_a_cache_that_evicts_live_sessions_is_warned_of() -> None:
    with pytest.warns(ConfigurationWarning, match="threshold"):
        state_of(SESSION_BACKEND="cachelib", SESSION_CACHELIB=SimpleCache())


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg2://me@localhost/d",
        "postgresql+psycopg://me@localhost/d",
        "mysql+mysqlconnector://me@localhost/d",
        "mysql+mariadbconnector://me@localhost/d",
    ],
)
def test_a_driver_that_waits_without_limit_is_warned_of(url: str) -> None:
    # Versions only: nothing is connected at the start.
    driver = types.SimpleNamespace(
        __version__="3.2.9" if "psycopg:" in url else "2.9.10",
        paramstyle="pyformat",
        adapters=psycopg.adapters,
    )
    engine = sa.create_engine(url, module=driver, _initialize=False)
    warning = driver_warning(engine)
    assert warning is not None
    assert repr(engine.dialect.driver) in warning
    assert "Use psycopg 3.2.11 or later" in warning
    if "psycopg2" not in url:  # which has to be installed for it
        with pytest.warns(ConfigurationWarning, match=re.escape(warning)):
            state_of(SESSION_BACKEND="sqlalchemy", SESSION_SQLALCHEMY=engine)


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://me@localhost/d", "mysql+pymysql://me@localhost/d"]
)
def test_a_driver_that_gives_up_is_not_warned_of(url: str) -> None:
    state_of(SESSION_BACKEND="sqlalchemy", SESSION_SQLALCHEMY_URL=url)


def test_the_memory_backend_says_once_that_it_is_for_one_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Flask("site")
    app.config.update(SECRET_KEY="a secret", SESSION_BACKEND="memory")
    ServerSession(app)
    client = app.test_client()
    for _ in range(3):
        client.get("/")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "'SESSION_BACKEND'" in caplog.text


PROGRAM = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Finder())
import flask_serversession
drivers = ('redis', 'sqlalchemy', 'cryptography', 'pytest')
print([name for name in drivers if name in sys.modules])
from flask import Flask
app = Flask('site')
app.config.update(SECRET_KEY='x', **{settings!r})
try:
    flask_serversession.ServerSession(app)
except flask_serversession.ConfigurationError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("extra", "package", "settings"),
    [
        (
            "redis",
            "redis",
            {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": "redis://localhost"},
        ),
        (
            "sqlalchemy",
            "sqlalchemy",
            {"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY_URL": "sqlite://"},
        ),
        (
            "encryption",
            "cryptography",
            {"SESSION_ENCRYPTION_KEY": "A" * 43 + "="},
        ),
    ],
)
def test_a_missing_driver_is_reported_with_the_install_command(
    extra: str, package: str, settings: dict[str, str]
) -> None:
    program = PROGRAM.format(blocked=[package], settings=settings)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    imported, message = run.stdout.splitlines()
    assert imported == "[]"
    assert f'pip install "flask-serversession[{extra}]"' in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SECRET_KEY_FALLBACKS", "oldkey", "a list of str or bytes"),
        ("SECRET_KEY_FALLBACKS", {"a": 1}, "a list of str or bytes"),
        ("SESSION_TRACK", [[1]], "a tuple of 'user_agent'"),
        ("SESSION_BACKEND", "json:loads", "no backend can be made"),
        ("SESSION_BACKEND", "..:b", "cannot be imported"),
        ("SESSION_COOKIE_NAME", "a;b", "letters, digits"),
        ("SESSION_COOKIE_NAME", "a\r\nSet-Cookie: x", "letters, digits"),
        ("SESSION_COOKIE_PATH", 5, "a str without semicolons"),
        ("SESSION_COOKIE_DOMAIN", "a;b", "a str without semicolons"),
        ("SESSION_COOKIE_HTTPONLY", "false", "True or False"),
        ("SESSION_COOKIE_PARTITIONED", "no", "True or False"),
        ("SESSION_REFRESH_EACH_REQUEST", "no", "True or False"),
        ("SESSION_SQLALCHEMY_METADATA", "x", "MetaData"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(
    key: str, value: object, expected: str
) -> None:
    app = Flask("app")
    app.config["SECRET_KEY"] = "a secret"
    if key == "SESSION_SQLALCHEMY_METADATA":
        app.config.update(
            SESSION_BACKEND="sqlalchemy", SESSION_SQLALCHEMY_URL="sqlite://"
        )
    app.config[key] = value
    with pytest.raises(ConfigurationError) as info:
        ServerSession(app)
    assert key in str(info.value)
    assert expected in str(info.value)
    assert "oldkey" not in str(info.value)


# Settings that come too late


def late_warnings(app: Flask, requests: int = 1) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(requests):
            app.test_client().get("/")
    assert {warning.category for warning in caught} <= {ConfigurationWarning}
    return [str(warning.message) for warning in caught]


def make_late(**early: t.Any) -> Flask:
    app = Flask("site")
    app.config.update(SECRET_KEY="k", SESSION_BACKEND="memory", TESTING=True, **early)
    ServerSession(app)
    return app


LATE = (
    "These settings were set or changed after ServerSession(app) or init_app(app) had"
    " read them, and are not in force: {}. Set them before."
)


@pytest.mark.parametrize(
    ("early", "late", "names"),
    [
        ({}, {"SESSION_TRACK": ("user_agent",)}, "'SESSION_TRACK'"),
        ({}, {"SESSION_TRACK": "nonsense"}, "'SESSION_TRACK'"),
        (
            {"SESSION_MAX_SIZE": 10},
            {"SESSION_RESAVE": True, "SESSION_MAX_SIZE": 20},
            "'SESSION_MAX_SIZE', 'SESSION_RESAVE'",
        ),
        ({}, {"SESSION_BACKEND": "filesystem"}, "'SESSION_BACKEND'"),
    ],
)
def test_a_setting_that_comes_too_late_gets_one_warning_at_the_first_request(
    early: dict[str, t.Any], late: dict[str, t.Any], names: str
) -> None:
    app = make_late(**early)
    app.config.update(late)
    assert late_warnings(app, requests=3) == [LATE.format(names)]


def test_a_setting_that_is_taken_away_is_still_in_force() -> None:
    app = make_late(SESSION_RESAVE=True)
    del app.config["SESSION_RESAVE"]
    assert late_warnings(app) == [LATE.format("'SESSION_RESAVE'")]


def test_a_default_that_is_taken_away_is_still_in_force_and_no_mistake() -> None:
    app = make_late(SESSION_KEY_PREFIX="".join(["session", ":"]))
    del app.config["SESSION_KEY_PREFIX"]
    assert late_warnings(app) == []


def test_a_text_may_not_be_empty() -> None:
    assert "expected a str that is not empty" in str(
        refused(SESSION_BACKEND="redis", SESSION_REDIS_URL="")
    )


@pytest.mark.parametrize(
    "late",
    [
        {},
        {"SESSION_TRACK": []},
        {"SESSION_IDLE_TIMEOUT": dt.timedelta(minutes=1)},
        {"SESSION_RESAVE": False, "SESSION_BACKEND": "memory"},
        # Flask's are read at each response.
        {"SESSION_COOKIE_NAME": "id", "SESSION_REFRESH_EACH_REQUEST": False},
        {"PERMANENT_SESSION_LIFETIME": 60, "SECRET_KEY": "another"},
    ],
    ids=repr,
)
def test_what_is_in_force_anyway_gets_no_warning(late: dict[str, t.Any]) -> None:
    app = make_late(SESSION_IDLE_TIMEOUT=60)
    app.config.update(late)
    assert late_warnings(app) == []


LATE_AND_WRONG = (
    " It was set after ServerSession(app) or init_app(app) had checked the settings."
)


@pytest.mark.parametrize(
    ("late", "messages"),
    [
        (
            {"SESSION_COOKIE_NAME": "__Host-id"},
            [
                "'SESSION_COOKIE_NAME' is '__Host-id', which needs"
                " 'SESSION_COOKIE_SECURE' to be True: browsers ignore the cookie"
                " otherwise."
            ],
        ),
        (
            {
                "SESSION_COOKIE_NAME": "__Host-id",
                "SESSION_COOKIE_SECURE": True,
                "SESSION_COOKIE_DOMAIN": "example.com",
                "SESSION_COOKIE_PATH": "/shop",
            },
            [
                "'SESSION_COOKIE_NAME' is '__Host-id', which needs"
                " 'SESSION_COOKIE_DOMAIN' to be None and 'SESSION_COOKIE_PATH' to be"
                " '/': browsers ignore the cookie otherwise."
            ],
        ),
        (
            {"SESSION_COOKIE_SAMESITE": "None"},
            [
                "'SESSION_COOKIE_SAMESITE' is 'None', which browsers accept only from a"
                " Secure cookie: set 'SESSION_COOKIE_SECURE' to True."
            ],
        ),
        (
            {"SESSION_COOKIE_SECURE": "yes", "SESSION_COOKIE_HTTPONLY": "no"},
            [
                "'SESSION_COOKIE_SECURE' is 'yes'; expected True, False or 'auto'. Did"
                " you mean True?",
                "'SESSION_COOKIE_HTTPONLY' is 'no'; expected True or False. Did you"
                " mean False?",
            ],
        ),
        (
            {"SECRET_KEY": "another", "SECRET_KEY_FALLBACKS": ("hunter2",)},
            [],
        ),
        # Flask raises an error of its own.
        ({"SESSION_COOKIE_SAMESITE": "Sometimes"}, []),
    ],
    ids=repr,
)
def test_what_is_read_at_each_response_is_checked_at_the_first_request_again(
    late: dict[str, t.Any], messages: list[str]
) -> None:
    app = make_late()
    app.config.update(late)
    expected = [f"{message}{LATE_AND_WRONG}" for message in messages]
    assert late_warnings(app, requests=3) == expected


def test_an_object_that_cannot_be_compared_is_another_one() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise TypeError

        __hash__ = None  # type: ignore[assignment]

    app = make_late()
    app.config["SESSION_REDIS"] = Odd()
    assert late_warnings(app) == [LATE.format("'SESSION_REDIS'")]


def test_no_request_but_the_first_looks_for_late_settings() -> None:
    app = make_late()
    assert late_warnings(app) == []
    app.config["SESSION_RESAVE"] = True
    assert late_warnings(app) == []
