"""Every message of the library, read from its sources.

The directive ``.. messages::`` lists messages, and what to do about each. It is given
the beginning of a message, long enough to tell it from all others. What to do is
indented below it, unless the message says so itself. The page shows the whole message,
as it is in the sources, with an anchor::

    .. messages::

        The session backend answers again
            Nothing to do.
"""

from __future__ import annotations

import ast
import re
import typing as t
from pathlib import Path

PLACEHOLDER = "\N{HORIZONTAL ELLIPSIS}"
_PACKAGE = Path(__file__).parent.parent / "flask_serversession"

#: Calls with texts that are no messages, or are documented elsewhere: what each key
#: accepts is in config.rst; help and what is printed when all goes well, in cli.rst.
_NO_MESSAGES = {
    *("InvalidValueError", "_duration_or", "_duration_or_none"),
    *("AppGroup", "_Group", "Hidden", "write_line", "progress_bar", "option"),
    *("cast", "compile", "execute", "search", "startswith", "text"),
    *("AssertionError", "OperationalError", "RuntimeError"),  # handled inside
}
#: The same for what is no argument of a call.
_NO_SENTENCES = {
    # handled inside, or looked for in what drivers say
    *("a marker outside of its place", "a named offset without the offset"),
    *("not an HTTP date", "not a string", "not a dict of lists", "… cannot be written"),
    *("already exists", "is locked", "timed out", "timeout expired"),
    *("unknown database", "Too many connections", "No connection available."),
    # for who debugs the reading of pickles: all of them end in one message
    *(
        "There is no end.",
        "… is not for plain data.",
        "That is no ….",
        "The stack is empty.",
    ),
    *("That is not one of the types.", "Only a UUID gets its content afterwards."),
    *("A type is no plain data.", "There is too much in it."),
    *("A key is too deep or too large.", "There is too much text in it."),
    # in a table that is printed
    *("compare and swap", "count them", "delete expired ones by itself"),
    *("delete expired ones on demand", "list all sessions", "no answer", "It can"),
    *("User agent", "Last seen", "Logged in", "<… (not loaded)>"),
    "(not loaded)",
    *("Flask's signature", "Flask's age", "Ids in cookies", "not signed"),
    *("…, as SESSION_USE_SIGNER says", "Keys begin with", "Sessions read"),
    "Not readable",
    " Did you mean …?",
    *("Samsung Internet", "Yandex Browser", "Headless Chrome"),
    # parts that are put into the messages
    *("this object", "an instance of this class"),
    *("cookies are always signed", "no session is ever evicted", "is empty"),
    *(
        "the table has no sequence",
        "count sessions",
        "delete expired sessions on demand",
    ),
    *("cachelib.MemcachedCache(['localhost'])", "…, such as …", " with …, such as …"),
    "cachelib.FileSystemCache(path, threshold=0)",
    ", or name another one in the URL, such as '…+…://…'",
    *("no such", "unable to open database", "attempt to write a readonly"),
    "database or disk is full",
    *("timedelta or number of seconds", ", or None …", "the … database …", "at most …"),
    *(
        "an object of type …",
        "the class …",
        "the module …",
        "The … backend ….",
        "… in it …",
    ),
    *("The table", "The table …", "The folder …", "list the sessions of a user"),
    *("of that name", "flask sessions check", "logged out"),
}


def read_messages() -> dict[str, str]:
    """Return the texts of the package, with … for what differs, and where they are."""
    found: dict[str, str] = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        if path.parent.name != "testing":
            finder = _Messages()
            finder.visit(ast.parse(path.read_text(encoding="utf-8")))
            for text, line in finder.found.items():
                found.setdefault(text, f"{path.name}:{line}")
    return found


class _Messages(ast.NodeVisitor):
    """Finds the strings of a module that are sentences, or parts of sentences."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name not in _NO_MESSAGES:
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        texts: list[str] = []
        for value in node.values:
            if isinstance(value, ast.Constant):
                texts.append(re.sub(r"%[sdr]", PLACEHOLDER, value.value))
            else:
                texts.append(PLACEHOLDER)
                self.visit(value)  # a text in an expression
        self.add("".join(texts), node.lineno)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            text = re.sub(r"%[sdr]|\{\w*\}", PLACEHOLDER, node.value)
            self.add(text, node.lineno)

    def add(self, text: str, line: int) -> None:
        if "\n" in text or text in _NO_SENTENCES:  # a script, or no message
            return
        text = " ".join(text.split()).removeprefix(". ")
        if len(re.findall(r"(?<![^ '(])[A-Za-z][a-z]+(?![^ '.,;:)])", text)) >= 2:
            self.found.setdefault(text, line)


def message_of(beginning: str, messages: t.Iterable[str]) -> str:
    """Return the one message that begins like that, or that is just that."""
    found = [text for text in messages if text.startswith(beginning)]
    if beginning in found:
        return beginning
    if len(found) != 1:
        raise ValueError(f"{len(found)} messages begin with {beginning!r}.")
    return found[0]


def read_entries(lines: t.Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return the beginnings in a directive, each with the lines below it."""
    entries: list[tuple[str, list[str]]] = []
    for line in lines:
        if line[:1].isspace() or not line:
            if entries:
                entries[-1][1].append(line.removeprefix("    "))
        else:
            entries.append((line, []))
    return entries


def setup(app: t.Any) -> dict[str, t.Any]:
    """Add the directive to Sphinx."""
    from docutils import nodes
    from docutils.statemachine import StringList
    from sphinx.util.docutils import SphinxDirective

    messages = read_messages()

    class MessagesDirective(SphinxDirective):
        has_content = True

        def run(self) -> list[nodes.Node]:
            result = nodes.definition_list(classes=["messages"])
            for beginning, remedy in read_entries(self.content):
                text = message_of(beginning, messages)
                anchor = anchor_of(text)
                term = nodes.term("", "", nodes.literal("", text), ids=[anchor])
                term += nodes.reference("", "¶", refid=anchor, classes=["headerlink"])
                definition = nodes.definition()
                source = StringList(remedy, self.content.source(0))
                self.state.nested_parse(source, self.content_offset, definition)
                result += nodes.definition_list_item("", term, definition)
            return [result]

    app.add_directive("messages", MessagesDirective)
    return {"parallel_read_safe": True}


def anchor_of(message: str) -> str:
    """Return the anchor of a message: its words, in short."""
    words = re.findall(r"[a-z0-9_]+", message.lower())
    return "message-" + "-".join(words[:20])
