"""What must hold between configuration keys, and for those that Flask reads."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import functools
import re
import typing as t
import warnings

from flask import Flask

from .config import KEYS
from .config import ConfigurationWarning
from .config import InvalidValueError
from .config import Problems
from .config import correction
from .config import parse_duration
from .config import parse_sources
from .config import shown
from .suggestions import suggest_keys

#: Flask's own keys about sessions.
FLASK_KEYS = (
    "SESSION_REFRESH_EACH_REQUEST",
    "SESSION_COOKIE_NAME",
    "SESSION_COOKIE_DOMAIN",
    "SESSION_COOKIE_PATH",
    "SESSION_COOKIE_HTTPONLY",
    "SESSION_COOKIE_SECURE",
    "SESSION_COOKIE_SAMESITE",
    "SESSION_COOKIE_PARTITIONED",
)
#: Keys of other extensions, which are not spelling mistakes.
FOREIGN_KEYS = frozenset({"SESSION_PROTECTION"})  # of Flask-Login
#: Keys of Flask-Session, and those that stand in their place.
REPLACED_KEYS = {
    "SESSION_TYPE": "SESSION_BACKEND",
    "SESSION_ID_LENGTH": "SESSION_ID_GENERATOR",
    "SESSION_SID_LENGTH": "SESSION_ID_GENERATOR",
    "SESSION_SERIALIZATION_FORMAT": "SESSION_SERIALIZER",
    "SESSION_CLEANUP_N_REQUESTS": "SESSION_CLEANUP_INTERVAL",
    "SESSION_FILE_DIR": "SESSION_FILESYSTEM_PATH",
    "SESSION_FILE_MODE": "SESSION_FILESYSTEM_GROUP_ACCESS",
    "SESSION_PEEWEE_TABLE": "SESSION_SQLALCHEMY_TABLE",
    "SESSION_MEMCACHED": "SESSION_CACHELIB",
    **dict.fromkeys(
        (
            *("SESSION_MONGODB", "SESSION_MONGODB_DB", "SESSION_MONGODB_COLLECT"),
            *("SESSION_DYNAMODB", "SESSION_DYNAMODB_TABLE"),
            *("SESSION_DYNAMODB_TABLE_NAME", "SESSION_DYNAMODB_TABLE_EXISTS"),
            *("SESSION_DYNAMODB_KEY_ID", "SESSION_DYNAMODB_SECRET"),
            *("SESSION_DYNAMODB_REGION", "SESSION_DYNAMODB_ENDPOINT_URL"),
        ),
        "SESSION_CACHELIB",
    ),
}
#: Keys of Flask-Session that nothing stands in place of, and why.
REMOVED_KEYS = {
    "SESSION_USE_SIGNER": "cookies are always signed",
    "SESSION_FILE_THRESHOLD": "no session is ever evicted",
    "SESSION_SQLALCHEMY_SEQUENCE": "the table has no sequence",
}
# Setting one of these without SESSION_BACKEND has no effect.
_BACKEND_OF_KEY = {
    "SESSION_REDIS": "redis",
    "SESSION_REDIS_URL": "redis",
    "SESSION_SQLALCHEMY": "sqlalchemy",
    "SESSION_SQLALCHEMY_URL": "sqlalchemy",
    "SESSION_CACHELIB": "cachelib",
}

# The defaults of keys in the rules that Flask has no default for.
_DEFAULTS = {
    "SESSION_MIGRATE_FROM": None,
    "SESSION_MIGRATE_UNTIL": None,
    "SESSION_USE_SIGNER": False,
}

# Browsers sign six times in nine minutes, and the log-in takes two of them.
_LEAST_DEVICE_BOUND = dt.timedelta(minutes=5)
# RFC 6265bis, section 5.5: the most that browsers make of Expires and Max-Age.
_MAX_COOKIE_AGE = dt.timedelta(days=400)
# Flask's default.
_FLASKS_LIFETIME = dt.timedelta(days=31)

_TOKEN = re.compile(r"[\w!#$%&'*+\-.^`|~]+", re.ASCII)
_NO_ATTRIBUTE = re.compile(r"[;\x00-\x1f\x7f]")


def check_config(given: cabc.Mapping[str, t.Any], problems: Problems) -> None:
    """Check ``app.config`` against the rules, and warn of what is probably not meant.

    :param problems: Collects the mistakes.
    """
    for key, message in find_broken_rules(given):
        problems.add(key, message)
    for text in (*_misspellings(given), *_unlikely_durations(given)):
        warnings.warn(text, ConfigurationWarning, stacklevel=4)


def find_broken_rules(
    given: cabc.Mapping[str, t.Any],
) -> cabc.Iterator[tuple[str, str]]:
    """Give the keys to blame, and full sentences."""
    for keys, is_broken, sentence in _RULES:
        values = [given.get(key, _DEFAULTS.get(key)) for key in keys]
        if is_broken(*values):
            texts = map(shown, keys, values)
            text = sentence.format(*texts, key=repr(keys[0]))
            if len(keys) == 1:
                is_kept = functools.partial(_keeps, is_broken)
                text += correction(keys[0], values[0], is_kept)
            yield keys[0], text
    if needs := _needs_of_cookie_prefix(given):
        name = given["SESSION_COOKIE_NAME"]
        yield (
            "SESSION_COOKIE_NAME",
            f"'SESSION_COOKIE_NAME' is {name!r}, which needs {' and '.join(needs)}:"
            " browsers ignore the cookie otherwise.",
        )
    if given.get("SESSION_DEVICE_BOUND") is True:
        yield from _needs_of_device_bound(given)


def find_late_mistakes(given: cabc.Mapping[str, t.Any]) -> cabc.Iterator[str]:
    """Return what is wrong with settings that Flask reads at each response.

    An unknown SameSite is left to Flask, which raises an error of its own.
    """
    for key, message in find_broken_rules(given):
        if key != "SESSION_COOKIE_SAMESITE" or not _is_no_samesite(given[key]):
            yield message


def _keeps(is_broken: cabc.Callable[..., bool], value: t.Any) -> bool:
    return not is_broken(value)


def _takes_over(sources: t.Any) -> cabc.Collection[str]:
    try:
        return parse_sources(sources)
    except InvalidValueError:
        return ()  # reported for the key itself


def _lacks_end(until: t.Any, sources: t.Any) -> bool:
    return until is None and bool(_takes_over(sources))


def _lacks_signer(signs: t.Any, sources: t.Any) -> bool:
    return not isinstance(signs, bool) and "flask-session" in _takes_over(sources)


def _is_no_secret(value: t.Any) -> bool:
    return value is not None and not isinstance(value, (str, bytes))


def _are_no_fallbacks(values: t.Any) -> bool:
    # Each letter of a str would be a secret.
    return values is not None and not (
        isinstance(values, (list, tuple))
        and all(
            isinstance(item, (str, bytes)) and item
            for item in t.cast("cabc.Iterable[object]", values)
        )
    )


def _is_no_duration(value: t.Any) -> bool:
    try:
        parse_duration(value)
    except InvalidValueError:
        return True
    return False


def _is_no_secure(value: t.Any) -> bool:
    return value != "auto" and _is_no_boolean(value)


def _is_no_boolean(value: t.Any) -> bool:
    # Not 0 or 1: werkzeug would send "Secure=0", which browsers take for Secure.
    return not isinstance(value, bool)


def _is_no_samesite(value: t.Any) -> bool:
    return value is not None and (
        not isinstance(value, str)
        or value.title() not in ("Strict", "Lax", "None", "Auto")
    )


def _needs_secure(samesite: t.Any, secure: t.Any, partitioned: t.Any) -> bool:
    is_none = isinstance(samesite, str) and samesite.title() == "None"
    return is_none and not (secure is True or partitioned)


def _is_no_attribute(value: t.Any) -> bool:
    # Flask treats any false value as None.
    return bool(value) and (
        not isinstance(value, str) or _NO_ATTRIBUTE.search(value) is not None
    )


def _is_no_token(name: t.Any) -> bool:
    # RFC 6265, section 4.1.1: the name is a token.
    return not isinstance(name, str) or _TOKEN.fullmatch(name) is None


# The keys, of which the first one is reported; a function that takes their values and
# returns whether the rule is broken; and a sentence: {0} is the first key's value.
_RULES: tuple[tuple[tuple[str, ...], cabc.Callable[..., bool], str], ...] = (
    (
        ("SESSION_MIGRATE_UNTIL", "SESSION_MIGRATE_FROM"),
        _lacks_end,
        "'SESSION_MIGRATE_FROM' is {1}, which needs 'SESSION_MIGRATE_UNTIL': the day"
        " after which nobody needs the old sessions any more, such as '2030-01-31'.",
    ),
    (
        ("SESSION_USE_SIGNER", "SESSION_MIGRATE_FROM"),
        _lacks_signer,
        "'SESSION_USE_SIGNER' is {0}; expected what Flask-Session had: True or False.",
    ),
    (
        ("SECRET_KEY",),
        _is_no_secret,
        "'SECRET_KEY' is {0}; expected a str or bytes.",
    ),
    (
        ("SECRET_KEY_FALLBACKS",),
        _are_no_fallbacks,
        "'SECRET_KEY_FALLBACKS' is {0}; expected a list of str or bytes, or None.",
    ),
    (
        ("PERMANENT_SESSION_LIFETIME",),
        _is_no_duration,
        "'PERMANENT_SESSION_LIFETIME' is {0}; expected a positive timedelta or number"
        " of seconds.",
    ),
    (
        ("SESSION_COOKIE_SECURE",),
        _is_no_secure,
        "'SESSION_COOKIE_SECURE' is {0}; expected True, False or 'auto'.",
    ),
    (
        ("SESSION_COOKIE_SAMESITE",),
        _is_no_samesite,
        "'SESSION_COOKIE_SAMESITE' is {0}; expected 'Strict', 'Lax', 'None', 'auto' or"
        " None.",
    ),
    (
        (
            "SESSION_COOKIE_SAMESITE",
            "SESSION_COOKIE_SECURE",
            "SESSION_COOKIE_PARTITIONED",
        ),
        _needs_secure,
        "'SESSION_COOKIE_SAMESITE' is 'None', which browsers accept only from a Secure"
        " cookie: set 'SESSION_COOKIE_SECURE' to True.",
    ),
    *(
        ((key,), _is_no_boolean, "{key} is {0}; expected True or False.")
        for key in (
            "SESSION_COOKIE_HTTPONLY",
            "SESSION_COOKIE_PARTITIONED",
            "SESSION_REFRESH_EACH_REQUEST",
        )
    ),
    *(
        (
            (key,),
            _is_no_attribute,
            "{key} is {0}; expected a str without semicolons and control characters,"
            " or None.",
        )
        for key in ("SESSION_COOKIE_DOMAIN", "SESSION_COOKIE_PATH")
    ),
    (
        ("SESSION_COOKIE_NAME",),
        _is_no_token,
        "'SESSION_COOKIE_NAME' is {0}; expected a str of letters, digits and any of"
        " !#$%&'*+-.^_`|~.",
    ),
)


def _needs_of_cookie_prefix(given: cabc.Mapping[str, t.Any]) -> list[str]:
    name = given["SESSION_COOKIE_NAME"]
    needs: list[str] = []
    if _is_no_token(name):
        return needs
    # RFC 6265bis, section 4.1.3: browsers ignore such a cookie otherwise.
    prefix = name.lower()
    is_host = prefix.startswith("__host-")
    is_http = prefix.startswith(("__http-", "__host-http-"))
    if not (is_host or is_http or prefix.startswith("__secure-")):
        return needs
    if given["SESSION_COOKIE_SECURE"] is not True:
        needs.append("'SESSION_COOKIE_SECURE' to be True")
    if is_http and not given["SESSION_COOKIE_HTTPONLY"]:
        needs.append("'SESSION_COOKIE_HTTPONLY' to be True")
    if is_host and given["SESSION_COOKIE_DOMAIN"]:
        needs.append("'SESSION_COOKIE_DOMAIN' to be None")
    if is_host and (given["SESSION_COOKIE_PATH"] or given["APPLICATION_ROOT"]) != "/":
        needs.append("'SESSION_COOKIE_PATH' to be '/'")
    return needs


def _needs_of_device_bound(
    given: cabc.Mapping[str, t.Any],
) -> cabc.Iterator[tuple[str, str]]:
    needs: list[str] = []
    if given["SESSION_COOKIE_SECURE"] not in (True, "auto"):
        needs.append("'SESSION_COOKIE_SECURE' to be True")
    # The other cookie has the same attributes, and one host's browser has the key.
    if given["SESSION_COOKIE_DOMAIN"]:
        needs.append("'SESSION_COOKIE_DOMAIN' to be None")
    if given["SESSION_COOKIE_PARTITIONED"]:
        needs.append("'SESSION_COOKIE_PARTITIONED' to be False")
    root = given["APPLICATION_ROOT"]
    if (given["SESSION_COOKIE_PATH"] or root) not in ("/", root):
        needs.append("'SESSION_COOKIE_PATH' to be '/'")
    # What is offered at the log-in is for the id that the session has from then on.
    if not given.get("SESSION_REGENERATE_ON_LOGIN", True):
        needs.append("'SESSION_REGENERATE_ON_LOGIN' to be True")
    if needs:
        yield (
            "SESSION_DEVICE_BOUND",
            f"'SESSION_DEVICE_BOUND' is True, which needs {' and '.join(needs)}.",
        )
    samesite = given["SESSION_COOKIE_SAMESITE"]
    is_sent_anywhere = str(samesite).title() in ("None", "Auto") and samesite
    if given.get("SESSION_DEVICE_BOUND_INITIATORS") and not is_sent_anywhere:
        yield (
            "SESSION_DEVICE_BOUND_INITIATORS",
            "'SESSION_DEVICE_BOUND_INITIATORS' names sites whose pages cause requests"
            f" here, and 'SESSION_COOKIE_SAMESITE' is {samesite!r}, which keeps the"
            " cookie from them. Set it to 'None', or leave the initiators out.",
        )


def _misspellings(given: cabc.Mapping[str, t.Any]) -> cabc.Iterator[str]:
    has_backend = "SESSION_BACKEND" in given
    for key, backend in _BACKEND_OF_KEY.items():
        if given.get(key) is not None and not has_backend:
            yield (
                f"{key!r} has no effect, because 'SESSION_BACKEND' is not set and"
                f" therefore 'filesystem'. Set it to {backend!r}."
            )
    known = [*KEYS, *FLASK_KEYS]
    flasks = {*Flask.default_config, *FLASK_KEYS}
    for key in given:
        if key in KEYS or key in flasks or key in FOREIGN_KEYS:
            continue
        if key in REPLACED_KEYS or key in REMOVED_KEYS:
            yield from _advice_on_former(key, given)
        elif (meant := suggest_keys(key, known)) is not None:
            yield (
                f"{key!r} is not a configuration key of Flask or flask_serversession."
                f" Did you mean {meant}?"
            )


def _advice_on_former(key: str, given: cabc.Mapping[str, t.Any]) -> cabc.Iterator[str]:
    """Give what to do about a key of Flask-Session, if that is not done yet."""
    text = f"{key!r} is a key of Flask-Session and has no effect here."
    if (reason := REMOVED_KEYS.get(key)) is not None:
        # The ids that are taken over may be signed.
        if "flask-session" not in _takes_over(given.get("SESSION_MIGRATE_FROM")):
            yield f"{text} Remove it: {reason}."
    elif (new := REPLACED_KEYS[key]) not in given:
        yield f"{text} Use {new!r} instead."


def _unlikely_durations(given: cabc.Mapping[str, t.Any]) -> cabc.Iterator[str]:
    lifetime = _duration(given, "PERMANENT_SESSION_LIFETIME")
    if lifetime is not None and lifetime > _MAX_COOKIE_AGE:
        yield (
            f"'PERMANENT_SESSION_LIFETIME' is {lifetime}, but browsers keep no cookie"
            " for more than 400 days. Set it to 400 days at most."
        )
    bound = _duration(given, "SESSION_DEVICE_BOUND_LIFETIME")
    is_bound = given.get("SESSION_DEVICE_BOUND") is True
    if is_bound and bound is not None and bound < _LEAST_DEVICE_BOUND:
        yield (
            f"'SESSION_DEVICE_BOUND_LIFETIME' is {bound}, but browsers sign no more"
            " than 6 times in 9 minutes, and a session whose proof has expired is not"
            " accepted. Set it to 300 seconds at least."
        )
    absolute = _duration(given, "SESSION_ABSOLUTE_TIMEOUT")
    if absolute is None:
        return
    for key in ("SESSION_IDLE_TIMEOUT", "PERMANENT_SESSION_LIFETIME"):
        idle = _duration(given, key)
        if key == "PERMANENT_SESSION_LIFETIME" and idle == _FLASKS_LIFETIME:
            continue  # nobody asked for it
        if idle is not None and idle > absolute:
            yield (
                f"'SESSION_ABSOLUTE_TIMEOUT' is {absolute}, which is shorter than"
                f" {key!r} with {idle}: no session lives long enough to be unused for"
                " that long. Make the first one longer, or the second one shorter."
            )
            break
    renewal = _duration(given, "SESSION_RENEWAL_INTERVAL")
    if renewal is not None and renewal > absolute:
        yield (
            f"'SESSION_RENEWAL_INTERVAL' is {renewal}, which is longer than"
            f" 'SESSION_ABSOLUTE_TIMEOUT' with {absolute}: no id gets that old, so none"
            " is renewed. Make the first one shorter."
        )


def _duration(given: cabc.Mapping[str, t.Any], key: str) -> dt.timedelta | None:
    """Return a duration; ``None`` also for one that is refused, or for never."""
    try:
        return dt.timedelta(seconds=parse_duration(given.get(key)))
    except InvalidValueError:
        return None
