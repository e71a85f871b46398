from __future__ import annotations

import datetime as dt
import logging
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from cachelib import SimpleCache
from flask import Flask

from flask_serversession import ConfigurationError
from flask_serversession import ConfigurationWarning
from flask_serversession import ServerSession
from flask_serversession.backends.memory import MemoryBackend
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
            "'SESSION_RESAVE' is 'false'; expected True or False.",
        ),
        (
            {"SESSION_IDLE_TIMEOUT": 10**400},
            f"'SESSION_IDLE_TIMEOUT' is 1{'0' * 76}...; expected a positive timedelta"
            " or number of seconds, or None for PERMANENT_SESSION_LIFETIME.",
        ),
        (
            {"SESSION_MIGRATE_FROM": [["cookie"]]},
            "'SESSION_MIGRATE_FROM' is [['cookie']]; expected 'cookie' or"
            " 'flask-session', or a list of them.",
        ),
        (
            {"SESSION_BACKEND": "redis://:password@host/0"},
            "'SESSION_BACKEND' is a URL, which belongs into 'SESSION_REDIS_URL' or"
            " 'SESSION_SQLALCHEMY_URL'; 'SESSION_BACKEND' names the kind of backend.",
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
            "'SECRET_KEY' is a int that is not shown; expected a str or bytes.",
        ),
        (
            {"SESSION_COOKIE_SECURE": "yes"},
            "'SESSION_COOKIE_SECURE' is 'yes'; expected True, False or 'auto'.",
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
            " 'remote_addr', or ().",
        ),
        (
            {"PERMANENT_SESSION_LIFETIME": 0},
            "'PERMANENT_SESSION_LIFETIME' is 0; expected a positive timedelta or"
            " number of seconds.",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_refused_with_key_value_and_remedy(
    settings: dict[str, t.Any], message: str
) -> None:
    error = refused(**settings)
    assert str(error) == message
    assert f"'{error.option}'" in message
    assert isinstance(error, ValueError)


def test_all_wrong_keys_are_in_one_message() -> None:
    error = refused(
        SESSION_BACKEND="nowhere:Backend",
        SESSION_RESAVE=1,
        SESSION_TOUCH_INTERVAL="60",
        SESSION_COOKIE_NAME="",
    )
    lines = str(error).splitlines()
    assert lines[0] == "4 settings are wrong:"
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


def test_a_misspelt_key_is_warned_of_with_the_nearest_one() -> None:
    with pytest.warns(ConfigurationWarning) as caught:
        configured(SESSION_SAVE_UNINITIALISED=True)
    assert [str(warning.message) for warning in caught] == [
        "'SESSION_SAVE_UNINITIALISED' is no configuration key. Did you mean"
        " 'SESSION_SAVE_UNINITIALIZED'?"
    ]


def test_session_type_gets_a_hint() -> None:
    app = Flask("site")
    app.config.update(SECRET_KEY="a secret", SESSION_TYPE="redis")
    with pytest.warns(ConfigurationWarning, match="Use 'SESSION_BACKEND' instead"):
        ServerSession(app)


def test_keys_of_flask_and_its_other_extensions_are_not_warned_of() -> None:
    configured(
        SESSION_PROTECTION="strong",
        SESSION_TYPE="redis",
        SESSION_USE_SIGNER=True,
        SESSION_COOKIE_NAME="id",
        SESSION_MONGODB_DB="x",
        SESSION_OF_PARLIAMENT="x",
    )


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
        ("tests.test_config:state_of", "missing|made a"),
        ("builtins:dict", "made a dict instead of"),
        ("tests.test_config:__name__", "neither a Backend nor makes one"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name: str, message: str) -> None:
    if name.endswith("state_of"):
        pytest.skip("would make an application")
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
    assert "sessions" in db.metadata.tables


def test_a_prefix_that_the_backend_cannot_take_is_one_of_the_problems() -> None:
    error = refused(
        SESSION_BACKEND="filesystem", SESSION_KEY_PREFIX="%" * 90, SESSION_RESAVE=1
    )
    assert "2 settings are wrong" in str(error)


def test_a_url_without_its_backend_is_warned_of() -> None:
    app = Flask("site")
    app.config.update(SECRET_KEY="a secret", SESSION_REDIS_URL="redis://localhost")
    with pytest.warns(ConfigurationWarning, match="Set it to 'redis'"):
        ServerSession(app)


def test_a_cache_that_evicts_live_sessions_is_warned_of() -> None:
    with pytest.warns(ConfigurationWarning, match="threshold"):
        state_of(SESSION_BACKEND="cachelib", SESSION_CACHELIB=SimpleCache())


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
