from __future__ import annotations

import dataclasses
import datetime as dt
import re
import typing as t
import warnings

import pytest
from flask import Flask

from flask_serversession import ConfigurationWarning
from flask_serversession import ServerSession
from flask_serversession.config import KEYS
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
        {"SESSION_USE_SIGNER": "whatever", "SESSION_TYPE": "redis"},
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


def test_a_misspelt_key_is_warned_of_with_the_nearest_one() -> None:
    with pytest.warns(ConfigurationWarning) as caught:
        configured(SESSION_SAVE_UNINITIALISED=True)
    assert [str(warning.message) for warning in caught] == [
        "'SESSION_SAVE_UNINITIALISED' is no configuration key. Did you mean"
        " 'SESSION_SAVE_UNINITIALIZED'?"
    ]


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


def test_session_type_gets_a_hint() -> None:
    assert warnings_of(SESSION_TYPE="redis") == [
        "'SESSION_TYPE' is a key of Flask-Session and has no effect here. Use"
        " 'SESSION_BACKEND' instead, which is 'filesystem' when not set."
    ]
    assert warnings_of(SESSION_TYPE="redis", SESSION_BACKEND="memory") == []


@pytest.mark.parametrize(
    "key",
    [
        "SESSION_PROTECTION",
        "SESSION_USE_SIGNER",
        "SESSION_ID_LENGTH",
        "SESSION_SID_LENGTH",
        "SESSION_SERIALIZATION_FORMAT",
        "SESSION_CLEANUP_N_REQUESTS",
        "SESSION_FILE_DIR",
        "SESSION_FILE_MODE",
        "SESSION_FILE_THRESHOLD",
        "SESSION_MEMCACHED",
        "SESSION_MONGODB",
        "SESSION_MONGODB_DB",
        "SESSION_MONGODB_COLLECT",
        "SESSION_DYNAMODB",
        "SESSION_DYNAMODB_TABLE",
        "SESSION_DYNAMODB_TABLE_NAME",
        "SESSION_DYNAMODB_KEY_ID",
        "SESSION_DYNAMODB_SECRET",
        "SESSION_DYNAMODB_REGION",
        "SESSION_DYNAMODB_ENDPOINT_URL",
        "SESSION_DYNAMODB_TABLE_EXISTS",
        "SESSION_SQLALCHEMY_SEQUENCE",
        "SESSION_PEEWEE_TABLE",
        "SESSION_COOKIE_NAME",
        "SESSION_OF_PARLIAMENT",
        "SESION_SECRET",
    ],
)
def test_keys_of_flask_and_of_other_extensions_are_not_warned_of(key: str) -> None:
    assert warnings_of(**{key: "x"}) == []


def test_every_key_of_ours_and_of_flasks_is_near_to_a_misspelt_one() -> None:
    flasks = [key for key in Flask("site").config if key.startswith("SESSION_")]
    assert len(flasks) == 8
    for key in [*KEYS, *flasks]:
        assert warnings_of(**{f"{key}_": "x"}) == [
            f"'{key}_' is no configuration key. Did you mean '{key}'?"
        ]


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
