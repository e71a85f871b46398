from __future__ import annotations

import dataclasses
import datetime as dt
import re
import subprocess
import sys
import typing as t
import warnings

import pytest
from cachelib import SimpleCache
from flask import Flask

from flask_serversession import ConfigurationWarning
from flask_serversession import ServerSession
from flask_serversession import config_checks
from flask_serversession.config import KEYS
from flask_serversession.config import Problems
from flask_serversession.config import SessionConfig

from .test_config import configured
from .test_config import refused


@pytest.mark.parametrize(
    "settings",
    [
        {"SESSION_COOKIE_SECURE": "auto", "SESSION_COOKIE_SAMESITE": "auto"},
        {"SESSION_COOKIE_SECURE": True, "SESSION_COOKIE_SAMESITE": "none"},
        {"SESSION_COOKIE_PARTITIONED": True, "SESSION_COOKIE_SAMESITE": "None"},
        {"SESSION_COOKIE_SAMESITE": "strict"},
        {"SESSION_COOKIE_SAMESITE": "LAX"},
        {"SESSION_COOKIE_SAMESITE": None},
        {"SESSION_COOKIE_DOMAIN": "example.com", "SESSION_COOKIE_PATH": "/app"},
        {"SESSION_COOKIE_DOMAIN": None, "SESSION_COOKIE_PATH": None},
        {"SESSION_COOKIE_DOMAIN": False, "SESSION_COOKIE_PATH": ""},
        {"SESSION_COOKIE_NAME": "!#$%&'*+-.^_`|~aZ09"},
        {"SESSION_COOKIE_NAME": "__Host-id", "SESSION_COOKIE_SECURE": True},
        {
            "SESSION_COOKIE_NAME": "__HOST-id",
            "SESSION_COOKIE_SECURE": True,
            "SESSION_COOKIE_PATH": "/",
            "APPLICATION_ROOT": "/app",
        },
        {
            "SESSION_COOKIE_NAME": "__Secure-id",
            "SESSION_COOKIE_SECURE": True,
            "SESSION_COOKIE_DOMAIN": "example.com",
            "SESSION_COOKIE_PATH": "/app",
        },
        {
            "SESSION_COOKIE_NAME": "__Http-id",
            "SESSION_COOKIE_SECURE": True,
            "SESSION_COOKIE_DOMAIN": "example.com",
            "SESSION_COOKIE_PATH": "/app",
        },
        {"SESSION_COOKIE_NAME": "__Host-Http-id", "SESSION_COOKIE_SECURE": True},
        # "Host" alone is no prefix, and neither is what lacks the last hyphen.
        {"SESSION_COOKIE_NAME": "__HostHttp-id", "SESSION_COOKIE_HTTPONLY": False},
        {
            "SESSION_COOKIE_NAME": "__Host-id",
            "SESSION_COOKIE_SECURE": True,
            "SESSION_COOKIE_HTTPONLY": False,
        },
        {"SECRET_KEY": b"bytes", "SECRET_KEY_FALLBACKS": [b"old", "older"]},
        {"SECRET_KEY_FALLBACKS": ("old",)},
        {"SECRET_KEY_FALLBACKS": ()},
        {"SECRET_KEY_FALLBACKS": []},
        {"SECRET_KEY_FALLBACKS": None},
        {"PERMANENT_SESSION_LIFETIME": 60},
        {"SESSION_TYPE": "redis"},
    ],
    ids=repr,
)
def test_what_flask_takes_is_taken(settings: dict[str, t.Any]) -> None:
    assert configured(**settings) == dataclasses.replace(
        SessionConfig(), backend="memory"
    )


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({"SESSION_COOKIE_NAME": "__secure-id"}, ["SECURE"]),
        ({"SESSION_COOKIE_NAME": "__HOST-id"}, ["SECURE"]),
        ({"SESSION_COOKIE_NAME": "__http-id"}, ["SECURE"]),
        (
            {
                "SESSION_COOKIE_NAME": "__Http-id",
                "SESSION_COOKIE_SECURE": True,
                "SESSION_COOKIE_HTTPONLY": False,
                "SESSION_COOKIE_DOMAIN": "example.com",
                "SESSION_COOKIE_PATH": "/app",
            },
            ["HTTPONLY"],
        ),
        (
            {
                "SESSION_COOKIE_NAME": "__HOST-HTTP-id",
                "SESSION_COOKIE_HTTPONLY": False,
                "SESSION_COOKIE_DOMAIN": "example.com",
                "SESSION_COOKIE_PATH": "/app",
            },
            ["SECURE", "HTTPONLY", "DOMAIN", "PATH"],
        ),
        (
            {"SESSION_COOKIE_NAME": "__Host-id", "SESSION_COOKIE_SECURE": "auto"},
            ["SECURE"],
        ),
        (
            {
                "SESSION_COOKIE_NAME": "__Host-id",
                "SESSION_COOKIE_SECURE": True,
                "SESSION_COOKIE_DOMAIN": "example.com",
            },
            ["DOMAIN"],
        ),
        (
            {
                "SESSION_COOKIE_NAME": "__Host-id",
                "SESSION_COOKIE_SECURE": True,
                "APPLICATION_ROOT": "/app",
            },
            ["PATH"],
        ),
    ],
)
def test_a_name_with_a_prefix_needs_what_browsers_ask_for(
    settings: dict[str, t.Any], needs: list[str]
) -> None:
    error = refused(**settings)
    assert error.option == "SESSION_COOKIE_NAME"
    assert re.findall(r"'SESSION_COOKIE_(\w+)' to be", str(error)) == needs


def warnings_of(**settings: t.Any) -> list[str]:
    """Make an application, and check that the warnings point to the line that did."""
    app = Flask("site")
    app.config.update(SECRET_KEY="a secret", **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ServerSession(app)
    assert {warning.filename for warning in caught} <= {__file__}
    assert {warning.category for warning in caught} <= {ConfigurationWarning}
    return [str(warning.message) for warning in caught]


UNKNOWN = (
    "{!r} is not a configuration key of Flask or flask_serversession. Did you mean "
)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        # by letters
        ("SESSION_SAVE_UNINITIALISED", "'SESSION_SAVE_UNINITIALIZED'?"),
        ("SESSION_BACKND", "'SESSION_BACKEND'?"),
        ("SESSION_COOKIE_HTTP_ONLY", "'SESSION_COOKIE_HTTPONLY'?"),
        ("SESSION_COOKIE_SAME_SITE", "'SESSION_COOKIE_SAMESITE'?"),
        # the beginning
        ("SESION_BACKEND", "'SESSION_BACKEND'?"),
        ("SESION_BACKND", "'SESSION_BACKEND'?"),
        ("SESSIONS_BACKEND", "'SESSION_BACKEND'?"),
        ("SERVER_SESSION_BACKEND", "'SESSION_BACKEND'?"),
        ("SERVERSESSION_BACKEND", "'SESSION_BACKEND'?"),
        ("FLASK_SESSION_BACKEND", "'SESSION_BACKEND'?"),
        ("SESSION-BACKEND", "'SESSION_BACKEND'?"),
        ("session_backend", "'SESSION_BACKEND'?"),
        ("PERMANENT_SESSION_LIFETIMES", "'PERMANENT_SESSION_LIFETIME'?"),
        ("PERMANENT_SESSION_MAX_AGE", "'PERMANENT_SESSION_LIFETIME'?"),
        ("PERMANENT_SESION_LIFETIME", "'PERMANENT_SESSION_LIFETIME'?"),
        ("PERMANANT_SESSION_LIFETIME", "'PERMANENT_SESSION_LIFETIME'?"),
        # by meaning
        ("SESSION_STORE", "'SESSION_BACKEND'?"),
        ("SESSION_STORAGE", "'SESSION_BACKEND'?"),
        ("SESSION_ENGINE", "'SESSION_BACKEND'?"),
        ("SESSION_MAX_AGE", "'PERMANENT_SESSION_LIFETIME'?"),
        ("SESSION_COOKIE_MAX_AGE", "'PERMANENT_SESSION_LIFETIME'?"),
        ("SESSION_COOKIE_AGE", "'PERMANENT_SESSION_LIFETIME'?"),
        ("SESSION_LIFETIME", "'PERMANENT_SESSION_LIFETIME'?"),
        ("SESSION_TTL", "'PERMANENT_SESSION_LIFETIME'?"),
        ("SESSION_EXPIRES", "'PERMANENT_SESSION_LIFETIME'?"),
        ("SESSION_PERMANENT_LIFETIME", "'PERMANENT_SESSION_LIFETIME'?"),
        ("SESSION_TIMEOUT", "'SESSION_IDLE_TIMEOUT' or 'SESSION_ABSOLUTE_TIMEOUT'?"),
        ("SESSION_SECRET_KEY", "'SECRET_KEY' or 'SESSION_SECRET'?"),
        ("SESSION_KEY", "'SECRET_KEY' or 'SESSION_SECRET'?"),
        ("SESSION_COOKIE", "'SESSION_COOKIE_NAME'?"),
        ("SESSION_TABLE", "'SESSION_SQLALCHEMY_TABLE'?"),
        ("SESSION_SCHEMA", "'SESSION_SQLALCHEMY_SCHEMA'?"),
        ("SESSION_PREFIX", "'SESSION_KEY_PREFIX'?"),
        ("SESSION_REDIS_PREFIX", "'SESSION_KEY_PREFIX'?"),
        ("SESSION_CACHE", "'SESSION_CACHELIB'?"),
        ("SESSION_MEMCACHE_SERVERS", "'SESSION_CACHELIB'?"),
        ("SESSION_DIR", "'SESSION_FILESYSTEM_PATH'?"),
        ("SESSION_FOLDER", "'SESSION_FILESYSTEM_PATH'?"),
        ("SESSION_FILE_PATH", "'SESSION_FILESYSTEM_PATH'?"),
        ("SESSION_ROLLING", "'SESSION_REFRESH_EACH_REQUEST'?"),
        ("SESSION_SAVE_EVERY_REQUEST", "'SESSION_RESAVE'?"),
        ("SESSION_EXPIRE_AT_BROWSER_CLOSE", "'SESSION_PERMANENT'?"),
        ("SESSION_MAX_SESSIONS", "'SESSION_MAX_PER_USER'?"),
        ("SESSION_USER_ID_KEY", "'SESSION_USER_KEY'?"),
        ("SESSION_FERNET_KEY", "'SESSION_ENCRYPTION_KEY'?"),
        ("SESSION_ENCRYPT", "'SESSION_ENCRYPTION_KEY'?"),
        ("SESSION_SIZE", "'SESSION_MAX_SIZE'?"),
        # by a part of the name
        ("SESSION_SECURE", "'SESSION_COOKIE_SECURE'?"),
        ("SESSION_SAMESITE", "'SESSION_COOKIE_SAMESITE'?"),
        ("SESSION_NAME", "'SESSION_COOKIE_NAME'?"),
        (
            "SESSION_PATH",
            "'SESSION_FILESYSTEM_PATH' or 'SESSION_DEVICE_BOUND_PATH' or"
            " 'SESSION_COOKIE_PATH'?",
        ),
        ("SESSION_CLEANUP", "'SESSION_CLEANUP_INTERVAL' or 'SESSION_CLEANUP_BATCH'?"),
        *(
            (
                f"SESSION_{name}",
                "'SESSION_REDIS_URL', such as"
                " 'redis://user:password@localhost:6379/0'?",
            )
            for name in ("REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD")
        ),
        *(
            (
                f"SESSION_{name}",
                "'SESSION_SQLALCHEMY_URL', such as"
                " 'postgresql+psycopg://user:password@localhost/database'?",
            )
            for name in (
                "DATABASE_URL",
                "DB_URL",
                "SQLALCHEMY_DATABASE_URI",
                "DATABASE",
            )
        ),
    ],
)
def test_a_wrong_key_is_warned_of_with_the_one_that_is_meant(
    key: str, meant: str
) -> None:
    assert warnings_of(**{key: "hunter2"}) == [UNKNOWN.format(key) + meant]


FORMER = "'{}' is a key of Flask-Session and has no effect here. {}"


@pytest.mark.parametrize(
    ("key", "new"),
    [
        ("SESSION_TYPE", "SESSION_BACKEND"),
        ("SESSION_SID_LENGTH", "SESSION_ID_GENERATOR"),
        ("SESSION_ID_LENGTH", "SESSION_ID_GENERATOR"),
        ("SESSION_SERIALIZATION_FORMAT", "SESSION_SERIALIZER"),
        ("SESSION_CLEANUP_N_REQUESTS", "SESSION_CLEANUP_INTERVAL"),
        ("SESSION_FILE_DIR", "SESSION_FILESYSTEM_PATH"),
        ("SESSION_FILE_MODE", "SESSION_FILESYSTEM_GROUP_ACCESS"),
        ("SESSION_MEMCACHED", "SESSION_CACHELIB"),
        ("SESSION_MONGODB", "SESSION_CACHELIB"),
        ("SESSION_MONGODB_DB", "SESSION_CACHELIB"),
        ("SESSION_MONGODB_COLLECT", "SESSION_CACHELIB"),
        ("SESSION_DYNAMODB", "SESSION_CACHELIB"),
        ("SESSION_DYNAMODB_TABLE", "SESSION_CACHELIB"),
        ("SESSION_DYNAMODB_TABLE_NAME", "SESSION_CACHELIB"),
        ("SESSION_DYNAMODB_KEY_ID", "SESSION_CACHELIB"),
        ("SESSION_DYNAMODB_SECRET", "SESSION_CACHELIB"),
        ("SESSION_DYNAMODB_REGION", "SESSION_CACHELIB"),
        ("SESSION_DYNAMODB_ENDPOINT_URL", "SESSION_CACHELIB"),
        ("SESSION_DYNAMODB_TABLE_EXISTS", "SESSION_CACHELIB"),
        ("SESSION_PEEWEE_TABLE", "SESSION_SQLALCHEMY_TABLE"),
    ],
)
def test_a_key_of_flask_session_gets_the_name_of_ours_unless_that_is_set(
    key: str, new: str
) -> None:
    text = FORMER.format(key, f"Use '{new}' instead.")
    assert warnings_of(**{key: "hunter2"}) == [text]
    app = Flask("site")
    app.config.update({"SECRET_KEY": "a secret", key: "x", new: None})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config_checks.check_config(app.config, Problems())


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("SESSION_USE_SIGNER", "Remove it: cookies are always signed."),
        ("SESSION_FILE_THRESHOLD", "Remove it: no session is ever evicted."),
        ("SESSION_SQLALCHEMY_SEQUENCE", "Remove it: the table has no sequence."),
    ],
)
def test_a_key_of_flask_session_that_nothing_replaces_can_be_removed(
    key: str, why: str
) -> None:
    assert warnings_of(**{key: "whatever"}) == [FORMER.format(key, why)]


def test_a_key_of_flask_session_that_tells_of_its_ids_is_needed_to_take_them_over() -> (
    None
):
    config = configured(
        SESSION_MIGRATE_FROM="flask-session",
        SESSION_MIGRATE_UNTIL="2099-12-31",
        SESSION_MIGRATE_STORE=SimpleCache(threshold=0),
        SESSION_USE_SIGNER=True,
    )
    assert config.migrate_from == ("flask-session",)


@pytest.mark.parametrize(
    "key",
    [
        "SESSION_PROTECTION",
        "SESSION_COOKIE_NAME",
        "SESSION_OF_PARLIAMENT",
        "SESSIONS_PER_PAGE",
        "SECTION_BACKEND",
        "SESSION",
        "SESSION_",
        "SERVER_NAME",
        "PERMANENT_ADDRESS",
        "TABLE",
        "STORE",
        "MAX_AGE",
        "REDIS_URL",
    ],
)
def test_keys_of_flask_and_of_other_extensions_are_not_warned_of(key: str) -> None:
    assert warnings_of(**{key: "x"}) == []


def test_every_key_of_ours_and_of_flasks_is_near_to_a_misspelt_one() -> None:
    flasks = [key for key in Flask("site").config if key.startswith("SESSION_")]
    assert len(flasks) == 8
    for key in [*KEYS, *flasks, "PERMANENT_SESSION_LIFETIME"]:
        for wrong in (f"{key}_", key.replace("SESSION_", "SESSON_"), key.lower()):
            (text,) = warnings_of(**{wrong: "x"})
            assert text.startswith(f"{UNKNOWN.format(wrong)}'{key}'")


@pytest.mark.parametrize(
    ("key", "backend"),
    [
        ("SESSION_REDIS", "redis"),
        ("SESSION_REDIS_URL", "redis"),
        ("SESSION_SQLALCHEMY", "sqlalchemy"),
        ("SESSION_SQLALCHEMY_URL", "sqlalchemy"),
        ("SESSION_CACHELIB", "cachelib"),
    ],
)
def test_what_a_backend_needs_is_warned_of_without_it(key: str, backend: str) -> None:
    assert warnings_of(**{key: "x"}) == [
        f"'{key}' has no effect, because 'SESSION_BACKEND' is not set and therefore"
        f" 'filesystem'. Set it to '{backend}'."
    ]
    assert warnings_of(**{key: None}) == []
    assert warnings_of(**{key: "x"}, SESSION_BACKEND="memory") != [
        f"'{key}' has no effect, because 'SESSION_BACKEND' is not set and therefore"
        f" 'filesystem'. Set it to '{backend}'."
    ]


DAY = 86_400


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"PERMANENT_SESSION_LIFETIME": 401 * DAY},
            "'PERMANENT_SESSION_LIFETIME' is 401 days, 0:00:00, but browsers keep no"
            " cookie for more than 400 days. Set it to 400 days at most.",
        ),
        (
            {"SESSION_ABSOLUTE_TIMEOUT": DAY, "SESSION_IDLE_TIMEOUT": 2 * DAY},
            "'SESSION_ABSOLUTE_TIMEOUT' is 1 day, 0:00:00, which is shorter than"
            " 'SESSION_IDLE_TIMEOUT' with 2 days, 0:00:00: no session lives long"
            " enough to be unused for that long. Make the first one longer, or the"
            " second one shorter.",
        ),
        (
            {
                "SESSION_ABSOLUTE_TIMEOUT": dt.timedelta(days=1),
                "PERMANENT_SESSION_LIFETIME": dt.timedelta(days=2),
            },
            "'SESSION_ABSOLUTE_TIMEOUT' is 1 day, 0:00:00, which is shorter than"
            " 'PERMANENT_SESSION_LIFETIME' with 2 days, 0:00:00: no session lives long"
            " enough to be unused for that long. Make the first one longer, or the"
            " second one shorter.",
        ),
        (
            {
                "SESSION_ABSOLUTE_TIMEOUT": DAY,
                "SESSION_IDLE_TIMEOUT": 3 * DAY,
                "PERMANENT_SESSION_LIFETIME": 2 * DAY,
            },
            "'SESSION_ABSOLUTE_TIMEOUT' is 1 day, 0:00:00, which is shorter than"
            " 'SESSION_IDLE_TIMEOUT' with 3 days, 0:00:00: no session lives long"
            " enough to be unused for that long. Make the first one longer, or the"
            " second one shorter.",
        ),
        (
            {"SESSION_ABSOLUTE_TIMEOUT": DAY, "SESSION_RENEWAL_INTERVAL": DAY + 1},
            "'SESSION_RENEWAL_INTERVAL' is 1 day, 0:00:01, which is longer than"
            " 'SESSION_ABSOLUTE_TIMEOUT' with 1 day, 0:00:00: no id gets that old, so"
            " none is renewed. Make the first one shorter.",
        ),
    ],
    ids=["400 days", "idle", "permanent", "both", "renewal"],
)
def test_durations_that_cannot_come_to_pass_get_one_warning(
    settings: dict[str, t.Any], message: str
) -> None:
    assert warnings_of(**settings) == [message]


@pytest.mark.parametrize(
    "settings",
    [
        {"PERMANENT_SESSION_LIFETIME": 400 * DAY},
        {"SESSION_ABSOLUTE_TIMEOUT": DAY},  # Flask's 31 days were nobody's wish
        {"SESSION_ABSOLUTE_TIMEOUT": DAY, "SESSION_IDLE_TIMEOUT": DAY},
        {"SESSION_ABSOLUTE_TIMEOUT": None, "SESSION_IDLE_TIMEOUT": DAY},
        {"SESSION_ABSOLUTE_TIMEOUT": DAY, "SESSION_RENEWAL_INTERVAL": DAY},
        {"SESSION_RENEWAL_INTERVAL": 1000 * DAY},
    ],
    ids=repr,
)
def test_durations_that_fit_get_no_warning(settings: dict[str, t.Any]) -> None:
    assert warnings_of(**settings) == []


def test_a_duration_that_is_none_is_refused_and_not_warned_of() -> None:
    error = refused(SESSION_ABSOLUTE_TIMEOUT="a day", SESSION_IDLE_TIMEOUT=DAY)
    assert error.option == "SESSION_ABSOLUTE_TIMEOUT"


# Device-bound sessions

BOUND: dict[str, t.Any] = {"SESSION_DEVICE_BOUND": True, "SESSION_COOKIE_SECURE": True}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"SESSION_COOKIE_SECURE": "auto", "SESSION_COOKIE_PATH": "/"},
        {"APPLICATION_ROOT": "/shop"},
        {"APPLICATION_ROOT": "/shop", "SESSION_COOKIE_PATH": "/shop"},
        {"APPLICATION_ROOT": "/shop", "SESSION_COOKIE_PATH": "/"},
        {"SESSION_DEVICE_BOUND_PATH": "/a/b-c._~9"},
        {"SESSION_DEVICE_BOUND_LIFETIME": 300},
        {
            "SESSION_DEVICE_BOUND_INITIATORS": ["*", "*.example.com", "a.test:8443"],
            "SESSION_COOKIE_SAMESITE": "None",
        },
    ],
)
def test_a_session_can_be_bound_to_a_device(settings: dict[str, t.Any]) -> None:
    assert configured(**BOUND | settings).device_bound


@pytest.mark.parametrize(
    ("settings", "need"),
    [
        ({"SESSION_COOKIE_SECURE": False}, "'SESSION_COOKIE_SECURE' to be True"),
        ({"SESSION_COOKIE_DOMAIN": "a.test"}, "'SESSION_COOKIE_DOMAIN' to be None"),
        ({"SESSION_COOKIE_PARTITIONED": True}, "'SESSION_COOKIE_PARTITIONED' to be F"),
        ({"SESSION_COOKIE_PATH": "/app"}, "'SESSION_COOKIE_PATH' to be '/'"),
        ({"SESSION_REGENERATE_ON_LOGIN": False}, "'SESSION_REGENERATE_ON_LOGIN' to be"),
    ],
)
def test_a_session_is_not_bound_where_that_could_not_work(
    settings: dict[str, t.Any], need: str
) -> None:
    message = str(refused(**BOUND | settings))
    assert f"'SESSION_DEVICE_BOUND' is True, which needs {need}" in message


@pytest.mark.parametrize("samesite", ["Lax", "Strict", None])
def test_other_sites_can_cause_a_proof_only_if_they_can_send_the_cookie(
    samesite: str | None,
) -> None:
    initiators = {"SESSION_DEVICE_BOUND_INITIATORS": ("example.com",)}
    message = str(refused(**BOUND, **initiators, SESSION_COOKIE_SAMESITE=samesite))
    assert f"'SESSION_COOKIE_SAMESITE' is {samesite!r}, which keeps" in message


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "device", "//evil.test/device", "/a/", "/a//b", "/../a", "/a/./b"),
        *('/a";x="', "/a\r\nSet-Cookie: a=b", "/a b", "/a?b", "/é", b"/a", None),
    ],
)
def test_the_path_of_a_proof_means_nothing_in_a_header(path: t.Any) -> None:
    message = str(refused(**BOUND, SESSION_DEVICE_BOUND_PATH=path))
    assert "expected a path such as '/_session/device'" in message


@pytest.mark.parametrize(
    "initiators", ["example.com", ("https://a.test",), ("a.test/b",), (1,), ("",)]
)
def test_initiators_are_hosts(initiators: t.Any) -> None:
    settings = {**BOUND, "SESSION_COOKIE_SAMESITE": "None"}
    message = str(refused(**settings, SESSION_DEVICE_BOUND_INITIATORS=initiators))
    assert "expected a tuple of hosts such as 'example.com'" in message


def test_a_short_lived_proof_is_warned_of() -> None:
    app = Flask("test")
    app.testing = True
    app.config.update(BOUND, SECRET_KEY="x", SESSION_BACKEND="memory")
    app.config.update(SESSION_DEVICE_BOUND_LIFETIME=299)
    with pytest.warns(ConfigurationWarning, match="no more than 6 times in 9 minutes"):
        ServerSession(app)


def test_a_session_is_not_bound_without_the_package_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "flask_serversession.device", raising=False)
    monkeypatch.delitem(sys.modules, "flask_serversession.device.tokens", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    message = str(refused(**BOUND))
    assert message == (
        "'SESSION_DEVICE_BOUND' needs the cryptography package. Install it with: pip"
        ' install "flask-serversession[device]"'
    )


def test_cryptography_is_not_imported_unless_sessions_are_bound() -> None:
    code = (
        "import sys; import flask; import flask_serversession;"
        "app = flask.Flask('a'); flask_serversession.ServerSession(app);"
        "sys.exit('cryptography' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
