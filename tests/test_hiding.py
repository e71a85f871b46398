"""Values that do not show what they are, and are what they are all the same."""

from __future__ import annotations

import pickle
import traceback
import typing as t

import pytest

from flask_serversession.hiding import HiddenBytes
from flask_serversession.hiding import HiddenText
from flask_serversession.hiding import HiddenTuple
from flask_serversession.hiding import forget_frames
from flask_serversession.hiding import hide
from flask_serversession.hiding import hide_texts


@pytest.mark.parametrize(
    "value", [HiddenText("secret"), HiddenBytes(b"secret"), HiddenTuple(("secret",))]
)
def test_what_is_hidden_shows_nothing(value: t.Any) -> None:
    assert repr(value) == f"{value!r}" == "<hidden>"
    assert repr({"a": [value]}) == "{'a': [<hidden>]}"


def test_what_is_hidden_is_what_it_is() -> None:
    assert HiddenText("secret") == "secret"
    assert f"{HiddenText('secret')}" == "secret"
    assert hash(HiddenText("secret")) == hash("secret")
    assert HiddenBytes(b"secret") == b"secret"
    assert HiddenTuple((1, 2)) == (1, 2)
    assert hide("secret") == "secret"
    assert hide(5) == 5
    assert hide_texts({"a": "b", "n": 1}) == {"a": "b", "n": 1}


def test_only_texts_are_hidden() -> None:
    assert repr(hide("secret")) == "<hidden>"
    assert repr(hide(5)) == "5"
    assert repr(hide_texts({"a": "b", "n": 1})) == "{'a': <hidden>, 'n': 1}"


@pytest.mark.parametrize(
    ("value", "plain"),
    [(HiddenText("secret"), "secret"), (HiddenBytes(b"secret"), b"secret")],
)
def test_what_is_hidden_is_stored_as_what_it_is(value: t.Any, plain: object) -> None:
    # Whoever reads them does not know these classes.
    stored = pickle.loads(pickle.dumps(value))
    assert stored == plain
    assert type(stored) is type(plain)


def test_messages_name_the_type_that_was_given() -> None:
    assert type(HiddenText("secret")).__name__ == "str"
    assert repr(type(HiddenText("secret"))) == "<class 'str'>"
    assert type(HiddenText("secret")).__module__ == "builtins"


def test_an_exception_forgets_the_frames_that_it_passed() -> None:
    def fail() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    with pytest.raises(ValueError, match="second") as caught:
        fail()
    error = forget_frames(caught.value)
    links: list[BaseException | None] = [error, error.__cause__, error.__context__]
    assert all(link is not None and link.__traceback__ is None for link in links)
    assert "first" in "".join(traceback.format_exception(error))


def test_causes_beside_the_context_forget_them_too() -> None:
    def fail() -> None:
        try:
            raise KeyError("cause")
        except KeyError as error:
            cause = error
        try:
            raise KeyError("context")
        except KeyError:
            raise ValueError("last") from cause

    with pytest.raises(ValueError, match="last") as caught:
        fail()
    cause, context = caught.value.__cause__, caught.value.__context__
    assert cause is not None
    assert context is not None
    assert cause is not context
    forget_frames(caught.value)
    assert cause.__traceback__ is context.__traceback__ is None


def test_an_exception_that_is_its_own_cause_is_no_endless_task() -> None:
    error = ValueError()
    error.__cause__ = error
    assert forget_frames(error) is error
