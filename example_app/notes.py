"""Notes: create, read, update and delete, one key of the session or several.

Each note is a key of its own. Two tabs that write different notes at the same time
both succeed, since sessions are merged key by key.
"""

from __future__ import annotations

import re

from flask import Blueprint
from flask import abort
from flask import flash
from flask import redirect
from flask import render_template
from flask import request
from flask import url_for
from flask.typing import ResponseReturnValue

from flask_serversession import session

blueprint = Blueprint("notes", __name__)

PREFIX = "note:"
#: What was deleted last, to be undone.
DELETED = "deleted notes"
MAX_NOTES = 50
MAX_TEXT = 2_000
MAX_NAME = 40


class InvalidNoteError(ValueError):
    """A note cannot be kept; the text tells the visitor why, at this field."""

    def __init__(self, text: str, field: str) -> None:
        super().__init__(text)
        self.field = field


@blueprint.get("/notes")
def show_all() -> ResponseReturnValue:
    """Read all."""
    return _page()


@blueprint.post("/notes/add")
def add() -> ResponseReturnValue:
    """Set one."""
    try:
        name, text = _checked(
            request.form.get("name", ""), request.form.get("text", "")
        )
        _check_is_new([name], "name")
    except InvalidNoteError as error:
        # The form again, as it was sent: a redirect would lose what was written.
        return _page({error.field: str(error)}), 422

    session[PREFIX + name] = text
    flash(f"Added: {name}.", "success")
    return redirect(url_for(".show_all"))


@blueprint.post("/notes/add-several")
def add_several() -> ResponseReturnValue:
    """Set several, one a line: ``name: text``."""
    notes: dict[str, str] = {}

    try:
        for line in request.form.get("lines", "").splitlines():
            if line.strip():
                name, _, text = line.partition(":")
                notes.update([_checked(name, text)])

        _check_is_new(notes, "lines")
    except InvalidNoteError as error:
        return _page({"lines": str(error)}), 422

    session.update({PREFIX + name: text for name, text in notes.items()})
    flash(f"Added: {', '.join(notes) or 'nothing'}.", "success")
    return redirect(url_for(".show_all"))


@blueprint.get("/notes/edit")
def edit_all() -> ResponseReturnValue:
    """Show all in one form."""
    return _edit_page(_notes(), {})


@blueprint.post("/notes/edit")
def update_several() -> ResponseReturnValue:
    """Update several."""
    changes, errors = {}, {}
    sent = {
        name: request.form.get(f"text-{name}", text) for name, text in _notes().items()
    }

    for name, text in sent.items():
        try:
            changes[name] = _checked(name, text)[1]
        except InvalidNoteError as error:
            errors[name] = str(error)

    if errors:
        return _edit_page(sent, errors), 422

    session.update({PREFIX + name: text for name, text in changes.items()})
    flash(f"Saved: {', '.join(changes) or 'nothing'}.", "success")
    return redirect(url_for(".show_all"))


@blueprint.post("/notes/delete")
def delete_several() -> ResponseReturnValue:
    """Delete those that were ticked."""
    names = [name for name in request.form.getlist("name") if PREFIX + name in session]

    return _delete(names)


@blueprint.get("/note/<name>")
def show(name: str) -> ResponseReturnValue:
    """Read one."""
    return _note_page(name, _text_or_404(name))


@blueprint.post("/note/<name>")
def update(name: str) -> ResponseReturnValue:
    """Update one."""
    _text_or_404(name)

    sent = request.form.get("text", "")

    try:
        _, text = _checked(name, sent)
    except InvalidNoteError as error:
        return _note_page(name, sent, str(error)), 422

    session[PREFIX + name] = text
    flash(f"Saved: {name}.", "success")
    return redirect(url_for(".show_all"))


@blueprint.post("/note/<name>/delete")
def delete(name: str) -> ResponseReturnValue:
    """Delete one."""
    _text_or_404(name)
    return _delete([name])


@blueprint.post("/notes/undo")
def undo() -> ResponseReturnValue:
    """Bring back what was deleted last."""
    notes = session.pop(DELETED, {})
    there = _notes()

    if len({**there, **notes}) > MAX_NOTES:
        session[DELETED] = notes
        flash(f"There is room for {MAX_NOTES} notes. Delete some.", "error")
        return redirect(url_for(".show_all"))

    # What was written anew under the same name stays.
    back = {name: text for name, text in notes.items() if name not in there}
    session.update({PREFIX + name: text for name, text in back.items()})
    flash(f"Back again: {', '.join(back) or 'nothing'}.", "success")
    return redirect(url_for(".show_all"))


def _delete(names: list[str]) -> ResponseReturnValue:
    deleted = {name: session.pop(PREFIX + name) for name in names}

    if deleted:
        session[DELETED] = deleted

    flash(f"Deleted: {', '.join(names) or 'nothing was ticked'}.", "info")
    return redirect(url_for(".show_all"))


def _page(errors: dict[str, str] | None = None) -> str:
    return render_template(
        "notes.html",
        notes=_notes(),
        deleted=session.get(DELETED, {}),
        sent=request.form,
        errors=errors or {},
        max_text=MAX_TEXT,
    )


def _edit_page(notes: dict[str, str], errors: dict[str, str]) -> str:
    return render_template(
        "notes_edit.html", notes=notes, errors=errors, max_text=MAX_TEXT
    )


def _note_page(name: str, text: str, error: str | None = None) -> str:
    return render_template(
        "note.html", name=name, text=text, error=error, max_text=MAX_TEXT
    )


def _notes() -> dict[str, str]:
    return {
        key.removeprefix(PREFIX): text
        for key, text in session.items()
        if key.startswith(PREFIX)
    }


def _text_or_404(name: str) -> str:
    text: str | None = session.get(PREFIX + name)
    return abort(404) if text is None else text


def _checked(name: str, text: str) -> tuple[str, str]:
    name, text = name.strip(), text.strip()

    if len(name) > MAX_NAME or not re.fullmatch(r"\w[\w .-]*", name):
        raise InvalidNoteError(
            f"A name has up to {MAX_NAME} letters, digits, spaces, dots and dashes,"
            " and begins with a letter or digit.",
            "name",
        )

    if not 0 < len(text) <= MAX_TEXT:
        raise InvalidNoteError(
            f"{name}: write something, of up to {MAX_TEXT} characters.", "text"
        )

    return name, text


def _check_is_new(names: list[str] | dict[str, str], field: str) -> None:
    notes = _notes()

    for name in names:
        if name in notes:
            raise InvalidNoteError(
                f"There is a note {name} already. You can edit it.", field
            )

    # A session is read as a whole, so it is no place for things without end.
    if len(notes) + len(names) > MAX_NOTES:
        raise InvalidNoteError(
            f"There is room for {MAX_NOTES} notes. Delete some.", field
        )
