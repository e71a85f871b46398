"""Runs what README.rst and docs/ show, and compares what they say with the code.

Every ``.. code-block:: python`` is executed, in a folder of its own, and so is Python
that a ``.. literalinclude::`` shows. Comments, which nobody sees on the pages, say how:

``.. listing: NAME``
    before a listing: listings of one page with the same name are run one after the
    other, in one namespace. Every other listing has a namespace of its own.
``.. file: NAME.py``
    before a listing: it is saved under that name, where the other listings of its
    page can import it.
``.. config``
    before a listing that configures an application: it finds an ``app``, which then
    gets its :class:`.ServerSession` and has to keep a value between two requests.
    ``.. config: unserved`` leaves out the requests, for what needs servers of its own.
``.. skip: REASON``, ``.. fails: REASON``
    before a listing: it is not run, or it does not work as yet.
``.. raises: NAME``, ``.. warns: NAME``, ``.. logs: NAME``, ``.. prints: NAME``
    after a ``.. code-block::`` of another language: what the test files have under that
    name has to raise, warn of, log or print exactly that text, whatever its spaces are.
``.. shows: NAME``
    after a ``.. code-block:: console``, if need be: what prepares its ``app``.
    Each ``$ flask`` of such a block is run, without it on :func:`make_shop`, and has to
    print what follows, whatever the spaces are; a line of ``…`` stands for anything.
    ``$ echo $?`` is the exit code of the one before.

What only tests need is not in the pages. For each page there may be a file below
``tests/listings`` with the same path, in which Python follows these comments:

``.. before: NAME``
    run in the namespace of the listings of that name, before the first of them: the
    set-up that an excerpt leaves out.
``.. check: NAME``
    run in the namespace of the listings of that name, after the last of them; with a
    number after the name, after the first, the second, and so on.
``.. raises: NAME`` and so on
    what the comment of that name in the page means. Without a name, and after a
    ``.. code-block:: text``: a message that is not quoted on the page in full.

A listing that defines tests is handed to pytest, with those that have its name.
The addresses of :data:`SERVERS` are those of running servers. There are no blocks
without a language, so that no listing hides from this module.
"""

from __future__ import annotations

import ast
import collections
import csv
import dataclasses
import datetime as dt
import functools
import gc
import importlib
import importlib.util
import inspect
import io
import itertools
import logging
import os
import re
import shlex
import subprocess
import sys
import textwrap
import types
import typing as t
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
from blinker import Signal
from flask import Flask
from flask import session
from werkzeug.test import Client

import flask_serversession
from flask_serversession import Capability
from flask_serversession import ServerSession
from flask_serversession import ServerSideSession
from flask_serversession import config_checks
from flask_serversession import errors
from flask_serversession import signals
from flask_serversession.backends.base import Backend
from flask_serversession.backends.cachelib import CachelibBackend
from flask_serversession.backends.filesystem import FilesystemBackend
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.backends.redis import RedisBackend
from flask_serversession.backends.sqlalchemy import SQLAlchemyBackend
from flask_serversession.cli import sessions
from flask_serversession.config import KEYS
from flask_serversession.config import SessionConfig
from flask_serversession.merge import merge
from flask_serversession.testing import BackendContract
from flask_serversession.testing import FakeClock

from .benchmarks.apps import KINDS
from .benchmarks.engines import ENGINES
from .flask_version import HAS_ONE_CONTEXT
from .servers import PostgresServer
from .servers import ValkeyServer
from .test_scale_connections import RIGHTS
from .test_third_party_suites import SUITES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.rst"
LISTINGS = ROOT / "tests" / "listings"

#: What a listing says, and the fixture of the server that it means.
SERVERS = {
    "redis://localhost:6379/0": "docs_redis_url",
    "postgresql+psycopg://shop:secret@localhost/shop": "docs_postgres_url",
}
#: Keys of Flask's own that mean something for sessions.
FLASK_KEYS = {
    "SECRET_KEY",
    "SECRET_KEY_FALLBACKS",
    "PERMANENT_SESSION_LIFETIME",
    "SESSION_REFRESH_EACH_REQUEST",
    "SESSION_COOKIE_NAME",
    "SESSION_COOKIE_DOMAIN",
    "SESSION_COOKIE_PATH",
    "SESSION_COOKIE_HTTPONLY",
    "SESSION_COOKIE_SECURE",
    "SESSION_COOKIE_SAMESITE",
    "SESSION_COOKIE_PARTITIONED",
}
BACKENDS: dict[str, type[Backend]] = {
    "memory": MemoryBackend,
    "filesystem": FilesystemBackend,
    "redis": RedisBackend,
    "sqlalchemy": SQLAlchemyBackend,
    "cachelib": CachelibBackend,
}

Namespace = dict[str, t.Any]


# -- what is in the files


@dataclasses.dataclass
class Block:
    """A directive or a steering comment, and what is indented under it."""

    page: Path
    line: int
    kind: str
    argument: str
    source: str
    indent: int

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def compiled(self, source: str | None = None) -> t.Any:
        # Lines in tracebacks are those of the page.
        padded = "\n" * (self.line - 1) + (self.source if source is None else source)
        return compile(padded, str(self.page), "exec", dont_inherit=True)


_BEFORE = ("listing", "file", "config", "skip", "fails")
_AFTER = ("before", "check", "raises", "warns", "logs", "prints", "shows")
_LANGUAGES = {".py": "python", ".js": "javascript"}
_START = re.compile(
    r"(?P<indent> *)\.\. (?P<kind>code-block(?=::)|literalinclude(?=::)|"
    rf"{'|'.join(_BEFORE + _AFTER)})"
    r"(?:$|::? +(?P<argument>\S.*)$)"
)


def read_blocks(page: Path) -> list[Block]:
    """Give the directives and comments of a page that this module knows."""
    if not page.exists():
        return []
    lines = page.read_text(encoding="utf-8").splitlines()
    blocks: list[Block] = []
    for number, line in enumerate(lines):
        match = _START.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        content: list[str] = []
        for following in lines[number + 1 :]:
            if following.strip() and len(following) - len(following.lstrip()) <= indent:
                break
            content.append(following)
        first = 1
        while content and content[0].strip():  # options of the directive
            content.pop(0)
            first += 1
        while content and not content[0].strip():
            content.pop(0)
            first += 1
        source = textwrap.dedent("\n".join(content)).rstrip() + "\n"
        kind, argument = match["kind"], (match["argument"] or "").strip()
        if kind == "literalinclude":
            included = page.parent / argument
            source = included.read_text(encoding="utf-8")
            kind = "code-block"
            argument = _LANGUAGES.get(included.suffix, "text")
        blocks.append(Block(page, number + 1 + first, kind, argument, source, indent))
    return blocks


@dataclasses.dataclass
class Listing:
    """A listing of Python, with the comments that belong to it."""

    block: Block
    name: str = ""
    file: str = ""
    config: str | None = None
    skip: str = ""
    fails: str = ""
    before: Block | None = None
    checks: list[Block] = dataclasses.field(default_factory=list[Block])


@dataclasses.dataclass
class Message:
    """A text that the library says, and what has to be done to hear it."""

    text: Block
    how: Block


def read_page(page: Path) -> tuple[list[Listing], list[Message]]:
    listings: list[Listing] = []
    messages: list[Message] = []
    before: list[Block] = []
    last: Block | None = None
    hidden = read_hidden(page)
    for block in read_blocks(page):
        if block.kind in _BEFORE:
            before.append(block)
            continue
        if block.kind == "code-block":
            last = block
            if block.argument == "python":
                listing = Listing(block)
                for comment in before:
                    assert comment.source.strip() == "", comment.place
                    setattr(
                        listing,
                        "name" if comment.kind == "listing" else comment.kind,
                        comment.argument,
                    )
                listings.append(listing)
                before = []
        else:
            assert last is not None, block.place
            assert last.argument != "python", block.place
            how = hidden.pop(f"{block.kind}: {block.argument}", None)
            assert how is not None, f"{block.place} has no {block.argument}"
            messages.append(Message(last, how))
        assert not before, f"{before[0].place} is not before a listing"
    assert not before, f"{before[0].place} is not before a listing"
    for place, block in hidden.items():
        assert block.kind in ("before", "check"), f"{page.name} has no {place}"
        name, _, number = block.argument.partition(" ")
        named = [listing for listing in listings if listing.name == name]
        assert named, f"{block.place} is of no listing"
        if block.kind == "before":
            named[0].before = block
        else:
            named[int(number or 0) - 1].checks.append(block)
    return listings, messages


def read_hidden(page: Path) -> dict[str, Block]:
    """Give what the test files have for a page, by kind and name."""
    hidden: dict[str, Block] = {}
    for block in read_blocks(listings_of(page)):
        if block.kind != "code-block" and block.argument:
            key = f"{block.kind}: {block.argument}"
            assert key not in hidden, f"{block.place} is there twice"
            hidden[key] = block
    return hidden


def listings_of(page: Path) -> Path:
    return LISTINGS / (page.relative_to(DOCS) if DOCS in page.parents else page.name)


def read_quotes() -> list[Message]:
    """Give the messages that the page of errors does not quote in full."""
    messages: list[Message] = []
    last: Block | None = None
    for block in read_blocks(listings_of(DOCS / "errors.rst")):
        if block.kind == "code-block":
            last = block
        elif not block.argument:
            assert last is not None, block.place
            messages.append(Message(last, block))
    return messages


PAGES = [README, *sorted(DOCS.rglob("*.rst"))]
READ = {page: read_page(page) for page in PAGES if "_build" not in page.parts}


def groups() -> Iterator[list[Listing]]:
    """Give the listings that are run together."""
    for listings, _ in READ.values():
        named: dict[str, list[Listing]] = {}
        for listing in listings:
            if listing.name:
                named.setdefault(listing.name, []).append(listing)
            else:
                yield [listing]
        yield from named.values()


# -- running them


@pytest.fixture
def docs_redis_url(valkey_server: ValkeyServer) -> Iterator[str]:
    from redis import Redis

    # A database that no other test uses, and a server of the tests' own.
    url = valkey_server.url.removesuffix("/0") + "/9"
    yield url
    with Redis.from_url(url) as client:
        client.flushdb()


@pytest.fixture
def docs_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    import sqlalchemy as sa

    engine = sa.create_engine(postgres_server.url, poolclass=sa.NullPool)
    before = set(sa.inspect(engine).get_table_names())
    yield postgres_server.url
    with engine.begin() as connection:
        for name in set(sa.inspect(connection).get_table_names()) - before:
            sa.Table(name, sa.MetaData()).drop(connection)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Callable[[list[Listing]], Namespace]]:
    """Give a function that runs listings, and gives their namespace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    if importlib.util.find_spec("prometheus_client") is None:
        monkeypatch.setitem(sys.modules, "prometheus_client", stand_in_for_prometheus())
    modules = set(sys.modules)
    logger = logging.getLogger("flask_serversession")
    level, handlers = logger.level, list(logger.handlers)
    namespace: Namespace = {"__name__": "listing"}

    def localize(source: str) -> str:
        if "from opentelemetry" in source:
            pytest.importorskip("opentelemetry.instrumentation.redis")
            if HAS_ONE_CONTEXT:
                pytest.skip("OpenTelemetry is not made for Flask 3.2 yet")
        for address, fixture in SERVERS.items():
            if address in source:
                source = source.replace(address, request.getfixturevalue(fixture))
        return source

    def run(group: list[Listing]) -> Namespace:
        nonlocal namespace
        for listing in READ[group[0].block.page][0]:
            if listing.file:
                (tmp_path / listing.file).write_text(localize(listing.block.source))
        sources = [localize(listing.block.source) for listing in group]
        if any(re.search(r"^(def test_|class Test)", s, re.MULTILINE) for s in sources):
            run_tests(tmp_path, sources)
            return namespace
        for listing, source in zip(group, sources, strict=True):
            if listing.config is not None:
                namespace["app"] = Flask("listing")
                namespace["app"].secret_key = "a secret"
            if listing.before is not None:
                exec(
                    listing.before.compiled(localize(listing.before.source)), namespace
                )
            if listing.file:
                module = importlib.import_module(listing.file.removesuffix(".py"))
                namespace = vars(module)
            else:
                exec(listing.block.compiled(source), namespace)
            if listing.config is not None:
                serve(namespace["app"], is_served=listing.config != "unserved")
            for check in listing.checks:
                exec(check.compiled(localize(check.source)), namespace)
        return namespace

    yield run
    for value in list(namespace.values()):
        if isinstance(value, Flask) and "serversession" in value.extensions:
            value.extensions["serversession"].backend.close()
        if isinstance(value, Backend):
            value.close()
    namespace.clear()
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", "") and str(tmp_path) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]
    logger.setLevel(level)
    logger.handlers[:] = handlers
    gc.collect()


def stand_in_for_prometheus() -> types.ModuleType:
    """Give as much of prometheus_client as the pages use."""
    values: dict[tuple[str, str], float] = {}

    class Counter:
        def __init__(self, name: str, documentation: str, labelnames: t.Any) -> None:
            self.key = (name, "")

        def labels(self, **labels: str) -> Counter:
            child = Counter("", "", ())
            child.key = (self.key[0], repr(labels))
            return child

        def inc(self) -> None:
            values[self.key] = values.get(self.key, 0) + 1

    class Registry:
        def get_sample_value(self, name: str, labels: t.Any) -> float | None:
            return values.get((name, repr(labels)))

    module = types.ModuleType("prometheus_client")
    vars(module).update(Counter=Counter, REGISTRY=Registry())
    return module


def serve(app: Flask, *, is_served: bool) -> None:
    """Initialize the application, and see whether its sessions keep something."""
    if "serversession" not in app.extensions:
        ServerSession(app)
    if not is_served:
        return

    @app.get("/count-for-the-test")
    def count() -> str:
        session["n"] = session.get("n", 0) + 1
        return str(session["n"])

    client = app.test_client()
    for number in ("1", "2"):
        # Over HTTPS, for the sake of Secure cookies.
        answer = client.get("/count-for-the-test", base_url="https://localhost")
        assert answer.text == number


def run_tests(folder: Path, sources: list[str]) -> None:
    path = folder / "test_listing.py"
    path.write_text("\n\n".join(sources))
    result = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-m", "pytest", "-q", "-rs", str(path)),
            *("-p", "no:valkey", "-p", "no:cacheprovider", "--strict-markers"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.filterwarnings(
    # Flask-Login's own, from Python 3.12 on.
    "ignore:datetime.datetime.utcnow:DeprecationWarning"
)
@pytest.mark.parametrize(
    "group", list(groups()), ids=lambda listings: listings[0].block.place
)
def test_a_listing_runs(
    group: list[Listing],
    run: Callable[[list[Listing]], Namespace],
    request: pytest.FixtureRequest,
) -> None:
    for listing in group:
        if listing.skip:
            pytest.skip(listing.skip)
        if listing.fails:
            request.applymarker(pytest.mark.xfail(reason=listing.fails))
    run(group)


def test_almost_every_listing_is_run() -> None:
    listings = [listing for group in groups() for listing in group]
    excused = [listing for listing in listings if listing.skip or listing.fails]
    assert len(listings) > 40
    assert len(excused) <= 2


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_no_listing_hides_in_a_block_without_a_language(page: Path) -> None:
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        assert not re.search(r"(?<!:)::$", line) or line.lstrip().startswith(".. "), (
            f"{page.name}:{number}"
        )
        assert ".. code::" not in line
        assert ".. sourcecode::" not in line


# -- what the library says


MESSAGES = [
    message
    for messages in [*(messages for _, messages in READ.values()), read_quotes()]
    for message in messages
    if message.how.kind != "shows"
]


class Log(logging.Handler):
    """Collects what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.text.place)
def test_a_message_is_quoted_exactly(
    message: Message,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = " ".join(message.text.source.split())
    code = message.how.compiled()
    namespace: Namespace = {"__name__": "listing", **HELPERS}
    if message.how.kind == "raises":
        with pytest.raises(Exception) as caught:  # noqa: PT011 - compared below
            exec(code, namespace)
        found = [str(caught.value)]
    elif message.how.kind == "warns":
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            exec(code, namespace)
        found = [str(warning.message) for warning in given]
    elif message.how.kind == "prints":
        exec(code, namespace)
        found = [capsys.readouterr().out]
    else:
        logger = logging.getLogger("flask_serversession")
        log = Log()
        level = logger.level
        logger.addHandler(log)
        logger.setLevel(logging.DEBUG)
        try:
            exec(code, namespace)
        finally:
            logger.removeHandler(log)
            logger.setLevel(level)
        found = log.texts
    for value in namespace.values():
        if isinstance(value, Flask) and "serversession" in value.extensions:
            value.extensions["serversession"].backend.close()
    if message.text.page == listings_of(DOCS / "errors.rst"):
        documented = [*documented_messages(), "The session is unavailable because"]
        assert any(re.search(pattern_of(text), expected) for text in documented)
    # A handle is random; the pages have one for all.
    found = [re.sub(r"\b[0-9a-f]{64}\b", "5f2b…", text) for text in found]
    assert expected in [" ".join(text.split()) for text in found]


def make_app(**settings: t.Any) -> Flask:
    """Make an application with sessions, for the comments after messages."""
    app = Flask("listing")
    app.config.update(
        SECRET_KEY="a secret", TESTING=True, SESSION_BACKEND="memory", **settings
    )
    ServerSession(app)
    return app


def visit(
    app: Flask, action: Callable[[], t.Any], client: Client | None = None, **how: t.Any
) -> Client:
    """Run a function as a view."""
    path = f"/{len(app.view_functions)}"
    app._got_first_request = False

    def view() -> t.Any:
        result = action()
        return "" if result is None else result

    app.add_url_rule(path, endpoint=path, view_func=view)
    client = client or app.test_client()
    client.get(path, **how).get_data()
    return client


HELPERS: Namespace = {
    "Flask": Flask,
    "ServerSession": ServerSession,
    "make_app": make_app,
    "session": flask_serversession.session,
    "visit": visit,
}


# -- every message


def pattern_of(message: str) -> str:
    pieces = message.split(load_messages().PLACEHOLDER)
    return ".{0,999}?".join(re.escape(piece) for piece in pieces)


@functools.cache
def load_messages() -> types.ModuleType:
    """Import what the page of errors is made with."""
    spec = importlib.util.spec_from_file_location("messages", DOCS / "messages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def documented_messages() -> list[str]:
    """Give the messages that the page of errors lists, in its order."""
    module = load_messages()
    messages = module.read_messages()
    text = (DOCS / "errors.rst").read_text(encoding="utf-8")
    found: list[str] = []
    for body in re.findall(r"^\.\. messages::\n((?:(?: .*)?\n)+)", text, re.MULTILINE):
        for beginning, _ in module.read_entries(textwrap.dedent(body).splitlines()):
            found.append(module.message_of(beginning, messages))
    return found


def test_every_message_warning_and_line_of_the_log_is_documented_once() -> None:
    messages = load_messages().read_messages()
    assert len(messages) > 150
    documented = collections.Counter(documented_messages())
    missing = [f"{place}: {t}" for t, place in messages.items() if t not in documented]
    assert not missing, "\n".join(missing)
    assert [text for text, number in documented.items() if number > 1] == []


def test_every_message_has_an_anchor_of_its_own() -> None:
    anchors = collections.Counter(map(load_messages().anchor_of, documented_messages()))
    assert [anchor for anchor, number in anchors.items() if number > 1] == []


def test_a_message_that_is_not_there_is_not_documented() -> None:
    module = load_messages()
    with pytest.raises(ValueError, match="0 messages begin with"):
        module.message_of("The session backend sings", module.read_messages())
    with pytest.raises(ValueError, match=r"[2-9] messages begin with"):
        module.message_of("The session backend", module.read_messages())


# -- the command line


CONSOLES = [
    block
    for page in READ
    for block in read_blocks(page)
    if block.kind == "code-block" and block.argument == "console"
]
PREPARED = {
    message.text.place: message.how
    for _, messages in READ.values()
    for message in messages
    if message.how.kind == "shows"
}


def make_shop(clock: FakeClock | None = None, **settings: t.Any) -> Flask:
    """Make an application with four sessions, whose handles are always the same.

    Two are ada's, one is bob's, one is nobody's.
    """
    clock = clock or FakeClock(1_767_254_400.0)  # 8:00 on 1 January 2026, in UTC
    numbers = itertools.count(1)
    app = Flask("shop")
    app.config.update(
        {
            "SECRET_KEY": "x" * 32,
            "SESSION_BACKEND": "filesystem",
            "SESSION_FILESYSTEM_PATH": "var/sessions",
            "SESSION_COOKIE_SECURE": True,
            "SESSION_COOKIE_SAMESITE": "Lax",
            "SESSION_TRACK": ("remote_addr",),
            "SESSION_ID_GENERATOR": lambda: f"the-id-of-session-{next(numbers)}",
            **settings,
        }
    )
    ServerSession(app, clock=clock)

    @app.get("/<name>")
    def index(name: str) -> str:
        session["name"] = name
        if name != "nobody":
            session["_user_id"] = name
        return ""

    phone = "Mozilla/5.0 (Android 15; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0"
    for name in ("ada", "nobody", "bob", "ada"):
        app.test_client().get(
            f"/{name}",
            base_url="https://localhost",
            headers={"User-Agent": phone},
            environ_base={"REMOTE_ADDR": "192.0.2.7"},
        )
        clock.advance(3600)
    return app


@pytest.mark.parametrize("block", CONSOLES, ids=lambda block: block.place)
def test_a_command_prints_what_a_page_shows(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: Namespace = {**HELPERS, "make_shop": make_shop}
    if block.place in PREPARED:
        exec(PREPARED[block.place].compiled(), namespace)
    app: Flask = namespace.get("app") or make_shop()
    runner = app.test_cli_runner()
    code = 0
    parts = re.split(r"^\$ (.+)\n", block.source, flags=re.MULTILINE)
    assert not parts[0].strip(), block.place
    for command, shown in zip(parts[1::2], parts[2::2], strict=True):
        if command == "echo $?":
            assert shown.strip() == str(code), block.place
            continue
        name, *arguments = shlex.split(command)
        assert name == "flask", command
        # Whoever is asked answers yes, which the page shows.
        result = runner.invoke(args=arguments, input="y\n")
        code = result.exit_code
        pieces = re.split(r"^ *…$", shown, flags=re.MULTILINE)
        expected = [re.escape(" ".join(piece.split())) for piece in pieces]
        pattern = " ?.*? ?".join(expected)
        # Root gets a hint.
        hint = "(The folder|- SESSION_FILESYSTEM_PATH) belongs to root.*\n"
        output = re.sub(hint, "", result.output)
        found = " ".join(output.split())
        assert re.fullmatch(pattern, found), result.output
    app.extensions["serversession"].backend.close()


def test_every_command_and_option_is_documented() -> None:
    text = (DOCS / "cli.rst").read_text(encoding="utf-8")
    for name, command in sessions.commands.items():
        assert re.search(rf"^ +\$ flask sessions {name}\b", text, re.M), name
        for parameter in command.params:
            option = parameter.opts[-1]
            if option.startswith("--") and option != "--help":
                assert f"``{option}" in text, option
    for code in range(5):
        assert re.search(rf"^{code}  ", text, re.MULTILINE), code


# -- the README


def find_group(page: Path, text: str) -> list[Listing]:
    (found,) = [
        group
        for group in groups()
        if group[0].block.page == page
        and any(text in listing.block.source for listing in group)
    ]
    return found


def test_the_quickstart_is_short_and_counts_visits(
    run: Callable[[list[Listing]], Namespace],
) -> None:
    listing = READ[README][0][0]
    lines = [line for line in listing.block.source.splitlines() if line.strip()]
    assert len(lines) < 15
    app = run([listing])["app"]
    client = app.test_client()
    answers = [client.get("/") for _ in range(3)]
    assert [answer.text for answer in answers] == ["Visit 1", "Visit 2", "Visit 3"]
    assert answers[0].headers["Set-Cookie"].startswith("session=")
    assert app.test_client().get("/").text == "Visit 1"


def test_the_readmes_log_in_rotates_the_id_and_its_log_out_ends_it(
    run: Callable[[list[Listing]], Namespace],
) -> None:
    app = run(find_group(README, "def log_in"))["app"]
    client = app.test_client()
    with client.session_transaction() as content:
        content["cart"] = ["pen"]
    before = client.get_cookie("session")
    client.post("/log-in", data={"name": "ada", "password": "countess"})
    after = client.get_cookie("session")
    assert before is not None
    assert after is not None
    assert before.value.partition(".")[0] != after.value.partition(".")[0]
    assert "ada" in client.get("/").text
    client.post("/log-out")
    assert client.get_cookie("session") is None
    client.set_cookie("session", after.value)
    assert "ada" not in client.get("/").text


def table_rows(page: Path, *header: str) -> list[list[str]]:
    """Give the cells of the table that has this header, with it."""
    text = page.read_text(encoding="utf-8")
    for rows in [*list_tables(text), *simple_tables(text), *csv_tables(text)]:
        if rows[0][: len(header)] == list(header):
            return rows
    raise AssertionError(f"{page.name} has no such table")


def list_tables(text: str) -> Iterator[list[list[str]]]:
    for table in re.findall(
        r"^\.\. list-table::.*\n((?:(?: .*)?\n)+)", text, re.MULTILINE
    ):
        start = re.search(r"^ +\* - ", table, re.MULTILINE)
        assert start is not None
        rows: list[list[str]] = []
        for row in re.split(r"^ +\* - ", table[start.start() :], flags=re.MULTILINE)[
            1:
        ]:
            cells = re.split(r"^ +-(?: |$)", row, flags=re.MULTILINE)
            rows.append([" ".join(cell.split()) for cell in cells])
        yield rows


def csv_tables(text: str) -> Iterator[list[list[str]]]:
    for header, body in re.findall(
        r"^\.\. csv-table::\n(?:    :header: (.+)\n)?(?:    :.*\n)*\n((?:    .+\n)+)",
        text,
        re.MULTILINE,
    ):
        lines = [header] if header else []
        source = io.StringIO("\n".join([*lines, textwrap.dedent(body)]))
        yield [
            [" ".join(cell.split()) for cell in row]
            for row in csv.reader(source, skipinitialspace=True)
            if row
        ]


def simple_tables(text: str) -> Iterator[list[list[str]]]:
    for rule, head, body in re.findall(
        r"^(=+(?:  =+)+)\n((?:.+\n)+?)\1\n((?:.+\n)+?)\1\n", text, re.MULTILINE
    ):
        starts = [match.start() for match in re.finditer(r"=+", rule)]
        rows: list[list[str]] = []
        for part in (head, body):
            for line in part.splitlines():
                ends = [*starts[1:], None]
                cells = [line[i:j].strip() for i, j in zip(starts, ends, strict=True)]
                if cells[0] or not rows:
                    rows.append(cells)
                else:  # goes on from the line above
                    rows[-1] = [
                        f"{old} {new}".strip()
                        for old, new in zip(rows[-1], cells, strict=True)
                    ]
        yield rows


def test_the_sessions_table_of_members_names_real_ones() -> None:
    cells = [row[0] for row in table_rows(DOCS / "session.rst", "member")[1:]]
    names = {name for cell in cells for name in re.findall(r"``(\w+)", cell)}
    assert {name for name in names if not hasattr(ServerSideSession, name)} == set()
    for name in ("regenerate", "destroy", "reload", "save", "touch", "atomic"):
        assert name in names


@pytest.mark.parametrize(
    "page", [README, DOCS / "backends/index.rst"], ids=lambda page: page.name
)
@pytest.mark.parametrize(
    ("column", "title", "capability"),
    [
        (4, "Expires by itself", Capability.EXPIRES),
        (5, "Compare-and-swap", Capability.COMPARE_AND_SWAP),
        (6, "Lists a user's sessions", Capability.USER_INDEX),
    ],
    ids=["expires", "swaps", "users"],
)
def test_the_tables_of_backends_say_what_the_backends_declare(
    page: Path, column: int, title: str, capability: Capability
) -> None:
    rows = table_rows(page, "Backend")
    assert rows[0][column] == title
    assert len(rows) == len(BACKENDS) + 1
    for row in rows[1:]:
        backend = BACKENDS[re.sub(r".*``(\w+)``.*", r"\1", row[0])]
        assert row[column].startswith("yes") is (capability in backend.capabilities)


@pytest.mark.parametrize(
    "page", [README, DOCS / "backends/index.rst"], ids=lambda page: page.name
)
def test_the_tables_of_backends_say_where_reading_can_run_code(page: Path) -> None:
    rows = table_rows(page, "Backend")
    assert rows[0][7] == "Reading runs no code"
    # Nothing else stands between a store and this library's own reading.
    unsafe = [row[0] for row in rows[1:] if not row[7].startswith("yes")]
    assert unsafe == ["``cachelib``"]


def test_the_table_of_capabilities_says_what_the_backends_declare() -> None:
    rows = table_rows(DOCS / "backends/index.rst", "Capability")
    names = [re.sub(r"\W", "", cell) for cell in rows[0][1:]]
    assert names == list(BACKENDS)
    documented = {re.sub(r".*``(?:.*\.)?(\w+)``.*", r"\1", row[0]) for row in rows[1:]}
    assert documented == {c.name for c in Capability if c}
    for row in rows[1:]:
        capability = Capability[re.sub(r".*``(?:.*\.)?(\w+)``.*", r"\1", row[0])]
        for name, cell in zip(names, row[1:], strict=True):
            is_yes = cell.startswith("yes")
            assert is_yes is (capability in BACKENDS[name].capabilities), row


def test_the_documented_rights_of_a_user_of_redis_are_those_that_are_tried() -> None:
    text = " ".join((DOCS / "backends/redis.rst").read_text("utf-8").split())
    assert RIGHTS.format("session:") in text


# -- the configuration


@dataclasses.dataclass
class Documented:
    key: str
    default: str


def documented_keys() -> dict[str, Documented]:
    text = (DOCS / "config.rst").read_text(encoding="utf-8")
    found: dict[str, Documented] = {}
    for match in re.finditer(
        r"^\.\. data:: (\w+)\n((?:(?: .*)?\n)*)", text, re.MULTILINE
    ):
        key, body = match.groups()
        assert key not in found, f"{key} is there twice"
        fields = dict(re.findall(r"^    :(\w+): (.+)$", body, re.MULTILINE))
        # What switches accept is said once, at the top.
        assert "Accepts" in fields or fields["Default"] in ("``True``", "``False``"), (
            key
        )
        found[key] = Documented(key, fields["Default"])
    return found


def test_every_key_is_documented_and_no_other() -> None:
    assert set(documented_keys()) == {*KEYS, *FLASK_KEYS}


def test_the_table_of_all_keys_has_each_of_them_once() -> None:
    text = (DOCS / "config.rst").read_text(encoding="utf-8")
    table = text.partition(".. list-table:: All keys")[2].partition("Set these keys")[0]
    found = re.findall(r":data:`(\w+)`", table)
    assert sorted(found) == sorted({*KEYS, *FLASK_KEYS})


@pytest.mark.parametrize("key", sorted(KEYS))
def test_the_documented_default_is_the_codes(key: str) -> None:
    (field,) = [f for f in dataclasses.fields(SessionConfig) if f.name == KEYS[key]]
    documented = default_in_docs(key)
    assert field.metadata["parser"](documented) == field.default


@pytest.mark.parametrize("key", sorted(FLASK_KEYS))
def test_the_documented_default_is_flasks(key: str) -> None:
    assert default_in_docs(key) == Flask("listing").config[key]


def default_in_docs(key: str) -> t.Any:
    match = re.match(r"``(.+?)``", documented_keys()[key].default)
    assert match is not None
    return eval(match[1], {"__builtins__": {}, "timedelta": dt.timedelta})


def test_no_page_names_a_key_that_there_is_not() -> None:
    known = {*KEYS, *FLASK_KEYS, *config_checks.FOREIGN_KEYS}
    known |= {*config_checks.REPLACED_KEYS, *config_checks.REMOVED_KEYS}
    known.add("SESSION_SAVE_UNINITIALISED")  # as an example of a misspelt one
    for page in READ:
        for key in re.findall(r"\bSESSION_[A-Z_]+\b", page.read_text("utf-8")):
            assert key in known, f"{page.name}: {key}"


# -- errors, signals, names


def test_every_error_and_warning_is_documented() -> None:
    text = (DOCS / "errors.rst").read_text(encoding="utf-8")
    names = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ServerSessionError)
    }
    documented = set(re.findall(r"^\.\. autoexception:: (?:\w+\.)*(\w+)", text, re.M))
    assert documented == names | {"ConfigurationWarning"}


def test_every_signal_is_documented() -> None:
    text = (DOCS / "api.rst").read_text(encoding="utf-8")
    names = {name for name, value in vars(signals).items() if isinstance(value, Signal)}
    assert {"session_created", "backend_failed"} <= names
    for name in names:
        assert f".. autodata:: {name}" in text, name


def test_every_public_name_is_documented() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in READ)
    tree = ast.parse(inspect.getsource(flask_serversession))
    names = [
        alias.asname
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
        if alias.asname
    ]
    assert "ServerSession" in names
    for name in names:
        assert re.search(
            rf"^\.\. auto\w+:: (?:\w+\.)*{name}(\(.*\))?$", text, re.MULTILINE
        ), name


# -- promises and their tests


def test_every_test_that_a_page_names_exists() -> None:
    number = 0
    for page in READ:
        text = page.read_text(encoding="utf-8")
        for path, name in re.findall(r"``(tests/[\w/]+\.py)::(\w+)``", text):
            number += 1
            source = (ROOT / path).read_text(encoding="utf-8")
            assert re.search(rf"^ *def {name}\(", source, re.MULTILINE), name
        for name in re.findall(r"``BackendContract\.(test_\w+)``", text):
            number += 1
            assert callable(getattr(BackendContract, name, None)), name
        assert not re.search(r"(?<![:.\w])``test_", text), "name its file as well"
    assert number > 60
    page = (DOCS / "reliability.rst").read_text(encoding="utf-8")
    for name in ("mutants", "suites"):
        assert f":file: figures/{name}.csv" in page


def test_every_file_and_command_that_a_page_names_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    numbers: collections.Counter[str] = collections.Counter()
    for page in READ:
        text = page.read_text(encoding="utf-8")
        literals = re.findall(r"``([^`]+)``", text)
        commands = [
            line.strip()
            for block in read_blocks(page)
            if block.kind == "code-block" and block.argument == "text"
            for line in block.source.splitlines()
        ]
        for literal in [*literals, *commands]:
            words = " ".join(literal.split())
            if match := re.match(r"(?:FLASK_\S+ )*make ([a-z-]+)(?= |$)", words):
                numbers["target"] += 1
                assert match[1] in targets, f"{page.name}: {words}"
            if match := re.match(r"python -m (tests[\w.]*)", words):
                numbers["module"] += 1
                assert importlib.util.find_spec(match[1]), f"{page.name}: {words}"
            for path in re.findall(r"(?<![\w/.])(?:tests|docs)/[\w/.-]*\w", words):
                if path != "docs/_build/html":  # made by one of the commands
                    numbers["path"] += 1
                    assert (ROOT / path).exists(), f"{page.name}: {path}"
            for name in re.findall(r"(?:-k|--engine|--kind) (\w+)", words):
                assert name in {*ENGINES, *KINDS, "flow"}, f"{page.name}: {words}"
    assert numbers["target"] > 5
    assert numbers["module"] > 3
    assert numbers["path"] > 100


#: Sections that say how to do something, which is run, or nothing that could be wrong.
_NO_CLAIMS = {
    "flask-serversession",
    "Another backend",
    "Licence",
    "How it is measured",
}


@pytest.mark.parametrize("page", ["README.rst", "docs/performance.rst"])
def test_every_section_names_what_shows_it(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    parts = re.split(r"^(\S.*)\n[-=]{4,}$", text, flags=re.MULTILINE)
    titles = parts[1::2]
    assert len(titles) > 5
    for title, section in zip(titles, parts[2::2], strict=True):
        if title not in _NO_CLAIMS:
            assert re.search(
                r"``(tests|docs)/\S+``|``?make [a-z]|python\s+-m\s+tests|^ +make ",
                section,
                re.M,
            ), f"{page}: {title}"


@pytest.mark.parametrize("page", ["security.rst", "reliability.rst"])
def test_every_promise_names_a_test(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    promises = re.split(r"^\.\. _promise-", text, flags=re.MULTILINE)[1:]
    assert len(promises) >= 5
    for promise in promises:
        own = re.split(r"^[-=~]{4,}$", promise, flags=re.MULTILINE)[1]
        _, found, tests = own.partition("Tested by")
        assert found, promise[:80]
        assert re.search(r"^-   ``(tests/|BackendContract\.)", tests, re.M), promise[
            :80
        ]


def test_every_requirement_of_asvs_on_sessions_is_answered() -> None:
    text = (DOCS / "security.rst").read_text(encoding="utf-8")
    found = re.findall(r"^(7\.\d\.\d)  ", text, re.MULTILINE)
    numbers = {1: 3, 2: 4, 3: 2, 4: 5, 5: 3, 6: 2}
    assert found == [
        f"7.{section}.{number}"
        for section, count in numbers.items()
        for number in range(1, count + 1)
    ]


def test_the_figures_fit_the_tests_that_print_them() -> None:
    text = (DOCS / "reliability.rst").read_text(encoding="utf-8")
    kills = re.search(r"^KILLS = (\d+)", source_of("test_crash.py"), re.MULTILINE)
    inputs = re.search(r'"HOSTILE_INPUTS", "(\d+)"', source_of("test_hostile.py"))
    assert kills is not None
    assert inputs is not None
    times = "\N{MULTIPLICATION SIGN}"
    assert f" {times} {kills[1]}\n" in text
    assert f" {times} {inputs[1]} and more\n" in text


def test_the_suites_of_others_have_the_figures_that_they_are_held_to() -> None:
    with (DOCS / "figures" / "suites.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [tuple(row) for row in rows[1:]] == [
        (suite.name, str(suite.least), str(suite.used), str(suite.stored))
        for suite in SUITES
    ]


def source_of(name: str) -> str:
    return (ROOT / "tests" / name).read_text(encoding="utf-8")


#: What people search for, in their own words.
SYMPTOMS = (
    "my session is empty on every request",
    "logged out at random",
    "503",
    "works on my machine and not behind nginx",
    "how do I log everybody out",
    "how long do sessions live",
    "sessions are per browser, not per user",
)


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_the_search_leads_from_a_symptom_to_its_answer(symptom: str) -> None:
    text = (DOCS / "faq.rst").read_text(encoding="utf-8")
    # The search puts entries of the index that are marked as main ones first.
    assert re.search(
        rf"^\.\. index:: ! single: {re.escape(symptom)}\n\n\S.*\n~~~", text, re.M
    )


# -- the merge rules


def test_the_examples_of_merging_are_what_is_merged() -> None:
    rows = table_rows(DOCS / "session.rst", "Was", "This request")
    assert len(rows) > 6
    for row in rows[1:]:
        base, mine, theirs, merged = [
            ast.literal_eval(cell.strip("`")) for cell in row[:4]
        ]
        assert merge(base, mine, theirs, lambda a, b: repr(a) == repr(b)) == merged


# -- what a page must not say


def test_the_pages_are_not_too_long() -> None:
    # As `wc -w` counts them.
    assert sum(len(page.read_text("utf-8").split()) for page in READ) <= 22_000


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_lines_are_not_too_long(page: Path) -> None:
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        # The names of tests are sentences.
        assert len(line) <= 100 or "::test_" in line, f"{page.name}:{number}"
