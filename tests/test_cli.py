"""``flask sessions …``: what it prints, how it ends, and what it never shows."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import datetime as dt
import inspect
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from cachelib import SimpleCache
from click.testing import Result
from flask import Flask
from flask import session
from flask.cli import ScriptInfo
from flask.sessions import SecureCookieSessionInterface
from flask.testing import FlaskCliRunner

from flask_serversession import Backend
from flask_serversession import BackendError
from flask_serversession import BackendUnavailableError
from flask_serversession import Capability
from flask_serversession import ConfigurationWarning
from flask_serversession import RecordError
from flask_serversession import ServerSession
from flask_serversession import session as typed_session
from flask_serversession.backends.base import Gone
from flask_serversession.backends.base import Replaced
from flask_serversession.backends.cachelib import CachelibBackend
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.cli import sessions as command_group
from flask_serversession.cli.diagnostics import mask_url
from flask_serversession.config import KEYS
from flask_serversession.record import key_of
from flask_serversession.testing import FakeClock

from .backend_configs import BACKEND_CONFIGS
from .backend_configs import Config
from .servers import PostgresServer
from .servers import ValkeyServer
from .site import Browser
from .site import Site
from .site import advance
from .site import handle_of

ROOT = Path(__file__).parent.parent
INSTANCE = Path(tempfile.mkdtemp(prefix="test_cli-"))
atexit.register(shutil.rmtree, INSTANCE, ignore_errors=True)
if hasattr(os, "geteuid") and os.geteuid() == 0:
    os.chown(INSTANCE, 65534, 65534)  # what root makes in there is not root's either
COMMANDS = [
    "check",
    "count",
    "info",
    "init",
    "list",
    "migrate",
    "prune",
    "revoke",
    "show",
]


def run(app: Flask, *args: str, input: str | None = None) -> Result:
    """Run ``flask sessions …`` as a shell would."""
    options: dict[str, t.Any] = {}
    # click before 8.2 mixes the two streams unless it is told not to.
    if "mix_stderr" in inspect.signature(click.testing.CliRunner).parameters:
        options["mix_stderr"] = False
    result = FlaskCliRunner(app, **options).invoke(
        args=["sessions", *args],
        input=input,
        # It would go by FLASK_DEBUG.
        obj=ScriptInfo(create_app=lambda: app, set_debug_flag=False),
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def printed(app: Flask, *args: str) -> str:
    result = run(app, *args)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def read(app: Flask, *args: str) -> t.Any:
    """Give the document that a command prints."""
    return json.loads(printed(app, *args, "--json"))


def failed(app: Flask, *args: str, code: int) -> str:
    """Give the one line that a command fails with."""
    result = run(app, *args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("Error: ").removesuffix("\n")


@pytest.fixture
def site() -> Site:
    return make_site()


def make_site(config: Config | None = None, **settings: t.Any) -> Site:
    return Site(config or {"SESSION_BACKEND": "memory"}, **settings)


@pytest.fixture(params=BACKEND_CONFIGS)
def site_anywhere(
    request: pytest.FixtureRequest, make_backend_config: Callable[[str], Config]
) -> Site:
    return make_site(make_backend_config(request.param))


def make_app(**config: t.Any) -> Flask:
    """Make an application that is configured as a user's is."""
    app = Flask("shop", instance_path=str(INSTANCE))
    app.config.update(
        SECRET_KEY="a secret that is long enough",
        SESSION_BACKEND="memory",
        SESSION_COOKIE_SECURE=True,
        SESSION_COOKIE_SAMESITE="Lax",
    )
    app.config.update(config)
    app.debug = True
    ServerSession(app, clock=FakeClock())
    return app


def log_in(site: Site, user: object = "ada", **options: t.Any) -> Browser:
    browser = site.browser()
    browser.visit(lambda: session.update(n=1, _user_id=user), **options)
    return browser


def make_ids(*ids: str) -> Callable[[], str]:
    given = iter(ids)
    return lambda: next(given)


# Ids whose handles are known: 64 digits, of which tables show 12.
FIRST, SECOND = "first-id-0123456789", "second-id-0123456789"
FIRST_HANDLE, SECOND_HANDLE = key_of(FIRST, ""), key_of(SECOND, "")
# The time at which the clock of the tests begins.
NOW = "2100-01-01 00:00"


# How it gets there


def test_the_commands_are_registered() -> None:
    app = make_app()
    group = app.cli.commands["sessions"]
    assert isinstance(group, click.Group)
    assert sorted(group.commands) == COMMANDS


def test_a_command_of_the_application_is_not_replaced() -> None:
    app = Flask("shop")
    app.config.update(SECRET_KEY="a secret", SESSION_BACKEND="memory", TESTING=True)

    @app.cli.command("sessions")
    def own() -> None:
        click.echo("mine")

    ServerSession(app)
    assert run(app).stdout == "mine\n"


def test_several_applications_have_the_commands() -> None:
    sites = [make_site(), make_site()]
    log_in(sites[0])
    assert [printed(site.app, "count") for site in sites] == ["1\n", "0\n"]


def test_importing_the_package_does_not_import_the_commands() -> None:
    code = """
        import sys
        import flask_serversession
        names = {"cli", "backends.redis", "backends.sqlalchemy"}
        print(sorted(n for n in names if f"flask_serversession.{n}" in sys.modules))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\n"


# Help


def test_the_help_of_the_group_explains_handles_and_exit_codes() -> None:
    text = printed(make_app(), "--help")
    assert "See and end the sessions of visitors." in text
    assert "its first 8 or more are enough" in text
    for line in (
        "  flask sessions revoke --user ada\n",
        "  0  it worked\n",
        "  1  there is no such session, or none was ended\n",
        "  2  the command was called wrongly\n",
        "  3  the backend cannot do that\n",
        "  4  the backend does not answer, or refuses to work\n",
    ):
        assert line in text
    for name in COMMANDS:
        (summary,) = re.findall(rf"^  {name} +(.+)$", text, re.MULTILINE)
        assert summary.endswith(".")
        assert "..." not in summary


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_has_examples_that_can_be_read(name: str) -> None:
    app = make_app()
    text = printed(app, name, "--help")
    assert text.startswith(f"Usage: flask sessions {name} ") or text.startswith(
        f"Usage: shop sessions {name} "
    )
    examples = re.findall(r"^    flask (.+)$", text, re.MULTILINE)
    assert examples
    for example in examples:
        words = example.split(" | ")[0].split()
        assert words[:2] == ["sessions", name]
        # What is not an option of this command is refused when it is parsed.
        command = command_group.commands[name]
        with command.make_context(name, words[2:], resilient_parsing=False):
            pass
    if name in ("count", "list", "show", "info"):
        assert "--json" in text


def test_the_help_needs_no_backend() -> None:
    app = make_app(SESSION_BACKEND="redis", SESSION_REDIS_URL="redis://127.0.0.1:1/0")
    for name in COMMANDS:
        assert run(app, name, "--help").exit_code == 0


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["count", "nonsense"],
        ["list", "--limit", "0"],
        ["list", "--limit", "many"],
        ["prune", "--batch", "0"],
        ["show"],
        ["revoke"],
        ["revoke", FIRST_HANDLE, "--user", "ada"],
        ["revoke", "--all", "--user", "ada"],
        ["revoke", FIRST_HANDLE, "--all"],
        ["show", "1234567"],
        ["show", "not-a-handle"],
        ["show", FIRST_HANDLE + "0"],
        ["revoke", "../../etc/passwd"],
    ],
)
def test_a_command_that_is_called_wrongly_exits_with_2(
    site: Site, args: list[str]
) -> None:
    log_in(site)
    result = run(site.app, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: ")
    assert site.backend.count() == 1


# count


def test_count_prints_a_number(site_anywhere: Site) -> None:
    site = site_anywhere
    if Capability.COUNT not in site.backend.capabilities:
        assert failed(site.app, "count", code=3) == (
            "The 'cachelib' backend cannot count sessions ('count'). Choose"
            " another 'SESSION_BACKEND' if you need it."
        )
        return
    assert printed(site.app, "count") == "0\n"
    browser = log_in(site)
    log_in(site)
    browser.visit(lambda: typed_session.regenerate())  # leaves a tombstone
    assert printed(site.app, "count") == "2\n"
    assert printed(site.app, "count", "--json") == '{\n  "count": 2\n}\n'


# list


def test_list_prints_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(SESSION_ID_GENERATOR=make_ids(FIRST, SECOND))
    log_in(site)
    advance(site, 3600)
    site.browser().set(n=1)
    assert printed(site.app, "list") == (
        "HANDLE        USER  LAST SEEN (UTC)   LOGGED IN (UTC)   EXPIRES (UTC)\n"
        f"{SECOND_HANDLE[:12]}  -     2100-01-01 01:00  -               "
        "  2100-02-01 01:00\n"
        f"{FIRST_HANDLE[:12]}  ada   2100-01-01 00:00  2100-01-01 00:00"
        "  2100-02-01 00:00\n"
    )


def test_list_shows_what_is_tracked() -> None:
    site = make_site(
        SESSION_ID_GENERATOR=make_ids(FIRST, SECOND),
        SESSION_TRACK=("user_agent", "remote_addr"),
    )
    log_in(site, headers={"User-Agent": "Mozilla/5.0 (X11) " + "x" * 60})
    advance(site, 3600)
    log_in(site, headers={"User-Agent": ""}, environ_base={"REMOTE_ADDR": "::1"})
    lines = printed(site.app, "list").splitlines()
    assert lines[0].endswith("EXPIRES (UTC)     ADDRESS    BROWSER")
    assert lines[1].endswith("2100-02-01 01:00  ::1        -")
    agent = "(X11) " + "x" * 39 + "..."
    assert lines[2].endswith(f"2100-02-01 00:00  127.0.0.1  {agent}")
    lines = printed(site.app, "list", "--full").splitlines()
    assert lines[0].endswith("ADDRESS    USER AGENT")
    assert lines[2].startswith(f"{FIRST_HANDLE}  ada   ")
    assert lines[2].endswith("Mozilla/5.0 (X11) " + "x" * 60)


def test_the_name_of_a_browser_is_listed_and_shown_with_its_user_agent() -> None:
    site = make_site(
        SESSION_ID_GENERATOR=make_ids(FIRST), SESSION_TRACK=("user_agent",)
    )
    agent = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:133.0) Gecko/20100101"
    log_in(site, headers={"User-Agent": f"{agent} Firefox/133.0"})
    assert printed(site.app, "list").endswith("  Firefox 133 on Windows\n")
    assert printed(site.app, "show", FIRST_HANDLE).endswith(
        f"\nBrowser     Firefox 133 on Windows\nUser agent  {agent} Firefox/133.0\n"
    )
    (listed,) = read(site.app, "list")["sessions"]
    assert listed["meta"] == {"user_agent": f"{agent} Firefox/133.0"}


def test_list_prints_a_document(site: Site) -> None:
    site = make_site(
        SESSION_ID_GENERATOR=make_ids(FIRST), SESSION_TRACK=("remote_addr",)
    )
    log_in(site)
    assert printed(site.app, "list", "--json") == textwrap.dedent(
        f"""\
        {{
          "sessions": [
            {{
              "handle": "{FIRST_HANDLE}",
              "user": "ada",
              "created_at": "2100-01-01T00:00:00+00:00",
              "authenticated_at": "2100-01-01T00:00:00+00:00",
              "last_seen_at": "2100-01-01T00:00:00+00:00",
              "expires_at": "2100-02-01T00:00:00+00:00",
              "is_device_bound": false,
              "meta": {{
                "remote_addr": "127.0.0.1"
              }}
            }}
          ]
        }}
        """
    )
    (listed,) = read(site.app, "list")["sessions"]
    moment = dt.datetime.fromisoformat(listed["created_at"])
    assert moment.timestamp() == site.clock()


def test_list_begins_with_what_was_seen_last(site_anywhere: Site) -> None:
    site = site_anywhere
    if Capability.ITERATE not in site.backend.capabilities:
        assert failed(site.app, "list", code=3) == (
            "The 'cachelib' backend cannot list all sessions ('iterate'). Choose"
            " another 'SESSION_BACKEND' if you need it."
        )
        return
    browsers = []
    for user in ("ada", "bob", "eve"):
        browsers.append(log_in(site, user))
        advance(site, 60)
    browsers[0].read()

    def users(*args: str) -> list[str]:
        return [info["user"] for info in read(site.app, "list", *args)["sessions"]]

    assert users() == ["ada", "eve", "bob"]
    assert users("--limit", "2") == ["ada", "eve"]
    assert users("--limit", "99") == ["ada", "eve", "bob"]
    assert [line.split()[1] for line in printed(site.app, "list").splitlines()] == [
        "USER",
        "ada",
        "eve",
        "bob",
    ]


def test_list_shows_the_sessions_of_one_user(site_anywhere: Site) -> None:
    site = site_anywhere
    if Capability.USER_INDEX not in site.backend.capabilities:
        assert failed(site.app, "list", "--user", "ada", code=3) == (
            "The 'cachelib' backend cannot list the sessions of a user"
            " ('keys_of_user'). Choose another 'SESSION_BACKEND' if you need it."
        )
        return
    browsers = [log_in(site), log_in(site)]
    log_in(site, "bob")
    with site.backend.counting() as calls:
        document = read(site.app, "list", "--user", "ada")
    assert {info["handle"] for info in document["sessions"]} == {
        handle_of(browser) for browser in browsers
    }
    assert "iterate" not in calls
    assert len(read(site.app, "list", "--user", "ada", "--limit", "1")["sessions"]) == 1


def test_list_says_when_there_is_nothing(site: Site) -> None:
    assert printed(site.app, "list") == "There are no live sessions.\n"
    assert read(site.app, "list") == {"sessions": []}
    for user, shown in (("a\x1bb", r"'a\x1bb'"), ("", "''")):
        assert printed(site.app, "list", "--user", user) == (
            f"There are no live sessions of {shown}. A user is called what"
            " 'SESSION_USER_KEY' finds in the session, which may be a number.\n"
        )


EVIL = "\x1b[2J\x07\r\n\x9b31m\x7f\u202ereversed\u200b\ud800"


def has_raw_controls(text: str) -> bool:
    return any(not character.isprintable() and character != "\n" for character in text)


def test_what_visitors_send_does_not_reach_the_terminal_raw() -> None:
    # A backend that was filled by somebody else, to get all of it through.
    site = make_site(SESSION_TRACK=("user_agent",))
    log_in(site, EVIL.replace("\ud800", ""))
    (key,) = [key for key, _ in site.backend.iterate()]
    record = site.backend.load(key)
    assert record is not None
    site.backend.replace(
        key, dataclasses.replace(record, user=EVIL, meta={"user_agent": EVIL}), 1
    )
    handle = key[-64:]
    for args in (["list"], ["list", "--full"], ["show", handle]):
        text = printed(site.app, *args)
        assert not has_raw_controls(text)
        assert text.count(r"\x1b[2J\x07\r\n\x9b31m\x7f\u202ereversed\u200b\ud800") >= (
            0 if args == ["list"] else 2
        )
        assert not has_raw_controls(printed(site.app, args[0], *args[1:], "--json"))
    (listed,) = read(site.app, "list")["sessions"]
    assert listed["user"] == listed["meta"]["user_agent"] == EVIL
    result = run(site.app, "revoke", handle)
    assert result.exit_code == 0
    assert not has_raw_controls(result.stdout)


def test_columns_are_aligned_whatever_users_are_called(site: Site) -> None:
    users = ["ada", "李小龍", "e\u0301ve", "🙂", "x" * 50, "李" * 50]
    for user in users:
        log_in(site, user)

    def cells(text: str) -> int:
        wide = sum(character in "李小龍🙂" for character in text)
        return len(text) + wide - text.count("\u0301")

    lines = printed(site.app, "list").splitlines()
    assert {cells(line) for line in lines[1:]} == {cells(lines[1])}
    assert {cells(line[: line.index("2100-01-01")]) for line in lines[1:]} == {
        lines[0].index("LAST SEEN")
    }
    assert any(f"{'x' * 29}...  2100" in line for line in lines)
    assert any(f"{'李' * 14}...   2100" in line for line in lines)
    assert any("x" * 50 in line for line in printed(site.app, "list", "--full").split())


def test_a_terminal_that_cannot_show_a_name_is_no_reason_to_fail(
    tmp_path: Path,
) -> None:
    make_project(tmp_path)
    result = shell(tmp_path, "list", environment={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0, result.stderr
    assert r"\u674e" in result.stdout


# show


def test_show_prints_what_is_known() -> None:
    site = make_site(
        SESSION_ID_GENERATOR=make_ids(FIRST, SECOND),
        SESSION_TRACK=("user_agent", "remote_addr"),
    )
    log_in(site, headers={"User-Agent": "Mozilla/5.0 " + "x" * 90})
    advance(site, 1)
    site.browser().visit(lambda: session.update(n=1), headers={"User-Agent": ""})
    assert printed(site.app, "show", FIRST_HANDLE[:12]) == (
        f"Handle      {FIRST_HANDLE}\n"
        "User        ada\n"
        "Last seen   2100-01-01 00:00:00 UTC\n"
        "Created     2100-01-01 00:00:00 UTC\n"
        "Logged in   2100-01-01 00:00:00 UTC\n"
        "Expires     2100-02-01 00:00:00 UTC\n"
        "Address     127.0.0.1\n"
        f"User agent  Mozilla/5.0 {'x' * 90}\n"
    )
    shown = printed(site.app, "show", SECOND_HANDLE)
    assert "User       (nobody)\n" in shown
    assert "Logged in  -\n" in shown
    assert read(site.app, "show", SECOND_HANDLE)["authenticated_at"] is None
    assert read(site.app, "show", FIRST_HANDLE) == {
        "handle": FIRST_HANDLE,
        "user": "ada",
        "created_at": "2100-01-01T00:00:00+00:00",
        "authenticated_at": "2100-01-01T00:00:00+00:00",
        "last_seen_at": "2100-01-01T00:00:00+00:00",
        "expires_at": "2100-02-01T00:00:00+00:00",
        "is_device_bound": False,
        "meta": {
            "user_agent": f"Mozilla/5.0 {'x' * 90}",
            "remote_addr": "127.0.0.1",
        },
    }


def test_no_command_shows_what_a_session_holds_or_its_id(site: Site) -> None:
    browser = log_in(site)
    browser.set(pin="a value that is nobody's business")
    for args in (["list"], ["show", handle_of(browser)], ["info"]):
        for json_option in ([], ["--json"]):
            result = run(site.app, *args, *json_option)
            assert "business" not in result.stdout
            assert browser.id not in result.stdout


@pytest.mark.parametrize("command", ["show", "revoke"])
def test_a_session_that_is_not_there_exits_with_1(
    site_anywhere: Site, command: str
) -> None:
    site = site_anywhere
    text = (
        f"There is no session '{FIRST_HANDLE[:12]}...'. It may have ended, or have a"
        " new handle, as it gets when somebody logs in or out."
    )
    if Capability.ITERATE in site.backend.capabilities:
        text += " See: flask sessions list"
    assert failed(site.app, command, FIRST_HANDLE, code=1) == text


@pytest.mark.parametrize("command", ["show", "revoke"])
def test_a_handle_may_be_shortened(site_anywhere: Site, command: str) -> None:
    site = site_anywhere
    browsers = [log_in(site, user) for user in ("ada", "bob", "eve")]
    handle = handle_of(browsers[1])
    if Capability.ITERATE not in site.backend.capabilities:
        assert failed(site.app, command, handle[:12], code=3) == (
            "The 'cachelib' backend cannot list its sessions, so it cannot find one by"
            " how its handle begins. Give all 64 digits."
        )
        assert "bob" in printed(site.app, command, handle)
        return
    assert "bob" in printed(site.app, command, f" {handle[:8].upper()} ")
    assert failed(site.app, command, "0" * 8, code=1).startswith(
        "There is no session '00000000'."
    )


def test_a_whole_handle_costs_no_listing(site: Site) -> None:
    browser = log_in(site)
    with site.backend.counting() as calls:
        printed(site.app, "show", handle_of(browser))
    assert calls == {"load_many": 1}


def test_a_handle_that_stands_for_several_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = make_site()
    browser = log_in(site)
    record = site.backend.load(f"session:{handle_of(browser)}")
    assert record is not None
    handles = [f"0123456789abcd{number:050x}" for number in range(7)]
    for handle in handles:
        site.backend.create(f"session:{handle}", record)
    for command in ("show", "revoke"):
        result = run(site.app, command, "0123456789abcd")
        assert (result.exit_code, result.stdout) == (2, "")
        shown = ", ".join(handle[:18] for handle in handles[:5])
        assert result.stderr.splitlines()[-1] == (
            "Error: Invalid value for HANDLE: 7 sessions begin with 0123456789abcd,"
            f" such as {shown}. Give more digits."
        )
    assert site.backend.count() == 8


# revoke


def test_revoke_ends_a_session(site_anywhere: Site) -> None:
    site = site_anywhere
    browser, other, anonymous = log_in(site), log_in(site), site.browser()
    anonymous.set(n=1)
    handle = handle_of(browser)
    assert printed(site.app, "revoke", handle) == (
        f"Ended the session {handle[:12]} of 'ada'.\n"
    )
    assert browser.read() == {}
    assert other.read()["n"] == 1
    failed(site.app, "revoke", handle, code=1)
    handle = handle_of(anonymous)
    assert printed(site.app, "revoke", handle) == (
        f"Ended the session {handle[:12]}.\n"
    )
    assert anonymous.read() == {}


def test_revoke_follows_a_session_to_its_new_id(site: Site) -> None:
    browser = log_in(site)
    handle = handle_of(browser)
    browser.visit(lambda: typed_session.regenerate())
    assert printed(site.app, "revoke", handle) == (
        f"Ended the session {handle[:12]}.\n"
    )
    assert browser.read() == {}


def test_revoke_ends_all_sessions_of_a_user(site_anywhere: Site) -> None:
    site = site_anywhere
    if Capability.USER_INDEX not in site.backend.capabilities:
        for option in ([], ["--yes"]):
            text = failed(site.app, "revoke", "--user", "ada", *option, code=3)
            assert "cannot list the sessions of a user ('keys_of_user')" in text
        return
    browsers = [log_in(site) for _ in range(3)]
    other = log_in(site, "bob")
    assert printed(site.app, "revoke", "--user", "ada", "--yes") == (
        "Ended 3 sessions of 'ada'.\n"
    )
    assert not any(browser.read() for browser in browsers)
    assert other.read()["n"] == 1
    for option in ([], ["-y"]):
        assert failed(site.app, "revoke", "--user", "ada", *option, code=1) == (
            "There are no live sessions of 'ada'. A user is called what"
            " 'SESSION_USER_KEY' finds in the session, which may be a number."
        )


@pytest.mark.parametrize(
    ("answer", "is_ended"), [("y\n", True), ("n\n", False), ("\n", False), ("", False)]
)
def test_ending_several_sessions_asks_first(
    site: Site, answer: str, is_ended: bool
) -> None:
    log_in(site)
    log_in(site)
    result = run(site.app, "revoke", "--user", "ada", input=answer)
    assert result.stderr.startswith("End 2 sessions of 'ada'? [y/N]:")
    if is_ended:
        assert result.exit_code == 0
        assert result.stdout.endswith("Ended 2 sessions of 'ada'.\n")
        assert site.backend.count() == 0
    else:
        assert result.exit_code == 1
        hint = "" if answer else " Where nobody can answer, use --yes."
        assert result.stderr.endswith(f"\nError: No session was ended.{hint}\n")
        assert site.backend.count() == 2


def test_ending_one_session_asks_nothing(site: Site) -> None:
    log_in(site)
    assert printed(site.app, "revoke", "--user", "ada") == (
        "Ended 1 session of 'ada'.\n"
    )


def test_revoke_ends_all_sessions(site_anywhere: Site) -> None:
    site = site_anywhere
    if Capability.ITERATE not in site.backend.capabilities:
        text = failed(site.app, "revoke", "--all", "--yes", code=3)
        assert "cannot list all sessions ('iterate')" in text
        return
    browsers = [log_in(site), log_in(site), log_in(site, "bob")]
    result = run(site.app, "revoke", "--all", input="n\n")
    assert result.exit_code == 1
    assert result.stderr.startswith("End 3 sessions, of everybody? [y/N]:")
    assert result.stderr.endswith("Error: No session was ended.\n")
    assert all(browser.read() for browser in browsers)
    assert printed(site.app, "revoke", "--all", "--yes") == "Ended 3 sessions.\n"
    assert not any(browser.read() for browser in browsers)
    for option in ([], ["-y"]):
        text = failed(site.app, "revoke", "--all", *option, code=1)
        assert text == "There are no live sessions."


def test_ending_all_sessions_asks_even_if_there_is_one(site: Site) -> None:
    log_in(site)
    result = run(site.app, "revoke", "--all", input="y\n")
    assert result.stderr.startswith("End 1 session, of everybody? [y/N]:")
    assert result.stdout.endswith("Ended 1 session.\n")


def test_what_an_application_tells_of_a_session_is_shown() -> None:
    site = make_site(
        SESSION_ID_GENERATOR=make_ids(FIRST, SECOND), SESSION_TRACK=("remote_addr",)
    )
    browser = log_in(site)
    meta = {"name": "laptop\x1b[2J", "b\nc": "李小龍"}
    browser.visit(lambda: typed_session.meta.update(meta))
    advance(site, 1)
    site.browser().set(n=1)
    lines = printed(site.app, "list").splitlines()
    assert lines[0].endswith(
        "EXPIRES (UTC)     META                             ADDRESS"
    )
    assert lines[1].split()[-2:] == ["-", "127.0.0.1"]
    assert "  b\\nc=李小龍, name=laptop\\x1b[2J  127.0.0.1" in lines[2]
    shown = printed(site.app, "show", FIRST_HANDLE).splitlines()
    assert shown[-2:] == ["Meta b\\nc  李小龍", "Meta name  laptop\\x1b[2J"]
    assert read(site.app, "show", FIRST_HANDLE)["meta"] == {
        **meta,
        "remote_addr": "127.0.0.1",
    }


@pytest.mark.parametrize("user", ["", "7", "a'b", "--ada", "李小龍"])
def test_users_of_all_kinds_can_be_named(site: Site, user: str) -> None:
    log_in(site, user)
    assert printed(site.app, "revoke", f"--user={user}") == (
        f"Ended 1 session of {user!r}.\n"
    )


def test_a_record_of_a_newer_version_is_reported(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = log_in(site)

    def refuse(key: str) -> t.Any:
        raise RecordError("The record has format 9; this version knows 1.", "newer")

    monkeypatch.setattr(site.backend, "delete", refuse)
    assert failed(site.app, "revoke", handle_of(browser), code=1) == (
        "The record has format 9; this version knows 1. Use the version of"
        " flask-serversession that wrote it."
    )


# prune


def test_prune_says_how_many_it_deleted(site_anywhere: Site) -> None:
    site = site_anywhere
    if Capability.PRUNE not in site.backend.capabilities:
        name = site.backend.name
        assert printed(site.app, "prune") == (
            f"Nothing to do: {name!r} deletes expired sessions by itself.\n"
        )
        return
    assert printed(site.app, "prune") == "There were no expired sessions.\n"
    for _ in range(5):
        log_in(site)
    advance(site, 32 * 86400)
    with site.backend.counting() as calls:
        assert printed(site.app, "prune", "--batch", "2") == (
            "Deleted 5 expired sessions.\n"
        )
    assert calls["prune"] == 3
    log_in(site)
    advance(site, 32 * 86400)
    assert printed(site.app, "prune") == "Deleted 1 expired session.\n"


def test_a_backend_that_can_neither_prune_nor_expire_is_reported() -> None:
    backend = MemoryBackend(FakeClock())
    backend.capabilities = Capability.NONE  # type: ignore[misc]
    site = make_site({"SESSION_BACKEND": backend})
    assert failed(site.app, "prune", code=3) == (
        "The 'memory' backend cannot delete expired sessions on demand ('prune')."
        " Choose another 'SESSION_BACKEND' if you need it."
    )


# Progress


class Terminal:
    """A terminal that a command's stderr is connected to."""

    def __init__(self, project: Path) -> None:
        self._project = project

    def run(self, *args: str, columns: int | None = None) -> tuple[int, str, str]:
        """Give exit code, stdout and what was on the terminal.

        :param columns: How wide the terminal is, if it is to get stdout too.
        """
        pty = pytest.importorskip("pty", reason="needs terminals as Unix has them")
        controller, terminal = pty.openpty()
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "flask", "--app", "project", "sessions", *args],
                cwd=self._project,
                env={**environment(), "TERM": "xterm", "COLUMNS": str(columns or "")},
                stdout=subprocess.PIPE if columns is None else terminal,
                stderr=terminal,
                stdin=subprocess.DEVNULL,
            )
        finally:
            os.close(terminal)
        shown = b""
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                if not select.select([controller], [], [], 1)[0]:
                    continue
                try:
                    data = os.read(controller, 4096)
                except OSError:  # Linux: nobody has it open any more
                    break
                if not data:
                    break
                shown += data
            output = ""
            if process.stdout is not None:
                output = process.stdout.read().decode()
                process.stdout.close()
            return process.wait(60), output, shown.decode()
        finally:
            os.close(controller)


def environment() -> dict[str, str]:
    return {
        **{key: value for key, value in os.environ.items() if "FLASK" not in key},
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def make_project(
    folder: Path,
    *,
    expired: int = 0,
    live: int = 1,
    user_agent: str = "",
    user: str = "李",
    address: str = "192.0.2.7",
) -> None:
    """Write an application with the default backend, and give it sessions."""
    (folder / "project.py").write_text(
        textwrap.dedent(
            """
            from flask import Flask, session
            from flask_serversession import ServerSession

            def create_app():
                app = Flask(__name__)
                app.config.update(SECRET_KEY="0123456789abcdef")
                ServerSession(app)

                @app.get("/<user>")
                def log_in(user):
                    session["_user_id"] = user
                    return "hello"

                return app
            """
        )
    )
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        os.chown(folder, 65534, 65534)  # or commands would warn of what is root's
    app = Flask("project", instance_path=str(folder / "instance"))
    app.config.update(SECRET_KEY="0123456789abcdef")
    if user_agent:
        app.config.update(SESSION_TRACK=("user_agent", "remote_addr"))
    clock = FakeClock(time.time() - 40 * 86400)
    ServerSession(app, clock=clock)

    def fill(number: int) -> None:
        for _ in range(number):
            options: t.Any = {
                "headers": {"User-Agent": user_agent},
                "environ_base": {"REMOTE_ADDR": address},
            }
            with app.test_client().session_transaction(**options) as content:
                content["_user_id"] = user

    fill(expired)
    clock.advance(39 * 86400)
    fill(live)


def shell(
    folder: Path, *args: str, environment: t.Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "project", "sessions", *args],
        cwd=folder,
        env={**globals()["environment"](), **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_flask_runs_the_commands_with_the_default_backend(tmp_path: Path) -> None:
    make_project(tmp_path, expired=3, live=2)
    result = shell(tmp_path, "count")
    assert (result.returncode, result.stdout, result.stderr) == (0, "2\n", "")
    result = shell(tmp_path, "prune")
    assert (result.returncode, result.stdout, result.stderr) == (
        0,
        "Deleted 3 expired sessions.\n",
        "",
    )
    result = shell(tmp_path, "show", FIRST_HANDLE)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    result = shell(tmp_path, "revoke", "--user", "李")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("End 2 sessions of '李'? [y/N]:")
    result = shell(tmp_path, "revoke", "--user", "李", "--yes")
    assert (result.returncode, result.stdout) == (0, "Ended 2 sessions of '李'.\n")


def screen_of(shown: str) -> list[str]:
    """Give the lines that a terminal shows in the end."""
    lines = [""]
    column = 0
    for character in shown:
        if character == "\r":
            column = 0
        elif character == "\n":
            lines.append("")
        else:
            assert character.isprintable(), ascii(character)
            line = lines[-1].ljust(column)
            lines[-1] = line[:column] + character + line[column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def bars_of(shown: str) -> list[str]:
    return re.findall(r"\[([-#]+)\]", shown)


def test_on_a_terminal_a_bar_moves_while_sessions_are_pruned(tmp_path: Path) -> None:
    make_project(tmp_path, expired=30, live=1)
    code, output, shown = Terminal(tmp_path).run("prune", "--batch", "1")
    assert (code, output) == (0, "Deleted 30 expired sessions.\n")
    assert "Deleting expired sessions" in shown
    numbers = [int(number) for number in re.findall(r"\]  (\d+)", shown)]
    assert numbers == [*range(31), 30]
    bars = bars_of(shown)
    assert all(before != after for before, after in itertools.pairwise(bars))
    assert {len(bar) for bar in bars} == {20}
    assert screen_of(shown) == [""]


def test_on_a_terminal_a_bar_shows_the_progress_of_listing(tmp_path: Path) -> None:
    make_project(tmp_path, live=120)
    terminal = Terminal(tmp_path)
    code, output, shown = terminal.run("list", "--json")
    assert code == 0
    assert len(json.loads(output)["sessions"]) == 120
    assert "Reading sessions" in shown
    assert "100" in shown
    assert screen_of(shown) == [""]
    code, _, shown = terminal.run("show", "0" * 8)
    assert code == 1
    assert "Looking for the session" in shown
    assert screen_of(shown)[0].startswith("Error: There is no session '00000000'.")
    code, _, shown = terminal.run("list", "--limit", "1", columns=80)
    assert code == 0
    assert [line.split()[0] for line in screen_of(shown)[:-1]] == [
        "HANDLE",
        FIRST_OF.fullmatch(screen_of(shown)[1])[1],  # type: ignore[index]
    ]


FIRST_OF = re.compile(r"([0-9a-f]{12})  .*")
LONG_USER = "firstname.lastname@department.example.com"
LONG_ADDRESS = "2001:db8:85a3:8d3:1319:8a2e:370:7348"


def test_what_is_printed_fits_into_a_terminal(tmp_path: Path) -> None:
    agent = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
    make_project(
        tmp_path, live=2, user_agent=agent, user=LONG_USER, address=LONG_ADDRESS
    )
    terminal = Terminal(tmp_path)
    columns = ["USER", "LAST SEEN (UTC)"]
    for width, more, end in (
        (60, [], "20...348  Firef..."),
        (80, [], "2001:db...70:7348  Firefox 128"),
        (200, ["LOGGED IN (UTC)", "EXPIRES (UTC)"], "7348  Firefox 128 on Linux"),
    ):
        code, _, shown = terminal.run("list", columns=width)
        assert code == 0
        header, *rows, last = screen_of(shown)
        assert last == ""
        expected = ["HANDLE", *columns, *more, "ADDRESS", "BROWSER"]
        assert re.split(r" {2,}", header) == expected
        assert len(rows) == 2
        for row in rows:
            assert row.endswith(end)
            assert len(row) <= width
    code, _, shown = terminal.run("list", "--full", columns=80)
    assert shown.count(agent) == 2
    assert shown.count(LONG_USER) == shown.count(LONG_ADDRESS) == 2
    assert "LOGGED IN (UTC)" in shown
    code, _, shown = terminal.run("info", columns=80)
    assert code == 0
    before, _, after = shown.partition("SETTING ")
    assert "\r\n         " in before
    assert all(len(line) <= 80 for line in before.splitlines())
    _, found, hints = after.partition("Warnings")
    assert found
    assert all(len(line) <= 80 for line in hints.splitlines())


@pytest.mark.parametrize("args", [["list"], ["list", "--json"], ["count"], ["info"]])
def test_whoever_reads_the_beginning_only_is_no_failure(
    tmp_path: Path, args: list[str]
) -> None:
    make_project(tmp_path, live=3)
    reader, writer = os.pipe()
    os.close(reader)  # as "| head" does when it has enough
    try:
        result = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "project", "sessions", *args],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


# A backend that does not answer


@pytest.mark.parametrize(
    "args",
    [
        ["count"],
        ["list"],
        ["list", "--user", "ada"],
        ["show", FIRST_HANDLE],
        ["show", FIRST_HANDLE[:12]],
        ["revoke", FIRST_HANDLE],
        ["revoke", "--user", "ada"],
        ["revoke", "--user", "ada", "--yes"],
        ["prune"],
        ["init"],
    ],
    ids=" ".join,
)
def test_a_backend_that_does_not_answer_exits_with_4(
    site: Site, args: list[str]
) -> None:
    with site.backend.failing():
        text = failed(site.app, *args, code=4)
    assert re.fullmatch(
        r"The test lets '\w+' of the 'memory' backend fail\. Is it running, and is its"
        r" address right\? See: flask sessions info",
        text,
    )


@pytest.mark.parametrize(
    "config",
    [
        {
            "SESSION_BACKEND": "redis",
            "SESSION_REDIS_URL": "redis://:hush-hush@127.0.0.1:1/0",
        },
        {
            "SESSION_BACKEND": "sqlalchemy",
            "SESSION_SQLALCHEMY_URL": (
                "postgresql+psycopg://ada:hush-hush@127.0.0.1:1/shop"
            ),
        },
    ],
    ids=["redis", "postgresql"],
)
def test_a_server_that_is_down_is_reported_without_its_password(
    config: Config,
) -> None:
    app = make_app(**config)
    for args in (["count"], ["list", "--user", "ada"], ["init"]):
        text = failed(app, *args, code=4)
        assert "127.0.0.1:1" in text
        assert "hush" not in text
    for option in ([], ["--json"]):
        result = run(app, "info", *option)
        assert result.exit_code == 4
        assert "hush" not in result.output + result.stderr
        assert "127.0.0.1:1" in result.stderr
        assert result.stderr.count("\n") == 1
        assert "SESSION_KEY_PREFIX" in result.stdout
    document = json.loads(result.stdout)
    assert document["server"] is None
    assert "127.0.0.1:1" in document["error"]


def test_info_of_a_backend_that_does_not_answer_shows_the_settings(
    site: Site,
) -> None:
    with site.backend.failing():
        result = run(site.app, "info")
    assert result.exit_code == 4
    assert "\nServer   no answer\n" in result.stdout
    assert "SESSION_KEY_PREFIX" in result.stdout
    assert result.stderr.startswith("Error: The test lets 'create' of the")


# init


def test_init_creates_the_table(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sessions.db'}"
    site = make_site(
        {
            "SESSION_BACKEND": "sqlalchemy",
            "SESSION_SQLALCHEMY_URL": url,
            "SESSION_SQLALCHEMY_CREATE_TABLE": False,
        }
    )
    text = failed(site.app, "count", code=4)
    assert text.startswith("The table 'server_sessions' does not exist;")
    assert "flask sessions init" in text
    for _ in range(2):
        assert printed(site.app, "init") == (
            "The table 'server_sessions' and its indexes are there; what was missing"
            " was created.\n"
        )
        assert printed(site.app, "count") == "0\n"


def test_init_creates_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "instance" / "sessions"
    app = Flask("shop", instance_path=str(folder.parent))
    app.config.update(SECRET_KEY="a secret")
    ServerSession(app)
    assert not folder.exists()
    assert run(app, "init").stdout == f"Created the folder {str(folder)!r}.\n"
    assert folder.is_dir()
    if sys.platform != "win32":
        assert folder.stat().st_mode & 0o777 == 0o700
    again = run(app, "init")
    assert again.stdout == f"Nothing to do: the folder {str(folder)!r} is there.\n"
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    # With nobody to give it to, it is said that it was not given away.
    assert again.stderr == is_root * (
        "The folder belongs to root. If the server is run by another user, it cannot"
        f" store sessions there; give it to that user: chown -R USER {folder}\n"
    )
    assert printed(app, "count") == "0\n"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root"
)
def test_init_as_root_gives_the_folder_to_the_owner_of_the_one_above(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "instance" / "sessions"
    folder.parent.mkdir()
    os.chown(folder.parent, 65534, 65534)
    app = make_app(SESSION_BACKEND="filesystem", SESSION_FILESYSTEM_PATH=folder)
    assert printed(app, "init") == (
        f"Created the folder {str(folder)!r} and gave it to 'nobody', who owns the"
        " folder above it.\n"
    )
    assert {entry.stat().st_uid for entry in (folder, *folder.rglob("*"))} == {65534}
    assert printed(app, "init") == (
        f"Nothing to do: the folder {str(folder)!r} is there.\n"
    )


def test_init_says_when_there_is_nothing_to_do(site_anywhere: Site) -> None:
    site = site_anywhere
    text = printed(site.app, "init")
    if site.backend.name == "sqlalchemy":
        table = site.backend.table.name
        assert text.startswith(f"The table {table!r} and its indexes are there;")
    else:
        name = site.backend.name
        assert text == f"Nothing to do: the {name!r} backend needs no preparation.\n"


def test_init_tries_the_backend_and_leaves_nothing_behind(
    site_anywhere: Site,
) -> None:
    site = site_anywhere
    with site.backend.counting() as calls:
        printed(site.app, "init")
    assert {"create", "load", "replace", "touch", "delete"} <= {*calls}
    if Capability.COUNT in site.backend.capabilities:
        assert site.backend.count() == 0


def test_init_notices_a_backend_that_keeps_nothing() -> None:
    from cachelib import NullCache

    site = make_site({"SESSION_BACKEND": CachelibBackend(NullCache())})
    assert failed(site.app, "init", code=4).startswith(
        "The 'cachelib' backend took a record, but does not give it back. These"
        " failed as well: 'delete', 'replace', 'touch'."
    )


def test_init_notices_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    site = make_site(
        {
            "SESSION_BACKEND": "filesystem",
            "SESSION_FILESYSTEM_PATH": str(tmp_path / "file" / "sessions"),
        }
    )
    assert "Not a directory" in failed(site.app, "init", code=4)


# check


def test_check_tries_what_requests_need_and_leaves_nothing_behind(
    site_anywhere: Site,
) -> None:
    site = site_anywhere
    log_in(site)
    has_index = Capability.USER_INDEX in site.backend.capabilities
    with site.backend.counting() as calls:
        text = printed(site.app, "check")
    assert text == (
        f"The {site.backend.name!r} backend works: a session was written,"
        f"{' listed,' * has_index} changed, touched and deleted.\n"
    )
    expected = {"create": 1, "load": 3, "replace": 2, "touch": 1, "delete": 1}
    assert calls == expected | ({"keys_of_user": 2} if has_index else {})
    if Capability.COUNT in site.backend.capabilities:
        assert site.backend.count() == 1
    document = read(site.app, "check")
    assert document["backend"] == site.backend.name
    assert document["works"] is True
    assert {step["error"] for step in document["steps"]} == {None}
    assert {step["operation"] for step in document["steps"]} == {*calls}


OPERATIONS = ("create", "load", "keys_of_user", "replace", "touch", "delete")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_check_names_what_does_not_work(site: Site, operation: str) -> None:
    error = BackendError(f"The role lacks {operation!r}.", operation=operation)
    with site.backend.failing(operation, error=error):
        text = failed(site.app, "check", code=4)
        result = run(site.app, "check", "--json")
    assert text.startswith(f"The role lacks {operation!r}.")
    assert "Is it running" not in text
    document = json.loads(result.stdout)
    assert result.exit_code == 4
    assert document["works"] is False
    assert {step["operation"] for step in document["steps"] if step["error"]} == (
        {operation}
    )
    # Should deleting it fail, it is there for no longer than that.
    advance(site, 120)
    assert site.backend.count() == 0


def test_check_finds_all_that_is_lacking_at_once(site: Site) -> None:
    error = BackendError("The role may only insert.")
    with site.backend.failing("replace", "touch", "delete", error=error):
        assert failed(site.app, "check", code=4) == (
            "The role may only insert. These failed as well: 'delete', 'touch'. See:"
            " flask sessions check --json"
        )


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"create": False}, "says that there is a record under a key that is new"),
        ({"load": None}, "took a record, but does not give it back"),
        ({"keys_of_user": []}, "does not list a record among those of its user"),
        ({"replace": Gone()}, "did not change a record that nobody else has changed"),
        (
            {"replace": Replaced(2)},
            "did not notice that another request has changed a record",
        ),
        ({"touch": False}, "did not touch a record that is there"),
        ({"touch": True}, "did not prolong the record that it touched"),
        ({"delete": False}, "did not delete a record that is there"),
        ({"delete": True}, "gives back a record that was deleted"),
        ({"delete": True}, "lists a record that was deleted"),
    ],
)
def test_check_notices_a_backend_that_only_pretends(
    wrong: dict[str, t.Any], text: str
) -> None:
    backend = MemoryBackend(FakeClock())
    for name, answer in wrong.items():
        setattr(backend, name, lambda *_, answer=answer: answer)
    site = make_site({"SESSION_BACKEND": backend})
    result = run(site.app, "check", "--json")
    assert result.exit_code == 4
    errors = {step["error"] for step in json.loads(result.stdout)["steps"]}
    assert f"The 'memory' backend {text}." in errors


def test_check_waits_once_for_a_backend_that_does_not_answer(site: Site) -> None:
    for operation in OPERATIONS:
        with site.backend.failing(operation), site.backend.counting() as calls:
            text = failed(site.app, "check", code=4)
        assert "Is it running, and is its address right?" in text
        assert calls[operation] == 1
        assert [*calls][-1] == operation


def test_check_has_nothing_to_do_with_the_breaker(site: Site) -> None:
    browser = log_in(site)
    with site.backend.failing():
        for _ in range(20):
            failed(site.app, "check", code=4)
    # Requests have not been told to wait.
    assert browser.visit(lambda: str(session["n"])).text == "1"
    with site.backend.failing():
        for _ in range(20):
            browser.visit(lambda: str(session["n"]))
    # And that they are does not keep the command from asking.
    assert "works" in printed(site.app, "check")


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("evalsha", "'replace'"),
        ("set", "'create'"),
        ("zrange", "'keys_of_user'"),
        ("getrange", "'keys_of_user'"),
        ("unlink", "'delete'"),
        ("pexpire", "'touch'"),
        ("setrange", "'replace'"),
        ("zadd", "'create'"),
    ],
)
def test_check_names_the_command_that_a_server_does_not_allow(
    own_valkey: ValkeyServer, command: str, names: str
) -> None:
    import redis

    with redis.Redis.from_url(own_valkey.url) as client:
        client.script_flush()
        client.execute_command(
            *("ACL", "SETUSER", "app", "reset", "on", ">hush-hush", "~*"),
            *("+@all", f"-{command}"),
        )
    app = make_app(
        SESSION_BACKEND="redis",
        SESSION_REDIS_URL=f"redis://app:hush-hush@{own_valkey.address}",
    )
    for name in ("check", "init"):
        text = failed(app, name, code=4)
        # Inside of a script the answer has another code.
        assert re.search(f"(does not permit|refused) {names}", text)
        assert f"'{command}' command" in text or "script" in text
        assert "Let its ACL allow" in text
        assert "Is it running" not in text
        assert "hush" not in text
    assert run(app, "info").exit_code == 4


@pytest.fixture(scope="module")
def own_valkey(run_server: t.Any) -> Iterator[ValkeyServer]:
    with run_server(ValkeyServer) as server:
        yield server


@pytest.mark.parametrize(
    ("privileges", "operation"),
    [
        ("SELECT, INSERT, UPDATE", "delete"),
        ("SELECT, INSERT, DELETE", "replace"),
        ("SELECT, UPDATE, DELETE", "create"),
    ],
)
def test_check_names_the_privilege_that_a_role_lacks(
    get_server: Callable[[type[PostgresServer]], PostgresServer],
    privileges: str,
    operation: str,
) -> None:
    import sqlalchemy as sa

    server = get_server(PostgresServer)
    table, role = f"of_{operation}", f"lacks_{operation}"
    owner = make_app(
        SESSION_BACKEND="sqlalchemy",
        SESSION_SQLALCHEMY_URL=server.url,
        SESSION_SQLALCHEMY_TABLE=table,
    )
    printed(owner, "init")
    engine = sa.create_engine(server.url)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP ROLE IF EXISTS {role}")
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
        connection.exec_driver_sql(f"GRANT {privileges} ON {table} TO {role}")
    url = sa.make_url(server.url).set(username=role)
    app = make_app(
        SESSION_BACKEND="sqlalchemy",
        SESSION_SQLALCHEMY_URL=url.render_as_string(),
        SESSION_SQLALCHEMY_TABLE=table,
        SESSION_SQLALCHEMY_CREATE_TABLE=False,
    )
    try:
        for name in ("check", "init"):
            text = failed(app, name, code=4)
            assert text.startswith(f"The 'sqlalchemy' backend could not '{operation}':")
            assert f"permission denied for table {table}" in text
            assert "Grant SELECT, INSERT, UPDATE and DELETE" in text
        assert run(app, "info").exit_code == 4
        with engine.begin() as connection:
            connection.exec_driver_sql(
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}"
            )
        # It may not create tables, and needs not.
        for name in ("check", "init", "info"):
            printed(app, name)
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role}")
            connection.exec_driver_sql(f"DROP ROLE {role}")
            connection.exec_driver_sql(f"DROP TABLE {table}")
        engine.dispose()


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Give a folder that others may enter, as the one that pytest gives is not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Run as nobody if we are root, whom no mode stops."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs modes")
@pytest.mark.parametrize("backend", ["filesystem", "sqlalchemy"])
def test_no_command_says_that_a_folder_works_that_may_not_be_written(
    public_folder: Path, backend: str
) -> None:
    folder = public_folder / "instance"
    folder.mkdir()
    folder.chmod(0o555)
    app = make_app(
        SESSION_BACKEND=backend,
        **(
            {"SESSION_FILESYSTEM_PATH": folder / "sessions"}
            if backend == "filesystem"
            else {"SESSION_SQLALCHEMY_URL": f"sqlite:///{folder / 'sessions.db'}"}
        ),
    )
    with without_privileges():
        for name in ("check", "init"):
            text = failed(app, name, code=4)
            assert "Is it running" not in text
        assert run(app, "info").exit_code == 4
        with (
            pytest.raises(BackendUnavailableError),
            app.test_client().session_transaction() as content,
        ):
            content["n"] = 1
    if backend == "filesystem":
        assert ": Permission denied. Let the user " in text
    else:
        assert "unable to open database file" in text
        assert "Let the user who runs this write" in text


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root"
)
def test_root_is_told_what_the_server_could_not_use(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    app = make_app(SESSION_BACKEND="filesystem", SESSION_FILESYSTEM_PATH=folder)
    hint = "belongs to root. If the server is run by another user"
    for name in ("check", "init"):
        result = run(app, name)
        assert result.exit_code == 0
        assert result.stderr.startswith(f"The folder {hint}")
    assert warnings_of(app)["SESSION_FILESYSTEM_PATH"].startswith(hint)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root"
)
def test_the_server_can_use_the_sqlite_file_that_root_has_created(
    public_folder: Path,
) -> None:
    os.chown(public_folder, 65534, 65534)
    file = public_folder / "sessions.db"

    def make() -> Flask:
        return make_app(
            SESSION_BACKEND="sqlalchemy", SESSION_SQLALCHEMY_URL=f"sqlite:///{file}"
        )

    root = make()
    printed(root, "init")
    # While root has it open, too.
    assert {entry.stat().st_uid for entry in public_folder.iterdir()} == {65534}
    with without_privileges():
        printed(make(), "check")


# info


def values_of(app: Flask) -> dict[str, tuple[t.Any, str]]:
    settings = read(app, "info")["settings"]
    return {key: (row["value"], row["origin"]) for key, row in settings.items()}


def test_info_prints_backend_and_settings() -> None:
    app = make_app(SESSION_IDLE_TIMEOUT=dt.timedelta(hours=1))
    top, settings = printed(app, "info").split("\n\n")
    assert top == (
        "Backend  memory\n"
        "Server   -\n"
        "It can   list the sessions of a user, list all sessions, count them, delete"
        " expired ones on demand, delete expired ones by itself, compare and swap"
    )
    assert settings == textwrap.dedent(
        """\
        SETTING                          VALUE                    ORIGIN
        SECRET_KEY                       (1 secret, not shown)    app.config
        SECRET_KEY_FALLBACKS             None                     default
        PERMANENT_SESSION_LIFETIME       31 days, 0:00:00         default
        SESSION_REFRESH_EACH_REQUEST     True                     default
        SESSION_COOKIE_NAME              'session'                default
        SESSION_COOKIE_DOMAIN            None                     default
        SESSION_COOKIE_PATH              None                     default
        SESSION_COOKIE_HTTPONLY          True                     default
        SESSION_COOKIE_SECURE            True                     app.config
        SESSION_COOKIE_SAMESITE          'Lax'                    app.config
        SESSION_COOKIE_PARTITIONED       False                    default
        SESSION_BACKEND                  'memory'                 app.config
        SESSION_KEY_PREFIX               'session:'               default
        SESSION_SERIALIZER               'msgpack'                default
        SESSION_ENCRYPTION_KEY           None                     default
        SESSION_MAX_SIZE                 1048576                  default
        SESSION_SECRET                   None                     default
        SESSION_ID_GENERATOR             None                     default
        SESSION_RESAVE                   False                    default
        SESSION_SAVE_UNINITIALIZED       False                    default
        SESSION_SAVE_ON_ERROR            True                     default
        SESSION_PERMANENT                False                    default
        SESSION_CONFLICT                 'merge'                  default
        SESSION_ON_LOST                  'drop'                   default
        SESSION_ON_BACKEND_ERROR         'raise'                  default
        SESSION_IDLE_TIMEOUT             1:00:00                  app.config
        SESSION_ABSOLUTE_TIMEOUT         None                     default
        SESSION_RENEWAL_INTERVAL         None                     default
        SESSION_ROTATION_GRACE           0:00:10                  default
        SESSION_TOUCH_INTERVAL           0:01:00                  default
        SESSION_CLEANUP_INTERVAL         0:05:00                  default
        SESSION_CLEANUP_BATCH            500                      default
        SESSION_USER_KEY                 ['_user_id', 'user_id']  default
        SESSION_REGENERATE_ON_LOGIN      True                     default
        SESSION_MAX_PER_USER             None                     default
        SESSION_TRACK                    []                       default
        SESSION_DEVICE_BOUND             False                    default
        SESSION_DEVICE_BOUND_LIFETIME    0:10:00                  default
        SESSION_DEVICE_BOUND_PATH        '/_session/device'       default
        SESSION_DEVICE_BOUND_INITIATORS  []                       default
        """
    )


def test_info_shows_what_is_in_force_and_what_came_too_late() -> None:
    app = make_app(SESSION_MAX_SIZE=10)
    app.config.update(SESSION_MAX_SIZE=20, SESSION_TRACK=("user_agent",))
    lines = printed(app, "info").splitlines()
    later = "(a later one is not in force)"
    for key, value, origin in (
        ("SESSION_MAX_SIZE", "10", "app.config"),
        ("SESSION_TRACK", "[]", "default"),
    ):
        (line,) = [line for line in lines if line.startswith(key)]
        assert line.split(maxsplit=2) == [key, value, f"{origin} {later}"]
    document = read(app, "info")
    late = {"value": [], "origin": "default", "late": True}
    assert document["settings"]["SESSION_TRACK"] == late
    assert [found["setting"] for found in document["warnings"]] == [
        "SESSION_MAX_SIZE",
        "SESSION_TRACK",
    ]
    assert document["warnings"][0]["message"] == (
        "was set or changed after ServerSession(app) or init_app(app), and is not in"
        " force. Set it before."
    )


def test_info_prints_a_document() -> None:
    app = make_app(SESSION_IDLE_TIMEOUT=dt.timedelta(hours=1), SESSION_TRACK=[])
    document = read(app, "info")
    assert document["backend"] == "memory"
    assert document["server"] is None
    assert document["error"] is None
    assert document["warnings"] == []
    assert set(document["capabilities"]) == {
        "compare_and_swap",
        "expires",
        "user_index",
        "iterate",
        "count",
        "prune",
    }
    settings = document["settings"]
    assert settings["SESSION_IDLE_TIMEOUT"] == {"value": 3600, "origin": "app.config"}
    assert settings["SESSION_TRACK"] == {"value": [], "origin": "app.config"}
    assert settings["SESSION_CONFLICT"] == {"value": "merge", "origin": "default"}
    assert settings["PERMANENT_SESSION_LIFETIME"]["value"] == 31 * 86400


def test_info_has_every_key_of_the_backend_in_use() -> None:
    shown = values_of(make_app())
    others = ("FILESYSTEM", "REDIS", "SQLALCHEMY", "CACHELIB", "MIGRATE")
    expected = {
        key for key in KEYS if not key.removeprefix("SESSION_").startswith(others)
    }
    assert {key for key in shown if key in KEYS} == expected
    # A key of another backend is a mistake that should be seen.
    shown = values_of(make_app(SESSION_REDIS_URL="redis://x:y@localhost/0"))
    assert shown["SESSION_REDIS_URL"] == ("redis://***@localhost/0", "app.config")


def test_info_shows_what_is_in_force_and_not_what_the_configuration_says_now() -> None:
    app = make_app()
    app.config.update(SESSION_MAX_SIZE=5)
    assert values_of(app)["SESSION_MAX_SIZE"][0] == 1024 * 1024


def test_info_shows_the_folder_that_is_used(tmp_path: Path) -> None:
    shown = values_of(make_app(SESSION_BACKEND="filesystem"))
    assert shown["SESSION_FILESYSTEM_PATH"] == (
        str(INSTANCE / "sessions"),
        "default",
    )
    shown = values_of(
        make_app(SESSION_BACKEND="filesystem", SESSION_FILESYSTEM_PATH=tmp_path)
    )
    assert shown["SESSION_FILESYSTEM_PATH"] == (str(tmp_path), "app.config")


def test_info_shows_the_type_of_objects_and_nothing_else() -> None:
    class Own(MemoryBackend):
        def __repr__(self) -> str:
            return "hush-hush"

    app = make_app(SESSION_BACKEND=Own(), SESSION_ID_GENERATOR=lambda: "hush-hush")
    assert "hush" not in printed(app, "info")
    shown = values_of(app)
    name = f"{__name__}.{Own.__qualname__}"
    assert shown["SESSION_BACKEND"][0] == f"(an object of type {name})"
    assert shown["SESSION_ID_GENERATOR"][0] == "(an object of type builtins.function)"
    assert f"(an object of type {name})  app.config" in printed(app, "info")


def test_info_works_with_any_backend(site_anywhere: Site) -> None:
    site = site_anywhere
    assert read(site.app, "info")["backend"] == site.backend.name
    if Capability.COUNT in site.backend.capabilities:
        assert site.backend.count() == 0


class Talking(MemoryBackend):
    def server_version(self) -> str:
        return "Talker 1.2\x1b[1m"


class Silent(MemoryBackend):
    def server_version(self) -> str:
        raise BackendUnavailableError("It may not tell.")


def test_info_shows_the_version_of_the_server_where_the_backend_can_tell() -> None:
    app = make_app(SESSION_BACKEND=Talking())
    assert "\nServer   Talker 1.2\\x1b[1m\n" in printed(app, "info")
    assert read(app, "info")["server"] == "Talker 1.2\x1b[1m"


def test_a_server_that_may_not_tell_its_version_is_no_error() -> None:
    document = read(make_app(SESSION_BACKEND=Silent()), "info")
    assert (document["server"], document["error"]) == (None, None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("valkey", r"Valkey \d+\.\d+\.\d+"),
        ("redis", r"Redis \d+\.\d+\.\d+"),
        ("sqlite", r"SQLite 3\.\d+(\.\d+)?"),
        ("postgresql", r"PostgreSQL \d+\.\d+"),
        ("mariadb", r"MariaDB \d+\.\d+\.\d+"),
    ],
)
def test_info_shows_the_version_of_a_real_server(
    make_backend_config: Callable[[str], Config], name: str, expected: str
) -> None:
    server = read(make_app(**make_backend_config(name)), "info")["server"]
    assert server is not None
    assert re.fullmatch(expected, server)


SECRETS = {
    "SECRET_KEY": "hush-secret-key-0123456789",
    "SECRET_KEY_FALLBACKS": ["hush-fallback-0123456789", "hush-fallback-2-0123456789"],
    "SESSION_SECRET": ["hush-session-0123456789", b"hush-session-2-0123456789"],
    "SESSION_ENCRYPTION_KEY": b"hush-hush-hush-hush-hush-hush-hu",
}


def test_info_never_shows_a_secret() -> None:
    app = make_app(**SECRETS)
    text = printed(app, "info")
    document = printed(app, "info", "--json")
    for output in (text, document):
        assert "hush" not in output
    shown = values_of(app)
    assert shown["SECRET_KEY"][0] == "(1 secret, not shown)"
    assert shown["SECRET_KEY_FALLBACKS"][0] == "(2 secrets, not shown)"
    assert shown["SESSION_SECRET"][0] == "(2 secrets, not shown)"
    assert shown["SESSION_ENCRYPTION_KEY"][0] == "(1 secret, not shown)"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:hush@localhost:6379/0", "redis://***@localhost:6379/0"),
        ("redis://ada:hush@localhost/0", "redis://***@localhost/0"),
        ("redis://hush-token@localhost/0", "redis://***@localhost/0"),
        ("redis://:hu@sh@localhost/0", "redis://***@localhost/0"),
        ("redis://:hu/sh@localhost/0", "redis://***@localhost/0"),
        ("redis://:hu?sh@localhost/0", "redis://***@localhost/0"),
        ("redis://:hu#sh@localhost/0", "redis://***@localhost/0"),
        ("redis://localhost/0#hush", "redis://***"),
        (
            "redis+sentinel://:hush@a:1,b:2/main/0?sentinel_password=hush&socket_timeout=1",
            "redis+sentinel://***@a:1,b:2/main/0?sentinel_password=***&socket_timeout=1",
        ),
        (
            "redis://localhost/0?password=hu@sh&socket_timeout=0.5",
            "redis://***@sh&socket_timeout=0.5",
        ),
        (
            "redis://localhost?socket_timeout=hush%20",
            "redis://localhost?socket_timeout=***",
        ),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("sqlite:////srv/shop/sessions.db", "sqlite:////srv/shop/sessions.db"),
        (
            "postgresql+psycopg://ada:hush@db/shop?sslmode=require&sslkey=hush",
            "postgresql+psycopg://***@db/shop?sslmode=require&sslkey=***",
        ),
        (
            "mysql+pymysql://ada:***@db/shop?charset=utf8",
            "mysql+pymysql://***@db/shop?charset=utf8",
        ),
        ("mssql:///?odbc_connect=PWD%3Dhush", "mssql:///?odbc_connect=***"),
        ("hush", "***"),
        ("ada:hush@db", "***"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    if "sh&" not in shown:
        assert "hush" not in shown
    assert mask_url(url) == shown


def test_info_masks_a_url_object(tmp_path: Path) -> None:
    import sqlalchemy as sa

    url = sa.URL.create(
        "postgresql+psycopg", "ada", "hush-hush", "127.0.0.1", 1, "shop"
    )
    app = make_app(SESSION_BACKEND="sqlalchemy", SESSION_SQLALCHEMY_URL=url)
    result = run(app, "info", "--json")
    settings = json.loads(result.stdout)["settings"]
    assert settings["SESSION_SQLALCHEMY_URL"]["value"] == (
        "postgresql+psycopg://***@127.0.0.1:1/shop"
    )


# info: warnings


def warnings_of(app: Flask) -> dict[str, str]:
    warnings = read(app, "info")["warnings"]
    return {warning["setting"]: warning["message"] for warning in warnings}


def test_a_good_configuration_has_no_warnings() -> None:
    app = make_app(SESSION_BACKEND="filesystem")
    app.debug = False
    assert warnings_of(app) == {}
    assert "Warnings" not in printed(app, "info")


def test_warnings_are_listed_below_the_settings() -> None:
    app = make_app(SESSION_COOKIE_SAMESITE=None)
    assert printed(app, "info").endswith(
        "\n\nWarnings\n- SESSION_COOKIE_SAMESITE is not set, and browsers differ in"
        " what other sites can do in a visitor's name then. Set it to 'Lax'.\n"
    )


@pytest.mark.parametrize(
    ("config", "key", "text"),
    [
        ({"SESSION_COOKIE_SECURE": False}, "SESSION_COOKIE_SECURE", "is off"),
        ({"SESSION_COOKIE_SAMESITE": None}, "SESSION_COOKIE_SAMESITE", "is not set"),
        ({"SESSION_COOKIE_HTTPONLY": False}, "SESSION_COOKIE_HTTPONLY", "is off"),
        ({"SECRET_KEY": None}, "SECRET_KEY", "is not set, so there are no sessions"),
        ({"SECRET_KEY": "x" * 15}, "SECRET_KEY", "has fewer than 16 characters"),
        ({"SECRET_KEY": b"x" * 15}, "SECRET_KEY", "has fewer than 16 characters"),
        (
            {"SECRET_KEY_FALLBACKS": ["x" * 16, "x"]},
            "SECRET_KEY_FALLBACKS",
            "has fewer than 16 characters",
        ),
        (
            {"SESSION_SECRET": "x" * 15},
            "SESSION_SECRET",
            "has fewer than 16 characters",
        ),
        (
            {"SESSION_CLEANUP_INTERVAL": 0},
            "SESSION_CLEANUP_INTERVAL",
            "is 0, and the 'filesystem' backend does not delete expired sessions by"
            " itself. Run now and then: flask sessions prune",
        ),
        (
            {"SESSION_REGENERATE_ON_LOGIN": False},
            "SESSION_REGENERATE_ON_LOGIN",
            "is False: unless the application calls session.regenerate()",
        ),
        ({"SESSION_BACKEND": "memory"}, "SESSION_BACKEND", "is 'memory', which is by"),
    ],
)
def test_a_setting_that_is_probably_a_mistake_is_warned_of(
    config: Config, key: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    app = make_app(**{"SESSION_BACKEND": "filesystem", **config})
    app.debug = False
    found = warnings_of(app)
    assert list(found) == [key]
    assert found[key].startswith(text)
    assert "xxx" not in found[key]


@pytest.mark.parametrize(
    "config",
    [
        {"SESSION_COOKIE_SECURE": "auto"},
        {"SESSION_COOKIE_SAMESITE": "auto"},
        {"SECRET_KEY": "short", "SESSION_SECRET": "x" * 16},
        {"SECRET_KEY": "x" * 16},
        {"SESSION_BACKEND": MemoryBackend(), "debug": True},
        {"SESSION_COOKIE_SECURE": False, "debug": True},
    ],
)
def test_what_is_no_mistake_is_not_warned_of(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    config = dict(config)
    debug = config.pop("debug", False)
    app = make_app(**{"SESSION_BACKEND": "filesystem", **config})
    app.debug = debug
    assert warnings_of(app) == {}


def test_several_workers_with_a_memory_each_are_warned_of_in_debug_mode_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    assert "other workers" in warnings_of(make_app())["SESSION_BACKEND"]


def test_engines_that_expire_by_themselves_need_no_cleanup() -> None:
    assert warnings_of(make_app(SESSION_CLEANUP_INTERVAL=0)) == {}


def test_a_cache_is_warned_of() -> None:
    with pytest.warns(ConfigurationWarning, match="threshold of 500"):
        app = make_app(
            SESSION_BACKEND="cachelib", SESSION_CACHELIB=SimpleCache(threshold=500)
        )
    found = warnings_of(app)
    assert found["SESSION_CACHELIB"].startswith(
        "is a SimpleCache with a threshold of 500: beyond 500 sessions it throws live"
        " ones away"
    )
    assert found["SESSION_BACKEND"].startswith(
        "is 'cachelib', which cannot compare and swap: "
    )


def test_another_session_interface_is_warned_of() -> None:
    app = make_app()
    app.session_interface = SecureCookieSessionInterface()
    assert warnings_of(app) == {
        "session_interface": (
            "is a flask.sessions.SecureCookieSessionInterface, which took the place of"
            " ServerSession, so that nothing here has any effect. Remove one of the"
            " two."
        )
    }


# On real servers


def test_the_commands_work_on_a_real_server_from_one_end_to_the_other(
    make_backend_config: Callable[[str], Config],
) -> None:
    for name in ("valkey", "postgresql", "sqlite"):
        app = make_app(**make_backend_config(name))
        clients = [app.test_client() for _ in range(3)]
        printed(app, "init")
        for client, user in zip(clients, ["ada", "ada", "bob"], strict=True):
            with client.session_transaction() as content:
                content["_user_id"] = user
        assert printed(app, "count") == "3\n"
        listed = read(app, "list")["sessions"]
        assert sorted(info["user"] for info in listed) == ["ada", "ada", "bob"]
        bob = next(info for info in listed if info["user"] == "bob")
        assert read(app, "show", bob["handle"][:12]) == bob
        assert "of 'bob'" in printed(app, "revoke", bob["handle"][:12])
        assert printed(app, "revoke", "--user", "ada", "--yes") == (
            "Ended 2 sessions of 'ada'.\n"
        )
        assert printed(app, "count") == "0\n"


def test_a_third_partys_backend_needs_nothing_for_the_commands() -> None:
    class Bare(Backend):
        """The five operations, and nothing else."""

        def __init__(self) -> None:
            inner = MemoryBackend(FakeClock())
            self.load = inner.load  # type: ignore[method-assign]
            self.create = inner.create  # type: ignore[method-assign]
            self.replace = inner.replace  # type: ignore[method-assign]
            self.delete = inner.delete  # type: ignore[method-assign]
            self.touch = inner.touch  # type: ignore[method-assign]

        load = create = replace = delete = touch = t.cast(t.Any, None)

    site = make_site({"SESSION_BACKEND": Bare()})
    browser = log_in(site)
    assert printed(site.app, "init") == (
        "Nothing to do: the 'custom' backend needs no preparation.\n"
    )
    assert "It can   -\n" in printed(site.app, "info")
    assert "ada" in printed(site.app, "show", handle_of(browser))
    assert "of 'ada'" in printed(site.app, "revoke", handle_of(browser))
    for args in (["count"], ["list"], ["prune"], ["revoke", "--user", "ada"]):
        assert failed(site.app, *args, code=3).startswith("The 'custom' backend ")


def test_a_user_is_named_as_the_list_shows_them(site: Site) -> None:
    for name in ("x" * 300, "sha256:" + "0" * 64):
        for _ in range(2):
            log_in(site, name)
        shown = read(site.app, "list", "--user", name)["sessions"][0]["user"]
        assert shown.startswith("sha256:")
        assert shown != name
        assert len(read(site.app, "list", "--user", shown)["sessions"]) == 2
        assert "2 sessions" in printed(site.app, "revoke", "--user", shown, "--yes")
