"""One session during one request, without an application and without a backend."""

from __future__ import annotations

import dataclasses
import itertools
import typing as t

import pytest

from flask_serversession import BackendUnavailableError
from flask_serversession import SerializationError
from flask_serversession.cookie import CookieSigner
from flask_serversession.cookie import CookieState
from flask_serversession.payload import Envelope
from flask_serversession.record import Record
from flask_serversession.serializers import serializer_for
from flask_serversession.unit import Cookie
from flask_serversession.unit import Identity
from flask_serversession.unit import Known
from flask_serversession.unit import Phase
from flask_serversession.unit import Stored
from flask_serversession.unit import Unit
from flask_serversession.unit import Wish
from flask_serversession.unit import is_unused

from .site import present

SIGNER = CookieSigner(["a secret"])
MSGPACK, JSON = serializer_for("msgpack"), serializer_for("json")


def stored(
    data: dict[str, t.Any], serializer: t.Any = MSGPACK, lifetime: float | None = None
) -> Stored:
    record = Record(
        b"data", version=1, created_at=1, touched_at=2, expires_at=3, user="ada"
    )
    envelope = Envelope(serializer.dumps(data), serializer.code, lifetime, 1.0)
    return Stored(record, envelope, serializer)


def loaded(serializer: t.Any = MSGPACK, **data: t.Any) -> Unit:
    """Give a unit whose record was loaded."""
    unit = Unit(SIGNER)
    unit.adopt(stored(data, serializer), data)
    return unit


def signed(name: str, *, is_permanent: bool = False) -> str:
    return SIGNER.sign(CookieState(f"the {name} id", is_permanent, 1, 1))


def test_the_wishes_are_ordered_and_the_states_are_the_rows_of_the_table() -> None:
    names = ["NOTHING", "TOUCH", "SAVE", "NEW_ID", "RESTART", "END"]
    assert [wish.name for wish in sorted(Wish)] == names
    assert [*Known] == list(range(5))
    for kind in (Known, Wish, Cookie, Phase):
        assert len(kind) == len(kind.__members__)
    # What is asked as yes or no.
    assert not Cookie.NONE
    assert not Wish.NOTHING
    assert not Phase.OPEN
    for value in (Cookie.SET, Cookie.DELETE, Phase.CLOSED, Phase.ABANDONED):
        assert value


def test_a_new_unit_knows_and_wants_nothing() -> None:
    unit = Unit(SIGNER)
    assert unit.signer is SIGNER
    assert unit.known is Known.UNSEEN
    assert unit.presented.values == ()
    assert unit.presented.seen_at == 0
    assert unit.presented.is_verified
    for name in ("identity", "stored", "lifetime", "cookie", "stored_user", "failure"):
        assert getattr(unit, name) is None, name
    for name in ("wish", "least_wish", "owed", "phase"):
        assert getattr(unit, name) == 0, name
    for name in ("is_new", "is_modified", "is_exposed", "is_saved", "is_atomic"):
        assert getattr(unit, name) is False, name
    assert unit.is_loss_told is unit.is_closed is unit.is_restarted is False
    assert unit.data == unit.meta == {}
    assert unit.key == ""
    assert unit.is_empty
    assert unit.was_empty


def test_no_part_shows_what_is_secret() -> None:
    unit = loaded(n="content")
    unit.identity = Identity("the id", "the key")
    assert repr(unit.identity) == "<Identity>"
    assert repr(unit.stored) == f"<Stored {unit.record!r}>"
    assert "content" not in repr(unit.stored)


@pytest.mark.parametrize(
    ("data", "is_empty"),
    [
        ({}, True),
        ({"_permanent": True}, True),
        ({"n": 1}, False),
        ({"_permanent": True, "n": 1}, False),
    ],
)
def test_a_session_that_is_only_permanent_is_empty(
    data: dict[str, t.Any], is_empty: bool
) -> None:
    unit = loaded(**data)
    assert is_unused(data) is unit.is_empty is unit.was_empty is is_empty
    unit.data = {"n": 1}
    assert not unit.is_empty
    assert unit.was_empty is is_empty


def test_a_session_that_is_not_stored_has_no_record() -> None:
    with pytest.raises(RuntimeError, match=r"^The session is not stored\.$"):
        assert Unit(SIGNER).record


# The cookies


def test_cookies_are_verified_one_after_the_other() -> None:
    presented = present([signed("first"), "forged", signed("second")], 5.0)
    assert presented.is_verified is False
    assert presented.cookie is presented.claim is None
    assert presented.seen_at == 5.0
    assert presented.value == ""
    first = presented.verify_next(SIGNER, "")
    assert first is not None
    assert first.id == "the first id"
    assert presented.value == presented.values[0]
    assert presented.cookie is None  # that is the caller's
    assert presented.is_verified is False
    second = presented.verify_next(SIGNER, first.id)
    assert second is not None
    assert second.id == "the second id"
    assert presented.value == presented.values[2]
    assert presented.verify_next(SIGNER, second.id) is None


def test_a_cookie_of_the_same_id_is_passed_over() -> None:
    presented = present([signed("first"), signed("first"), signed("second")], 0)
    found = presented.verify_next(SIGNER, "the first id")
    assert found is not None
    assert found.id == "the second id"


def test_four_cookies_are_tried_and_no_more() -> None:
    presented = present([*["forged"] * 4, signed("fifth")], 0)
    assert presented.verify_next(SIGNER, "") is None
    presented = present([*["forged"] * 3, signed("fourth")], 0)
    assert presented.verify_next(SIGNER, "") is not None


def test_what_cookies_claim_counts_until_they_are_verified() -> None:
    permanent, other = signed("first", is_permanent=True), signed("second")
    assert present([other, permanent], 0).claims_permanent
    assert not present([other], 0).claims_permanent
    assert not present([], 0).claims_permanent
    presented = present([permanent], 0)
    presented.is_verified = True
    assert presented.claims_permanent is False
    for value in (permanent, other):
        presented.cookie = SIGNER.verify(value)
        assert presented.claims_permanent is (value == permanent)
    unit = Unit(SIGNER)
    unit.presented = presented
    assert unit.cookie is presented.cookie


# What a view wants


@pytest.mark.parametrize(("first", "second"), [*itertools.product(Wish, repeat=2)])
def test_the_strongest_wish_counts(first: Wish, second: Wish) -> None:
    unit = loaded(n=1)
    unit.want(first)
    unit.want(second)
    assert unit.wish is max(first, second)
    assert unit.is_modified is (unit.wish >= Wish.SAVE)
    assert unit.is_restarted is (unit.wish >= Wish.RESTART)
    small = [wish for wish in (first, second) if wish < Wish.SAVE]
    assert unit.least_wish is (small[-1] if small else Wish.NOTHING)


@pytest.mark.parametrize("least", [Wish.NOTHING, Wish.TOUCH])
@pytest.mark.parametrize("wish", Wish)
def test_a_wish_is_forgotten_but_not_that_it_was_activity(
    wish: Wish, least: Wish
) -> None:
    for forget in (Unit.forget_wishes, Unit.forget_change):
        unit = loaded(n=1)
        unit.want(least)
        if wish >= Wish.SAVE:
            unit.want(wish)
        forget(unit)
        assert not unit.is_modified
        is_kept = forget is Unit.forget_change and wish in (Wish.NEW_ID, Wish.RESTART)
        assert unit.wish is (wish if is_kept else least)


@pytest.mark.parametrize("phase", Phase)
def test_after_the_response_nothing_can_be_told(phase: Phase) -> None:
    unit = Unit(SIGNER)
    unit.phase = phase
    assert unit.is_closed is (phase is not Phase.OPEN)


# What becomes known


@pytest.mark.parametrize("identity", [None, Identity("id", "key")])
def test_a_new_session_has_nothing_of_the_former(identity: Identity | None) -> None:
    unit = loaded(n=1)
    unit.identity, unit.lifetime = Identity("former", "former key"), 5.0
    unit.begin(identity)
    assert unit.known is Known.NEW
    assert unit.is_new is True
    assert unit.identity is identity
    assert unit.key == ("key" if identity else "")
    assert unit.stored is unit.lifetime is unit.stored_user is None
    assert unit.data == {}


def test_what_was_loaded_is_the_content() -> None:
    unit = Unit(SIGNER)
    unit.want(Wish.SAVE)
    data = {"n": 1}
    found = stored(data, lifetime=7.0)
    unit.adopt(found, data)
    assert unit.known is Known.STORED
    assert unit.stored is found
    assert unit.record is found.record
    assert unit.stored_user == "ada"
    assert unit.data is data
    assert unit.lifetime == 7.0
    assert unit.wish is Wish.SAVE
    assert unit.is_saved is unit.is_exposed is False


def test_what_was_stored_is_no_wish_any_more() -> None:
    unit = Unit(SIGNER)
    unit.data, unit.lifetime = {"n": 1}, 7.0
    unit.want(Wish.TOUCH)
    unit.want(Wish.SAVE)
    found = stored({"n": 1}, lifetime=8.0)
    unit.adopt(found)
    assert unit.known is Known.STORED
    assert unit.stored is found
    assert unit.data == {"n": 1}
    assert unit.lifetime == 7.0
    assert unit.wish is Wish.TOUCH
    assert unit.is_saved is unit.is_exposed is True


@pytest.mark.parametrize("wish", Wish)
def test_of_a_lost_session_only_a_log_out_is_left(wish: Wish) -> None:
    unit = loaded(n=1)
    unit.is_exposed = True
    unit.want(wish)
    unit.lose()
    assert unit.known is Known.GONE
    assert unit.is_exposed is False
    assert unit.wish is (Wish.END if wish is Wish.END else unit.least_wish)
    assert unit.data == {"n": 1}


@pytest.mark.parametrize("owed", Cookie)
def test_an_id_that_names_nothing_any_more_is_not_owed(owed: Cookie) -> None:
    for forget in (Unit.begin, Unit.lose):
        unit = loaded(n=1)
        unit.owed = owed
        forget(unit)
        assert unit.owed is (Cookie.DELETE if owed is Cookie.DELETE else Cookie.NONE)


@pytest.mark.parametrize("error", [None, BackendUnavailableError("It failed.")])
def test_what_nobody_knows_is_broken(error: BackendUnavailableError | None) -> None:
    unit = Unit(SIGNER)
    unit.fail(error)
    assert unit.known is Known.BROKEN
    assert unit.failure is error


# What has changed


def test_an_unchanged_session_is_not_written() -> None:
    unit = loaded(items=[1])
    assert unit.find_change(MSGPACK) == ("", None)
    unit.data["items"].append(2)
    # Nobody was given the list.
    assert unit.find_change(MSGPACK) == ("", None)
    unit.is_exposed = True
    assert unit.find_change(MSGPACK) == (
        "nested change",
        MSGPACK.dumps({"items": [1, 2]}),
    )
    unit.data["items"].pop()
    assert unit.find_change(MSGPACK) == ("", None)


def test_what_was_not_stored_or_is_wanted_has_changed() -> None:
    assert Unit(SIGNER).find_change(MSGPACK) == ("key changed", None)
    unit = loaded(n=1)
    unit.want(Wish.TOUCH)
    assert unit.find_change(MSGPACK) == ("", None)
    unit.lifetime = 5.0
    assert unit.find_change(MSGPACK) == ("lifetime changed", None)
    unit.want(Wish.SAVE)
    assert unit.find_change(MSGPACK) == ("lifetime changed", None)
    unit.lifetime = None
    assert unit.find_change(MSGPACK) == ("key changed", None)


def test_a_change_is_looked_for_with_what_has_written_the_record() -> None:
    unit = loaded(JSON, items=[1])
    unit.is_exposed = True
    assert unit.find_change(MSGPACK) == ("", None)
    unit.data["items"].append(2)
    # The application's serializer has yet to write it.
    assert unit.find_change(MSGPACK) == ("nested change", None)
    # What the former one cannot write is another thing than what it wrote.
    unit.data["items"].append({1, 2})
    assert unit.find_change(MSGPACK) == ("nested change", None)
    with pytest.raises(SerializationError):
        unit.find_change(JSON)


# What the application tells of it


def test_the_meta_is_what_is_stored_until_something_else_is_told() -> None:
    unit = Unit(SIGNER)
    assert unit.own_meta is None
    assert unit.current_meta == {}
    found = stored({"n": 1})
    meta = {"device": "phone", "user_agent": "a browser"}
    record = dataclasses.replace(found.record, meta=meta)
    unit.adopt(dataclasses.replace(found, record=record), {"n": 1})
    assert unit.own_meta is None
    assert unit.current_meta == {"device": "phone"}
    unit.change_meta({})
    assert unit.current_meta == {}
    assert unit.wish is Wish.SAVE
    assert unit.is_modified
    assert unit.find_change(MSGPACK) == ("meta changed", None)


@pytest.mark.parametrize(
    ("act", "is_kept"),
    [
        (lambda unit: unit.begin(), False),
        (lambda unit: unit.forget_wishes(), False),
        (lambda unit: unit.forget_change(), False),
        (lambda unit: unit.adopt(stored({"n": 1})), False),
        (lambda unit: unit.adopt(stored({"n": 1}), {"n": 1}), False),
        (lambda unit: (unit.want(Wish.NEW_ID), unit.forget_change()), True),
        (lambda unit: unit.begin_empty(), True),
    ],
)
def test_what_was_told_is_forgotten_with_the_change(
    act: t.Callable[[Unit], object], is_kept: bool
) -> None:
    unit = loaded(n=1)
    unit.change_meta({"device": "phone"})
    act(unit)
    assert unit.own_meta == ({"device": "phone"} if is_kept else None)


# Passive requests, and several threads of one


def test_the_last_word_decides_whether_a_request_is_passive() -> None:
    unit = Unit(SIGNER)
    assert unit.is_passive is unit.is_glanced is False
    unit.is_glanced = True
    unit.be_active(False)
    assert unit.is_passive is True
    assert unit.is_glanced is False
    unit.be_active(True)
    assert unit.is_passive is False


def test_what_begins_empty_leaves_what_is_there() -> None:
    unit = Unit(SIGNER)
    unit.data = data = {"n": 1}
    unit.begin_empty()
    assert unit.known is Known.NEW
    assert unit.is_new is True
    assert unit.data is data


def test_a_first_look_that_comes_second_changes_nothing() -> None:
    unit = Unit(SIGNER)
    first, second = {"n": 1}, {"n": 2}
    assert unit.adopt(stored(first), first, is_first_look=True) is True
    assert unit.adopt(stored(second), second, is_first_look=True) is False
    assert unit.data is first
    assert unit.adopt(stored(second), second) is True
    assert unit.data is second
    assert unit.adopt(stored(first)) is True


def test_candidates_are_gone_through_without_taking_one() -> None:
    values = [signed("first"), "forged", signed("second"), signed("third")]
    presented = present(values, 0)
    found = [*presented.candidates(SIGNER, "the first id")]
    assert [(number, cookie.id) for number, cookie in found] == [
        (3, "the second id"),
        (4, "the third id"),
    ]
    assert presented.value == ""
    presented.select(*found[0])
    assert presented.cookie is found[0][1]
    assert presented.value == values[2]
    # From there on.
    assert [number for number, _ in presented.candidates(SIGNER, "")] == [4]
    assert presented.verify_next(SIGNER, "the third id") is None
    assert [*presented.candidates(SIGNER, "")] == []
