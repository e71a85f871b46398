"""What was probably meant: settings by the names that they have elsewhere.

Misspelt names are found by their letters. Names that other libraries, or common sense,
give to the same thing are found by tables.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import difflib
import re
import typing as t

T = t.TypeVar("T")

_PREFIX = "SESSION_"
_LIFETIME = "PERMANENT_SESSION_LIFETIME"
# What a key begins with: perhaps a misspelt "SESSION", perhaps with more before it.
_HEAD = re.compile("(?:FLASK_|SERVER_?)?(?P<head>S[A-Z]+?)_(?P<rest>.+)")
# Whether what was written is so near that no other word can be meant.
_NEAR = 0.8
# More keys than that are no suggestion.
_MOST = 3

#: What follows "SESSION_" in keys that there are not, and the keys that are meant.
_MEANT: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("STORE|STORAGE|ENGINE|KIND|DRIVER|INTERFACE|PROVIDER", ("SESSION_BACKEND",)),
    (
        "(COOKIE_|PERMANENT_)?(MAX_?)?(AGE|LIFE_?TIME|TTL|EXPIRE[SD]?|EXPIRY|EXPIRATION"
        "|DURATION)(_(SECONDS|MINUTES|TIME))?",
        (_LIFETIME,),
    ),
    (
        "TIMEOUT|(SESSION_)?TIMEOUT_(SECONDS|MINUTES)",
        ("SESSION_IDLE_TIMEOUT", "SESSION_ABSOLUTE_TIMEOUT"),
    ),
    ("COOKIE", ("SESSION_COOKIE_NAME",)),
    ("(REDIS_|VALKEY_)?(KEY_)?(PREFIX|NAMESPACE)", ("SESSION_KEY_PREFIX",)),
    ("REDIS_(CLIENT|CONNECTION|INSTANCE)", ("SESSION_REDIS",)),
    (r"REDIS_[A-Z]\w*|VALKEY(_\w+)?|SENTINELS?(_\w+)?", ("SESSION_REDIS_URL",)),
    ("(DATABASE_|DB_|SQL_)?TABLE(_?NAME)?", ("SESSION_SQLALCHEMY_TABLE",)),
    ("SQLALCHEMY_(DB|ENGINE|INSTANCE)", ("SESSION_SQLALCHEMY",)),
    (
        r"(SQLALCHEMY_|SQL_)?(DATABASE|DB|DSN|URI|POSTGRES|POSTGRESQL|MYSQL|SQLITE)"
        r"(_\w+)?",
        ("SESSION_SQLALCHEMY_URL",),
    ),
    (r"(MEM)?CACHED?(_\w+)?", ("SESSION_CACHELIB",)),
    (
        "(FILE|FILES|FILESYSTEM|SAVE)?_?(DIR|DIRECTORY|FOLDER)|FILES?_PATH",
        ("SESSION_FILESYSTEM_PATH",),
    ),
    ("((SECRET|SIGNING|COOKIE)_)?KEY|COOKIE_SECRET", ("SECRET_KEY", "SESSION_SECRET")),
    (
        r"ENCRYPT(ED|ION)?(_\w+)?|FERNET(_KEY)?|CIPHER(_KEY)?",
        ("SESSION_ENCRYPTION_KEY",),
    ),
    ("ROLLING|SLIDING|REFRESH", ("SESSION_REFRESH_EACH_REQUEST",)),
    ("SAVE_(EVERY|EACH)_REQUEST|ALWAYS_SAVE", ("SESSION_RESAVE",)),
    ("EXPIRE_AT_BROWSER_CLOSE", ("SESSION_PERMANENT",)),
    (
        r"MAX_(SESSIONS|DEVICES|CONCURRENT)(_\w+)?|(CONCURRENT|USER)_LIMIT",
        ("SESSION_MAX_PER_USER",),
    ),
    ("USER(_?ID)?(_KEY)?|USER_FIELD", ("SESSION_USER_KEY",)),
    ("MAX_(BYTES|LENGTH)|SIZE(_LIMIT)?", ("SESSION_MAX_SIZE",)),
    (r"(ID|SID|KEY)_(BITS|BYTES|LENGTH|FACTORY)|GENID", ("SESSION_ID_GENERATOR",)),
    (r"(ROTAT|REGENERAT)(E|ION)_(EVERY|INTERVAL)", ("SESSION_RENEWAL_INTERVAL",)),
    ("ON_ERROR|FAIL_OPEN|IGNORE_ERRORS", ("SESSION_ON_BACKEND_ERROR",)),
    ("TRACK_(IP|ADDRESS|DEVICES?)|LOG_IP", ("SESSION_TRACK",)),
)
_EXAMPLES = {
    "SESSION_REDIS_URL": "redis://user:password@localhost:6379/0",
    "SESSION_SQLALCHEMY_URL": "postgresql+psycopg://user:password@localhost/database",
}

_WORDS = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
}
_NUMBERS = {"1": True, "0": False}
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

_REDIS = ("redis", "SESSION_REDIS_URL")
_SQL = ("sqlalchemy", "SESSION_SQLALCHEMY_URL")
_CACHELIB = ("cachelib", "SESSION_CACHELIB")
#: What a kind of backend is called elsewhere; the kind, the key that it needs, and an
#: example of a value for it.
_KINDS_MEANT: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (".*valkey.*", _REDIS, "'valkey://localhost:6379/0'"),
    (".*redis.*|keydb|dragonfly(db)?", _REDIS, "'redis://localhost:6379/0'"),
    (
        "postgres.*|psql|psycopg2?|pg|sql|db|database|orm|flask.sqlalchemy",
        _SQL,
        "'postgresql+psycopg://user@host/database'",
    ),
    (".*(mysql|mariadb).*", _SQL, "'mysql+pymysql://user@host/database'"),
    (".*sqlite.*", _SQL, "'sqlite:///sessions.db'"),
    (".*memcache.*", _CACHELIB, "cachelib.MemcachedCache(['localhost'])"),
    (".*mongo.*", _CACHELIB, "cachelib.MongoDbCache(...)"),
    (".*dynamo.*", _CACHELIB, "cachelib.DynamoDbCache(...)"),
    ("uwsgi", _CACHELIB, "cachelib.UWSGICache()"),
    ("simple.*|.*caching", _CACHELIB, "cachelib.FileSystemCache(path, threshold=0)"),
    ("files?|fs|disk|folder|dir(ectory)?|local|default", ("filesystem",), ""),
    ("dict|ram|in.memory|mem|process", ("memory",), ""),
)
_OWNERS = {
    **dict.fromkeys(("redis", "valkey", "fakeredis"), ("redis", "SESSION_REDIS")),
    **dict.fromkeys(
        ("sqlalchemy", "flask_sqlalchemy", "flask_sqlalchemy_lite"),
        ("sqlalchemy", "SESSION_SQLALCHEMY"),
    ),
    "cachelib": ("cachelib", "SESSION_CACHELIB"),
}
#: The packages of database drivers whose modules are called otherwise.
_PACKAGES = {
    "MySQLdb": "mysqlclient",
    "mysql": "mysql-connector-python",
    "psycopg": '"psycopg[binary]"',
    "psycopg2": "psycopg2-binary",
}
#: Drivers that need nothing but Python or come as wheels, to name in a URL instead.
_EASIER = {"MySQLdb": "pymysql", "psycopg2": "psycopg"}

#: What members of a session are called elsewhere.
_MEMBERS: dict[str, str] = {
    **dict.fromkeys(
        ("invalidate", "delete", "logout", "log_out", "flush", "abandon", "end"),
        "destroy()",
    ),
    **dict.fromkeys(
        ("cycle_key", "rotate", "regenerate_id", "renew", "migrate"), "regenerate()"
    ),
    **dict.fromkeys(("session_id", "session_key"), "handle"),
    **dict.fromkeys(("max_age", "timeout", "set_expiry"), "lifetime"),
    **dict.fromkeys(("expires", "expiry", "expiration"), "expires_at"),
    **dict.fromkeys(("commit", "persist"), "save()"),
    **dict.fromkeys(("user_id", "username"), "user"),
    "created": "created_at",
    "metadata": "meta",
    "refresh": "reload()",
}
_NEW_ID = "Call session.regenerate() for a new one."
#: Members of a session that cannot be set, and what to do instead.
_READ_ONLY: dict[str, str] = {
    "user": (
        "It is what 'SESSION_USER_KEY' finds in the session. To log somebody in, set"
        " that key: session['_user_id'] = …."
    ),
    "id": _NEW_ID,
    "handle": _NEW_ID,
    "sid": _NEW_ID,
    "meta": "Set names in it: session.meta['device'] = '…'.",
    "expires_at": "Set session.lifetime.",
    "time_left": "Set session.lifetime.",
    "created_at": "Call session.regenerate(keep_data=False) to start over.",
    "authenticated_at": "Call session.mark_authenticated().",
}


def explain_members(cls: type[T]) -> type[T]:
    """Decorate a class of sessions: what is missing or cannot be set says what to do.

    With properties, because ``__getattr__`` would make each access slower by a fifth.
    Type checkers do not see them, and go on to report both.
    """
    for name, remedy in _READ_ONLY.items():
        setattr(cls, name, _with_setter(getattr(cls, name), name, remedy))
    for name, meant in _MEMBERS.items():
        setattr(cls, name, _missing(name, meant))
    return cls


def _with_setter(member: property, name: str, remedy: str) -> property:
    def refuse(session: object, value: object) -> t.NoReturn:
        raise AttributeError(f"session.{name} cannot be set. {remedy}")

    return member.setter(refuse)


def _missing(name: str, meant: str) -> property:
    def refuse(session: object, *value: object) -> t.NoReturn:
        raise AttributeError(
            f"session has no attribute {name!r}. Did you mean session.{meant}?"
        )

    return property(refuse, refuse)


def suggest(value: object, allowed: cabc.Iterable[str], end: str = ".") -> str:
    """Return the end of a sentence about a wrong value, with a suggestion if any."""
    names = {name.casefold(): name for name in allowed}
    given = str(value).strip().casefold()
    matches = difflib.get_close_matches(given, names, n=1, cutoff=0.75)
    return f". Did you mean {names[matches[0]]!r}?" if matches else end


def suggest_value(value: object, is_accepted: cabc.Callable[[t.Any], bool]) -> str:
    """Return what a value stands for that came from the environment, as a sentence.

    :return: It begins with a space; empty if nothing of it would be accepted.
    """
    if type(value) is not int and not isinstance(value, str):
        return ""
    meant: list[tuple[object, str]] = []
    word = str(value).strip().casefold()
    if word in _WORDS:
        meant.append((_WORDS[word], repr(_WORDS[word])))
    elif re.fullmatch(r"\d{1,18}(\.\d{1,9})?", word):
        meant.append((float(word) if "." in word else int(word), word))
    elif match := re.fullmatch(r"(\d{1,9}) ?([smhdw])[a-z]*", word):
        number, unit = int(match[1]), _UNITS[match[2]]
        with contextlib.suppress(OverflowError):
            span = dt.timedelta(**{unit: number})
            meant.append((span, f"timedelta({unit}={number})"))
    if word in _NUMBERS:
        meant.append((_NUMBERS[word], repr(_NUMBERS[word])))
    meant.append(((value,), repr((value,))))
    found = next((text for thing, text in meant if is_accepted(thing)), None)
    return f" Did you mean {found}?" if found else ""


def suggest_kind(value: object, kinds: cabc.Iterable[str]) -> str:
    """Return the end of a sentence about a wrong kind of backend."""
    if not value:
        return ". Leave the key out for 'filesystem'."
    if (found := suggest(value, kinds, end="")) or not isinstance(value, str):
        return found or "."
    for pattern, (kind, *key), example in _KINDS_MEANT:
        if re.fullmatch(pattern, value.strip(), re.IGNORECASE):
            end = f" with {key[0]!r}, such as {example}" if key else ""
            return f". Use {kind!r}{end}."
    if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", value):
        return f". Did you mean {':'.join(value.rsplit('.', 1))!r}?"
    return "."


def suggest_place(value: object) -> tuple[str, str] | None:
    """Return the kind of backend that an object is for, and the key it belongs into."""
    if isinstance(value, str):
        is_redis = re.match("redis|valkey|unix", value) is not None
        return _REDIS if is_redis else _SQL
    kind = value if isinstance(value, type) else type(value)
    tops = (base.__module__.partition(".")[0] for base in kind.__mro__)
    return next((_OWNERS[top] for top in tops if top in _OWNERS), None)


def suggest_driver(module: str, scheme: str) -> str:
    """Return how to get a database driver that is not installed.

    :param module: The module that could not be imported.
    :param scheme: What the URL begins with.
    """
    top = module.partition(".")[0]
    text = f"Install it with 'pip install {_PACKAGES.get(top, top)}'"
    if (easier := _EASIER.get(top)) is not None:
        dialect = scheme.partition("+")[0]
        text += f", or name another one in the URL, such as '{dialect}+{easier}://…'"
    return f"{text}."


def suggest_keys(key: str, known: cabc.Collection[str]) -> str | None:
    """Return the keys that an unknown key was probably meant to be, in words.

    :param known: The keys that begin with "SESSION_".
    :return: ``None`` if it looks like a key of something else.
    """
    name = key.upper().replace("-", "_")
    if _is_near(name, _LIFETIME) or name.startswith("PERMANENT_SESSION_"):
        found: cabc.Sequence[str] = (_LIFETIME,)
    elif name.startswith(_PREFIX):
        found = _meant_by(name, known)
    else:
        found = _with_another_beginning(name, known)
    if not found or len(found) > _MOST:
        return None
    text = " or ".join(map(repr, found))
    example = _EXAMPLES.get(found[0])
    return text if example is None else f"{text}, such as {example!r}"


def _meant_by(name: str, known: cabc.Collection[str]) -> cabc.Sequence[str]:
    if name in known:
        return (name,)
    rest = name.removeprefix(_PREFIX)
    for pattern, keys in _MEANT:
        if re.fullmatch(pattern, rest):
            return keys
    parts = [
        key
        for key in known
        if key.endswith(f"_{rest}") or key.startswith(f"{_PREFIX}{rest}_")
    ]
    # What is taken over is nobody's first thought.
    parts = [key for key in parts if "_MIGRATE_" not in key]
    if rest and parts:
        return parts
    rests = [key.removeprefix(_PREFIX) for key in known]
    near = difflib.get_close_matches(rest, rests, n=1, cutoff=0.75)
    return [f"{_PREFIX}{found}" for found in near]


def _with_another_beginning(
    name: str, known: cabc.Collection[str]
) -> cabc.Sequence[str]:
    match = _HEAD.fullmatch(name)
    if match is None or not _is_near(match["head"], "SESSION"):
        return ()
    # Only what is ours without a doubt: an application may have "SESSIONS_PER_PAGE".
    name = f"{_PREFIX}{match['rest']}"
    return difflib.get_close_matches(name, known, n=1, cutoff=0.9)


def _is_near(word: str, other: str) -> bool:
    return difflib.SequenceMatcher(None, word, other).ratio() >= _NEAR
