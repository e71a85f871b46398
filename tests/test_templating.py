"""Templates that were written for Flask's own session find the same in ours."""

from __future__ import annotations

import re
import typing as t
from collections.abc import Iterator

import flask
import pytest
from flask import Flask
from flask import session

from flask_serversession import ServerSession
from flask_serversession.interface import ServerSessionInterface

CONTENTS: tuple[dict[str, t.Any], ...] = (
    {},
    {"n": 1},
    {"b": "two", "A": "one <i>", "c": "three", "list": [1, {"deep": None}], "x": 0.5},
)

#: What filters need, or take, besides the session.
FILTER_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "attr": ("('b')", "('modified')", "('permanent')", "('nothing')"),
    "batch": ("(2)|list", "(2, 'fill')|list"),
    "default": ("('x')", "('x', true)"),
    "d": ("('x')", "('x', true)"),
    "dictsort": ("", "(true)", "(by='key', reverse=true)"),
    "format": ("", "(b=1)"),
    "groupby": ("('x')|list", "(0)|list"),
    "join": ("", "(', ')", "(', ', 'x')"),
    "map": ("('upper')|list", "('length')|list", "(attribute='x')|list"),
    "max": ("", "(case_sensitive=true)"),
    "reject": ("|list", "('eq', 'b')|list", "('in', ['b'])|list"),
    "rejectattr": ("('x')|list", "('x', 'eq', 1)|list"),
    "replace": ("('a', 'b')",),
    "select": ("|list", "('eq', 'b')|list", "('in', ['b'])|list"),
    "selectattr": ("('x')|list", "('x', 'eq', 1)|list"),
    "slice": ("(2)|list",),
    "sort": ("", "(reverse=true)", "(case_sensitive=true)", "(attribute='x')"),
    "sum": ("", "(attribute='x')", "(start='')"),
    "tojson": ("", "(indent=2)"),
    "xmlattr": ("", "(false)"),
}
COMPARED = ("(1)", "({})", "({'n': 1})", "(['n'])", "(session)", "('n')")
COMPARISONS = {
    *("divisibleby", "sameas", "in", "eq", "equalto", "ne", "ge", "gt", "greaterthan"),
    *("le", "lt", "lessthan"),
}
#: By chance, or by its repr, in which ours shows no value.
DIFFERENT = {"random", "pprint"}


def expressions() -> Iterator[str]:
    environment = Flask(__name__).jinja_env
    for name in sorted(set(environment.filters) - DIFFERENT):
        for arguments in FILTER_ARGUMENTS.get(name, ("", "|list")):
            yield f"session|{name}{arguments}"
    for name in sorted(environment.tests):
        if name.isidentifier():
            for arguments in COMPARED if name in COMPARISONS else ("",):
                yield f"session is {name}{arguments}"
    yield from (
        "session|random in session",
        "session is mapping and session is sequence and session is iterable",
        "'n' in session",
        "'n' is in session",
        "session == {}",
        "session == {'n': 1}",
        "session != {}",
        "{} == session",
        "'yes' if session else 'no'",
        "session or 'no'",
        "not session",
        "session.n",
        "session.b",
        "session['n']",
        "session.nothing",
        "session['nothing']",
        "session.nothing|default('x')",
        "session.get('n')",
        "session.get('nothing', 7)",
        "session.n + 1",
        "session.keys()|list",
        "session.values()|list",
        "session.items()|list",
        "session.items()|sort(attribute='0')|list",
        "session.copy()",
        "session.permanent",
        "session.modified",
        "session|items|list",
        "session|list|last",
        "session|dictsort|first",
        "session|length > 0",
        "session|count",
        "session.list|length",
        "session.list[1].deep is none",
        "dict(session)",
        "dict(**session)",
        "namespace(session).n",
        "range(session|length)|list",
        "[session]|map(attribute='n')|list",
        "[session]|selectattr('n', 'eq', 1)|list|length",
        "[session, session]|groupby('n')|length",
        "[session]|sum(attribute='n')",
        "[session]|map('length')|list",
        "'%(n)s'|format(**session)",
        "'%(n)s' % session",
        "session|tojson|length",
        "session.pop('n')",
        "session.setdefault('new', 3)",
        "session.update(z=1)",
        "session.clear()",
        "session.popitem()",
        "session",
    )


def make_app(is_ours: bool) -> Flask:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="a secret", SESSION_BACKEND="memory", TESTING=True)
    app.jinja_env.add_extension("jinja2.ext.do")
    if is_ours:
        ServerSession(app)
    return app


def render(source: str, **names: t.Any) -> str:
    """Return what a template shows, or what it raises."""
    try:
        shown = flask.render_template_string(source, **names)
    except Exception as error:  # noqa: BLE001 - whatever it is, ours raises it too
        return f"raises {type(error).__name__}"
    return re.sub("0x[0-9a-f]+", "0x", shown)


def show(expression: str) -> str:
    return "{{ " + expression + " }}"


def macro(expression: str) -> str:
    """Return a template of which the part that counts sees the globals only."""
    body = show(expression)
    return "{% macro m() %}" + body + "{% endmacro %}{{ m() }}"


def visit(
    app: Flask, content: dict[str, t.Any], source: str, *texts: str, **names: t.Any
) -> list[str]:
    """Return what a template shows of a session, and others of the text of it."""
    with app.test_request_context():
        session.update(content)
        session.modified = False
        assert len(session) == len(content)  # loads it, which its text shows
        text = str(session)
        if not isinstance(app.session_interface, ServerSessionInterface):
            # The session itself, as before Flask 3.1.3, and no proxy.
            names = {"session": t.cast(t.Any, session)._get_current_object()}
        shown = render(source, **names)
        return [shown, *(render(other, text=text) for other in texts)]


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: f"{len(content)}")
def test_jinja_finds_in_our_session_what_it_finds_in_flasks(
    content: dict[str, t.Any],
) -> None:
    flasks, ours = make_app(False), make_app(True)
    differences: dict[str, tuple[str, str]] = {}
    texts = 0
    for expression in expressions():
        (expected,) = visit(flasks, content, show(expression))
        for source in (show(expression), macro(expression)):
            (found,) = visit(ours, content, source)
            if found == expected:
                continue
            of_text = show(expression.replace("session", "text"))
            if len({*visit(flasks, content, show(expression), of_text)}) == 1:
                # It makes a text of it. That of ours shows no value.
                texts += 1
                found, expected = visit(ours, content, source, of_text)
            if found != expected:
                differences[expression] = expected, found
    assert differences == {}
    assert texts


def test_without_a_request_jinja_finds_what_it_finds_with_flask() -> None:
    flasks, ours = make_app(False), make_app(True)
    differences: dict[str, tuple[str, str]] = {}
    for expression in expressions():
        with flasks.app_context():
            expected = render(show(expression))
        with ours.app_context():
            found = {render(show(expression)), render(macro(expression))}
        if not expected.startswith("raises") and {expected} != found:
            differences[expression] = expected, str(found)
    # Flask's is a proxy, which could be called if it stood for a function.
    assert [*differences] == ["session is callable"]


@pytest.mark.parametrize("source", ["{{ session }}", "{{ session.n }}"])
def test_what_flask_refuses_to_show_without_a_request_is_refused(source: str) -> None:
    with make_app(True).app_context(), pytest.raises(RuntimeError):
        flask.render_template_string(source)


def test_a_template_that_makes_json_of_the_session_looks_at_it() -> None:
    app = make_app(True)
    app.add_url_rule("/", "index", lambda: flask.render_template_string(show("1")))
    app.add_url_rule(
        "/json", "json", lambda: flask.render_template_string(show("session|tojson"))
    )
    client = app.test_client()
    assert "Vary" not in client.get("/").headers
    assert client.get("/json").headers["Vary"] == "Cookie"
