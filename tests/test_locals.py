"""No local variable of the library shows a secret, in any call that fails.

Error trackers record the ``repr`` of the local variables of every frame of a traceback,
Sentry by default. What is looked for: ids, cookies, keys, passwords and the content of
sessions, in the frames of the library and in those below.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import logging
import os
import pickle
import sys
import traceback
import types
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import flask
import pytest
from flask import session

import flask_serversession
from flask_serversession import BackendUnavailableError
from flask_serversession import NotSupportedError
from flask_serversession import RecordError
from flask_serversession import ServerSession
from flask_serversession import ServerSessionError
from flask_serversession import session as typed_session
from flask_serversession.ids import key_of
from flask_serversession.record import Record
from flask_serversession.testing import CountingBackend

from .site import Action
from .site import Site
from .test_faults import ACTIONS
from .test_faults import Store
from .test_faults import start
from .test_faults import store as store

HERE = os.path.dirname(t.cast(str, flask_serversession.__file__))
ENCRYPTION_KEY = bytes(range(100, 132))
SETTINGS: dict[str, t.Any] = {
    "SECRET_KEY": "key-of-the-app-8fd1",
    "SECRET_KEY_FALLBACKS": ["key-of-last-year-2a7e"],
    "SESSION_SECRET": "key-of-the-sessions-55c0",
    "SESSION_ENCRYPTION_KEY": base64.urlsafe_b64encode(ENCRYPTION_KEY).decode(),
}
PASSWORD = "password-of-the-url-71b3"
CONTENT = "content-of-the-session-c3d9"


class Secrets:
    """What nobody may see, in the forms that it can have."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {"password": PASSWORD, "content": CONTENT}
        for name, value in SETTINGS.items():
            self.texts[name] = value if isinstance(value, str) else value[0]
        self.texts["encryption key"] = repr(ENCRYPTION_KEY)[2:-1]

    def add_cookie(self, value: str | None) -> None:
        if value:
            number = len(self.texts)
            self.texts[f"cookie {number}"] = value
            self.texts[f"id {number}"] = value.rsplit(".", 2)[0]

    def found_in(self, text: str) -> list[str]:
        return [name for name, secret in self.texts.items() if secret in text]


def show(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - as trackers do
        return f"<{type(error).__name__}>"


def is_ours(frame: types.FrameType) -> bool:
    return frame.f_code.co_filename.startswith(HERE + os.sep)


def leaks_of_frames(frames: list[types.FrameType], secrets: Secrets) -> Iterator[str]:
    """Give the variables that show a secret, from our first frame on."""
    is_below = False
    for frame in frames:
        is_below = is_below or is_ours(frame)
        name = frame.f_code.co_filename
        if not is_below or name.startswith(os.path.dirname(__file__)):
            continue
        for variable, value in list(frame.f_locals.items()):
            if found := secrets.found_in(show(value)):
                place = "/".join(Path(name).parts[-2:])
                yield f"{place}: {frame.f_code.co_name}: {variable} shows {found}"


def chain_of(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is not None and current not in found:
            found.append(current)
            # What is suppressed is neither printed nor sent.
            is_suppressed = current.__suppress_context__
            waiting.append(current.__cause__ if is_suppressed else current.__context__)
    return found


def leaks_of(error: BaseException, secrets: Secrets) -> set[str]:
    """Give everything that an error tracker would learn from an exception."""
    leaks: set[str] = set()
    for link in chain_of(error):
        texts = [str(link), repr(link), repr(link.args)]
        if isinstance(link, ServerSessionError):
            texts.append(show(vars(link)))
        for name in secrets.found_in("\n".join(texts)):
            leaks.add(f"{type(link).__name__} says {name}")
        frames = [frame for frame, _ in traceback.walk_tb(link.__traceback__)]
        leaks.update(leaks_of_frames(frames, secrets))
    if isinstance(error, ServerSessionError):
        for name in secrets.found_in(repr(pickle.dumps(error))):
            leaks.add(f"the pickle of {type(error).__name__} holds {name}")
    return leaks


class Watch(logging.Handler):
    """Looks at the stack wherever something is logged, as Sentry can."""

    def __init__(self, secrets: Secrets) -> None:
        super().__init__(logging.WARNING)
        self._secrets = secrets
        self.leaks: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        for name in self._secrets.found_in(record.getMessage() + repr(record.args)):
            self.leaks.add(f"the log says {name}: {record.msg}")
        frames: list[types.FrameType] = []
        frame: types.FrameType | None = sys._getframe()
        while frame is not None:
            frames.insert(0, frame)
            frame = frame.f_back
        self.leaks.update(leaks_of_frames([*filter(is_ours, frames)], self._secrets))


@pytest.fixture
def secrets() -> Secrets:
    return Secrets()


@pytest.fixture
def watch(secrets: Secrets) -> Iterator[Watch]:
    handler = Watch(secrets)
    logger = logging.getLogger("flask_serversession")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


class Dies:
    """Lets the n-th operation of a backend fail, and all that follow."""

    def __init__(self, backend: CountingBackend, number: int, when: str) -> None:
        self._count = 0
        self._number = number
        hooks = getattr(backend, when)
        for operation in ("load", "create", "replace", "delete", "touch"):
            hooks[operation] = self._fail
        self.has_failed = False

    def _fail(self) -> None:
        self._count += 1
        if self._count >= self._number:
            self.has_failed = True
            raise BackendUnavailableError("It is down.")


def watched_site(secrets: Secrets, leaks: set[str], **more: t.Any) -> Site:
    site = Site({"SESSION_BACKEND": "memory"}, **SETTINGS, **more)

    def note(error: Exception) -> t.Any:
        leaks.update(leaks_of(error, secrets))
        return "", 503

    site.app.register_error_handler(Exception, note)
    return site


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ACTIONS)
def test_no_local_shows_a_secret_wherever_a_request_fails(
    name: str, when: str, secrets: Secrets, watch: Watch
) -> None:
    leaks: set[str] = set()
    for number in range(1, 9):
        site = watched_site(secrets, leaks, SESSION_TOUCH_INTERVAL=0)
        browser = start(site)
        browser.set(content=CONTENT)
        secrets.add_cookie(browser.cookie)
        dies = Dies(site.backend, number, when)

        browser.visit(ACTIONS[name])
        if not dies.has_failed:
            break
    assert leaks | watch.leaks == set()


def engines(folder: Path) -> dict[str, dict[str, t.Any]]:
    """Give backends none of which can be reached, most of them with a password."""
    import sqlalchemy as sa
    from cachelib import RedisCache
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    blocked = folder / "file"
    blocked.write_text("no folder")
    user = f"me:{PASSWORD}"

    def sql(url: str) -> dict[str, t.Any]:
        return {"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY_URL": url}

    def redis(url: str) -> dict[str, t.Any]:
        return {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": url}

    return {
        "redis": redis(f"redis://{user}@127.0.0.1:1/0"),
        "rediss": redis(f"rediss://{user}@127.0.0.1:1/0"),
        "sentinel": redis(f"redis+sentinel://{user}@127.0.0.1:1/mymaster/0"),
        "cluster": redis(f"redis+cluster://{user}@127.0.0.1:1"),
        "redis client": {
            "SESSION_BACKEND": "redis",
            "SESSION_REDIS": Redis.from_url(f"redis://{user}@127.0.0.1:1/0"),
        },
        "postgresql": sql(f"postgresql+psycopg://{user}@127.0.0.1:1/d"),
        "mysql": sql(f"mysql+pymysql://{user}@127.0.0.1:1/d"),
        "sqlite": sql(f"sqlite:///{blocked}/sessions.db"),
        "engine": {
            "SESSION_BACKEND": "sqlalchemy",
            "SESSION_SQLALCHEMY": sa.create_engine(
                f"postgresql+psycopg://{user}@127.0.0.1:1/d"
            ),
        },
        "filesystem": {
            "SESSION_BACKEND": "filesystem",
            "SESSION_FILESYSTEM_PATH": str(blocked / "sessions"),
        },
        "cachelib redis": {
            "SESSION_BACKEND": "cachelib",
            "SESSION_CACHELIB": RedisCache(
                Redis.from_url(
                    f"redis://{user}@127.0.0.1:1", retry=Retry(NoBackoff(), 0)
                )
            ),
        },
    }


ENGINES = (
    "redis",
    "rediss",
    "sentinel",
    "cluster",
    "redis client",
    "postgresql",
    "mysql",
    "sqlite",
    "engine",
    "filesystem",
    "cachelib redis",
)


def operations(extension: ServerSession) -> dict[str, Callable[[], t.Any]]:
    handle = "0" * 64
    return {
        "sessions_of": lambda: extension.sessions_of("ada"),
        "find": lambda: extension.find(handle),
        "sessions": lambda: list(extension.sessions()),
        "revoke": lambda: extension.revoke(handle),
        "revoke_user": lambda: extension.revoke_user("ada"),
        "revoke_user but this": lambda: extension.revoke_user("ada", True),
        "count": lambda: extension.count(),
        "prune": lambda: extension.prune(),
    }


@pytest.mark.parametrize("name", ENGINES)
def test_no_local_shows_a_secret_while_the_engine_is_down(
    name: str, tmp_path: Path, secrets: Secrets, watch: Watch
) -> None:
    leaks: set[str] = set()
    site = watched_site(secrets, leaks)
    browser = start(site)
    secrets.add_cookie(browser.cookie)
    app = flask.Flask("down", instance_path=str(tmp_path))
    app.config.update(TESTING=True, **SETTINGS, **engines(tmp_path)[name])
    extension = ServerSession(app, clock=site.clock)
    failures = 0

    def note(error: Exception) -> t.Any:
        nonlocal failures
        failures += 1
        leaks.update(leaks_of(error, secrets))
        return "", 503

    app.register_error_handler(Exception, note)
    calls: dict[str, Callable[[], t.Any]] = {
        **{name: ACTIONS[name] for name in ("read", "clear", "log out", "destroy")},
        **operations(extension),
        "new": lambda: session.update(content=CONTENT),
    }

    @app.get("/<path:call>")
    def run(call: str) -> str:
        calls[call]()
        return ""

    client = app.test_client()
    assert browser.cookie is not None
    for call in calls:
        client.delete_cookie("session")
        if call != "new":
            client.set_cookie("session", browser.cookie)
        client.get("/" + call)
    assert failures >= len(calls) - 3
    key = key_of("x" * 32, "session:")
    record = Record(CONTENT.encode(), 1, 0.0, 0.0, 9e9, "ada", {"a": "b"})
    backend = app.extensions["serversession"].backend
    for verb in (
        lambda: backend.load(key),
        lambda: backend.create(key, record),
        lambda: backend.replace(key, record, 1),
        lambda: backend.delete(key),
        lambda: backend.touch(key, 0.0, 9e9),
        lambda: backend.load_many([key]),
        lambda: backend.sweep(5),
        lambda: backend.close(),
    ):
        try:
            verb()
        except Exception as error:  # noqa: BLE001 - some caches raise their own
            leaks.update(leaks_of(error, secrets))
    for thing in (app.extensions["serversession"], backend, app.session_interface):
        leaks.update(f"repr shows {found}" for found in secrets.found_in(repr(thing)))
    runner = app.test_cli_runner()
    for arguments in (
        "init",
        "list",
        "show 0123456789abcdef",
        "revoke --user ada",
        "info",
    ):
        result = runner.invoke(args=["sessions", *arguments.split()])
        for found in secrets.found_in(result.output):
            leaks.add(f"{arguments} prints {found}")
        if result.exception is not None:
            leaks.update(leaks_of(result.exception, secrets))
    assert leaks | watch.leaks == set()


def wrong(folder: Path) -> list[dict[str, t.Any]]:
    """Give configurations that are refused, each with something secret in it."""
    user = f"me:{PASSWORD}"
    down = f"redis://{user}@127.0.0.1:1/0"
    return [
        {"SESSION_BACKEND": down},
        {"SESSION_BACKEND": object()},
        {"SESSION_BACKEND": "redis", "SESSION_REDIS": down},
        {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": down, "SESSION_REDIS": 1},
        {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": f"redis://{user}@h:port/0"},
        {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": f"http://{user}@h/"},
        {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": f"redis://{user}@h/0?db=x"},
        {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": f"redis://{user}@h/0?q=1"},
        {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": f"redis+sentinel://{user}@h"},
        {
            "SESSION_BACKEND": "redis",
            "SESSION_REDIS_URL": f"redis+cluster://{user}@h/1",
        },
        {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": [down]},
        {"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY_URL": f"{user}@h"},
        {"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY_URL": f"no://{user}@h/d"},
        {
            "SESSION_BACKEND": "sqlalchemy",
            "SESSION_SQLALCHEMY_URL": f"postgresql+nodriver://{user}@h/d",
        },
        {
            "SESSION_BACKEND": "sqlalchemy",
            "SESSION_SQLALCHEMY_URL": f"postgresql+asyncpg://{user}@h/d",
        },
        {
            "SESSION_BACKEND": "sqlalchemy",
            "SESSION_SQLALCHEMY_URL": f"mysql+mysqldb://{user}@h/d",
        },
        {"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY": down},
        {
            "SESSION_BACKEND": "sqlalchemy",
            "SESSION_SQLALCHEMY_URL": f"mysql+pymysql://{user}@h/d",
            "SESSION_KEY_PREFIX": "x" * 300,
        },
        {"SESSION_BACKEND": "cachelib", "SESSION_CACHELIB": down},
        {"SESSION_ENCRYPTION_KEY": PASSWORD},
        {"SESSION_ENCRYPTION_KEY": [SETTINGS["SESSION_ENCRYPTION_KEY"], PASSWORD]},
        {"SESSION_SECRET": [PASSWORD, 5]},
        {"SESSION_SECRET": {PASSWORD: 1}},
        {"SESSION_SERIALIZER": "pickle"},
        {"SESSION_MAX_PER_USER": "many", "SESSION_PERMANENT": 3},
        {"SESSION_COOKIE_SAMESITE": "None"},
        {"SESSION_MIGRATE_FROM": "cookie", "SESSION_MIGRATE_UNTIL": "never"},
        {
            "SESSION_MIGRATE_FROM": "flask-session",
            "SESSION_MIGRATE_UNTIL": "2099-01-01",
            "SESSION_MIGRATE_STORE": down,
        },
    ]


@pytest.mark.filterwarnings("ignore")
def test_no_local_shows_a_secret_when_the_configuration_is_refused(
    tmp_path: Path, secrets: Secrets
) -> None:
    leaks: set[str] = set()
    for config in wrong(tmp_path):
        app = flask.Flask("wrong", instance_path=str(tmp_path))
        app.config.update(SETTINGS)
        app.config.update(config)
        with pytest.raises(ServerSessionError) as caught:
            ServerSession(app)
        leaks |= leaks_of(caught.value, secrets)
    assert leaks == set()


def refuse(*_: object) -> t.Any:
    raise RuntimeError("It does not work.")


class Refused:
    """What no serializer writes."""

    def __repr__(self) -> str:
        return CONTENT


def fill(*content: t.Any) -> None:
    session.update(deep={"list": [CONTENT, *content]})


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
@pytest.mark.parametrize(
    "action",
    [
        lambda: fill(Refused()),
        lambda: session.update(deep={Refused(): CONTENT}),
        lambda: fill("x" * 2_000_000),
        lambda: (fill(), session.update(_user_id="x" * 300)),
        lambda: (fill(Refused()), typed_session.save()),
        lambda: typed_session.atomic(lambda own: own.update(a=[CONTENT, Refused()])),
        lambda: session["cart"].append([CONTENT, Refused()]),
        lambda: setattr(typed_session, "lifetime", -1),
        lambda: (typed_session.regenerate(), fill(Refused())),
    ],
)
def test_no_local_shows_a_secret_when_the_content_is_refused(
    action: Action, serializer: str, secrets: Secrets
) -> None:
    leaks: set[str] = set()
    site = watched_site(secrets, leaks, SESSION_SERIALIZER=serializer)
    browser = start(site)
    secrets.add_cookie(browser.cookie)
    # The handler of errors runs in the request, or the exception reaches the client.
    with contextlib.suppress(ServerSessionError):
        try:
            browser.visit(action)
        except ServerSessionError as error:
            leaks.update(leaks_of(error, secrets))
            raise
    assert leaks == set()


@pytest.mark.parametrize(
    "hook",
    [
        "get_cookie_name",
        "get_cookie_domain",
        "get_cookie_path",
        "get_cookie_secure",
        "get_cookie_samesite",
        "get_cookie_httponly",
        "get_expiration_time",
        "should_set_cookie",
        "session_class",
        "get_signer",
        "is_null_session",
    ],
)
def test_no_local_shows_a_secret_when_a_hook_fails(
    hook: str, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaks: set[str] = set()
    site = watched_site(secrets, leaks)
    browser = start(site)
    secrets.add_cookie(browser.cookie)
    monkeypatch.setattr(site.app.session_interface, hook, refuse)
    with pytest.raises(RuntimeError) as caught:
        browser.set(n=2)
    leaks |= leaks_of(caught.value, secrets)
    assert leaks == set()


def test_no_local_shows_a_secret_when_werkzeug_refuses_the_cookie(
    secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = watched_site(secrets, set())
    browser = start(site)
    secrets.add_cookie(browser.cookie)
    monkeypatch.setattr(
        site.app.session_interface, "get_cookie_samesite", lambda app: "Bogus"
    )
    with pytest.raises(ValueError, match="SameSite") as caught:
        browser.set(n=2)
    assert leaks_of(caught.value, secrets) == set()


def test_no_local_shows_a_secret_when_a_secret_is_none(secrets: Secrets) -> None:
    app = flask.Flask("site")
    app.config.update(SECRET_KEY="a", SESSION_BACKEND="memory", TESTING=True)
    ServerSession(app)
    app.config.update({**SETTINGS, "SESSION_SECRET": None, "SECRET_KEY": 5})
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
        app.test_client().get("/")
    assert leaks_of(caught.value, secrets) == set()


@pytest.mark.parametrize("signed", [False, True])
def test_no_local_shows_the_id_of_a_session_that_cannot_be_taken_over(
    signed: bool, secrets: Secrets, tmp_path: Path
) -> None:
    from itsdangerous import Signer

    id = "Zm9yZWlnbi1pZC1vZi1mbGFzay1zZXNzaW9uLTEyMzQ"
    signer = Signer(SETTINGS["SECRET_KEY"], salt="flask-session", key_derivation="hmac")
    value = signer.sign(id).decode() if signed else id
    secrets.texts |= {"foreign id": id, "foreign cookie": value}
    down = engines(tmp_path)
    for name in ("redis", "postgresql", "cachelib redis"):
        app = flask.Flask("site", instance_path=str(tmp_path))
        app.config.update(TESTING=True, **SETTINGS, **down[name])
        app.config.update(
            SESSION_MIGRATE_FROM="flask-session",
            SESSION_MIGRATE_UNTIL="2099-01-01",
            SESSION_USE_SIGNER=signed,
        )
        if name == "postgresql":
            app.config.update(SESSION_SQLALCHEMY_TABLE="new_ones")
        ServerSession(app)
        app.add_url_rule("/", "read", lambda: str(session.get("n")))
        app.config["TRAP_HTTP_EXCEPTIONS"] = True
        client = app.test_client()
        client.set_cookie("session", value)
        with pytest.raises(ServerSessionError) as caught:
            client.get("/")
        assert leaks_of(caught.value, secrets) == set(), name


def give(own: t.Any) -> list[str]:
    own["deep"] = {"list": [CONTENT]}
    return own["deep"]["list"]


@pytest.mark.parametrize("conflict", ["merge", "overwrite"])
@pytest.mark.parametrize("name", ["save", "atomic", "open"])
@pytest.mark.parametrize("is_large", [False, True])
def test_no_local_shows_the_content_when_something_unreadable_is_in_the_way(
    name: str, conflict: str, is_large: bool, secrets: Secrets
) -> None:
    leaks: set[str] = set()
    site = watched_site(secrets, leaks, SESSION_CONFLICT=conflict)
    browser = site.browser()
    large = {f"n{number}": "x" * 100 for number in range(100)} if is_large else {}
    browser.set(content=[CONTENT], **large)
    key = key_of(browser.id, site.state.config.key_prefix)

    def overwrite() -> None:
        del site.backend.before["replace"]
        record = site.backend.load(key)
        assert record is not None
        unreadable = dataclasses.replace(record, data=b"?" * 80)
        site.backend.replace(key, unreadable, record.version)

    site.backend.before["replace"] = overwrite

    def change() -> None:
        session["content"].append("more")
        session["deep"] = {"list": [CONTENT]}

    def change_from_outside() -> None:
        handle = key_of(browser.id, "")
        with site.app.app_context(), site.extension.open(handle) as data:
            data["deep"] = {"list": [CONTENT]}

    if name == "open":
        with pytest.raises(ServerSessionError) as caught:
            change_from_outside()
        leaks.update(leaks_of(caught.value, secrets))
    else:
        atomic = lambda: (change(), typed_session.atomic(give))  # noqa: E731
        actions: dict[str, Action] = {"save": change, "atomic": atomic}
        with contextlib.suppress(ServerSessionError):
            try:
                browser.visit(actions[name])
            except ServerSessionError as error:
                leaks.update(leaks_of(error, secrets))
                raise
    assert "replace" not in site.backend.before
    assert leaks == set()


@pytest.mark.parametrize("change", ["newer", "damaged"])
def test_no_local_shows_what_is_in_a_record_that_cannot_be_read(
    change: str, secrets: Secrets, store: Store
) -> None:
    site, extension = store.site, store.site.extension
    browser = site.browser()
    browser.set(content=CONTENT, _user_id="ada")
    handle = browser.visit(lambda: typed_session.handle).text
    key = key_of(browser.id, site.state.config.key_prefix)
    value = store.raw.get(key)
    assert CONTENT.encode() in value
    leaks: set[str] = set()

    # The format, or a letter of the content.
    place = 1 if change == "newer" else value.index(CONTENT.encode())
    changed = value[:place] + b"\x7f" + value[place + 1 :]

    def note(error: Exception) -> t.Any:
        leaks.update(leaks_of(error, secrets))
        return "", 500

    site.app.error_handler_spec[None][None][Exception] = note
    browser.visit(
        lambda: (
            session.get("n"),
            store.raw.set(key, changed),
            typed_session.atomic(lambda own: own.update(n=1)),
        )
    )
    for call in (
        lambda: extension.revoke(handle),
        lambda: extension.revoke_user("ada"),
        lambda: site.backend.load(key),
        lambda: site.backend.delete(key),
    ):
        with site.app.app_context():
            try:
                call()
            except (NotSupportedError, RecordError) as error:
                leaks.update(leaks_of(error, secrets))
    assert leaks == set()
