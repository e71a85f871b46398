"""What the parts of the core share, each by itself and without a request."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

import pytest

from flask_serversession import BackendUnavailableError
from flask_serversession import RecordError
from flask_serversession import SessionTooLargeError
from flask_serversession.cookie import CookieState
from flask_serversession.core import Core
from flask_serversession.ids import key_of
from flask_serversession.payload import Envelope
from flask_serversession.record import Record
from flask_serversession.serializers import serializer_for
from flask_serversession.signals import backend_failed
from flask_serversession.signals import session_created
from flask_serversession.signals import session_destroyed
from flask_serversession.signals import session_rejected
from flask_serversession.testing import FakeClock
from flask_serversession.unit import Identity
from flask_serversession.unit import Known
from flask_serversession.unit import Phase
from flask_serversession.unit import Stored
from flask_serversession.unit import Unit
from flask_serversession.unit import Wish

from .site import Site
from .site import present

DAY = 86_400.0
IDENTITY = Identity("the id", "the key")


def make_core(**settings: t.Any) -> Core:
    sites.append(Site({"SESSION_BACKEND": "memory"}, **settings))
    return sites[-1].state.interface.core


#: Nobody else keeps the applications.
sites: list[Site] = []


@pytest.fixture(autouse=True)
def _forget_sites() -> t.Iterator[None]:
    yield
    sites.clear()


def new_unit() -> Unit:
    signer = sites[-1].state.interface.get_signer(sites[-1].app)
    assert signer is not None
    return Unit(signer)


def begun(**data: t.Any) -> Unit:
    unit = new_unit()
    unit.begin()
    unit.data = data
    return unit


def loaded(core: Core, lifetime: float | None = None, **data: t.Any) -> Unit:
    unit, now = new_unit(), core.clock()
    record = Record(
        data=b"data",
        version=7,
        created_at=now - 50,
        touched_at=now - 5,
        expires_at=now + 5,
        user="ada",
    )
    payload = core.serializer.dumps(data)
    unit.identity = IDENTITY
    envelope = Envelope(payload, core.serializer.code, lifetime, now - 9)
    unit.adopt(Stored(record, envelope, core.serializer), data)
    return unit


class Heard(list[dict[str, t.Any]]):
    """What a signal was sent with."""

    def __init__(self, signal: t.Any) -> None:
        super().__init__()
        signal.connect(self._note, sites[-1].app)

    def _note(self, app: object, **values: t.Any) -> None:
        assert app is sites[-1].app
        values.pop("_async_wrapper", None)
        self.append(values)


# Asking the backend


def fail(*args: t.Any) -> t.NoReturn:
    raise BackendUnavailableError("It failed.")


def test_what_the_backend_answers_is_given() -> None:
    core = make_core()
    unit = loaded(core)
    assert core.backend is sites[-1].backend
    assert core.ask(unit, "load", lambda *args, **kw: (args, kw), 1, a=2) == (
        (1,),
        {"a": 2},
    )
    assert unit.failure is None


@pytest.mark.parametrize("operation", ["load", "replace"])
def test_a_backend_that_has_failed_is_not_asked_again(
    operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    core = make_core()
    unit = loaded(core)
    heard = Heard(backend_failed)
    with pytest.raises(BackendUnavailableError) as caught:
        core.ask(unit, operation, fail, "another key")
    assert unit.failure is caught.value
    assert unit.known is Known.STORED
    # What was to be written has to be tried again, or is told of at the end.
    assert unit.wish is (Wish.NOTHING if operation == "load" else Wish.SAVE)
    handle = core.handle_of("the key")
    expected = {"operation": operation, "error": caught.value}
    assert heard == [{"handle": handle, "user": "ada", **expected}]
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("flask_serversession", "ERROR")
    assert record.getMessage() == (
        f"The session backend failed at {operation!r}: It failed."
    )
    with pytest.raises(BackendUnavailableError) as again:
        core.ask(unit, operation, lambda: 1)
    assert again.value is caught.value
    assert len(heard) == 1
    unit.phase = Phase.CLOSED
    assert core.ask(unit, operation, lambda: 1) == 1


def test_a_stronger_wish_is_kept_when_the_backend_fails() -> None:
    core = make_core()
    unit = loaded(core)
    unit.want(Wish.END)
    with pytest.raises(BackendUnavailableError):
        core.ask(unit, "delete", fail, "the key")
    assert unit.wish is Wish.END


def test_a_failure_after_the_response_is_told_each_time() -> None:
    core = make_core()
    unit, heard = loaded(core), Heard(backend_failed)
    unit.phase = Phase.CLOSED
    for number in (1, 2):
        with pytest.raises(BackendUnavailableError):
            core.ask(unit, "replace", fail, "the key")
        assert unit.failure is None
        assert unit.wish is Wish.NOTHING
        assert len(heard) == number


def test_what_could_not_be_looked_for_is_broken() -> None:
    core = make_core()
    unit = new_unit()
    with pytest.raises(BackendUnavailableError) as caught:
        core.ask(unit, "delete", fail, "the key")
    assert unit.known is Known.BROKEN
    assert unit.failure is caught.value


def test_the_key_of_what_was_to_be_created_is_told() -> None:
    core = make_core()
    heard = Heard(backend_failed)
    prefix = core.config.key_prefix
    with pytest.raises(BackendUnavailableError):
        core.ask(loaded(core), "create", fail, f"{prefix}new", "record")
    assert heard[0]["handle"] == "new"


# Signals


def test_a_signal_is_sent_with_the_application_the_handle_and_the_user() -> None:
    core = make_core()
    heard, prefix = Heard(session_created), core.config.key_prefix
    core.send(session_created, f"{prefix}a handle", "ada", more=1)
    core.send(session_created, "", None)
    assert heard == [
        {"handle": "a handle", "user": "ada", "more": 1},
        {"handle": None, "user": None},
    ]


def test_what_was_ended_is_remembered_and_told() -> None:
    core = make_core()
    heard, key = Heard(session_destroyed), f"{core.config.key_prefix}a handle"
    core.send_destroyed(key, "ada", "revoked")
    assert heard == [{"handle": "a handle", "user": "ada", "reason": "revoked"}]
    assert core.ended.has(key)


def test_a_cookie_that_was_not_accepted_is_told_with_the_reason() -> None:
    core = make_core()
    heard = Heard(session_rejected)
    core.reject("", "forged")
    core.reject(f"{core.config.key_prefix}a handle", "unknown")
    assert heard == [
        {"handle": None, "user": None, "reason": "forged"},
        {"handle": "a handle", "user": None, "reason": "unknown"},
    ]


def test_a_receiver_may_be_a_coroutine() -> None:
    core = make_core()
    heard: list[object] = []

    async def hear(app: object, **values: t.Any) -> None:
        heard.append(app)

    with session_created.connected_to(hear, sites[-1].app):
        core.send(session_created, "", None)
    assert heard == [sites[-1].app]


# Names


def test_an_id_is_issued_by_the_generator_that_is_set() -> None:
    core = make_core(SESSION_ID_GENERATOR=lambda: "x" * 15)
    with pytest.raises(ValueError, match="cannot be an id"):
        core.issue()
    core = make_core(SESSION_ID_GENERATOR=lambda: "x" * 16)
    identity = core.issue()
    assert identity == ("x" * 16, key_of("x" * 16, core.config.key_prefix))
    core = make_core()
    assert len({core.issue().id for _ in range(10)}) == 10
    assert core.handle_of(identity.key) == key_of("x" * 16, "")


@pytest.mark.parametrize(
    ("data", "user"), [({}, None), ({"_user_id": 5}, "5"), ({"_user_id": "a"}, "a")]
)
def test_a_user_is_a_text(data: dict[str, t.Any], user: str | None) -> None:
    assert make_core().user_of(data) == user


def test_who_is_logged_in_is_found_under_several_keys_or_by_a_function() -> None:
    core = make_core(SESSION_USER_KEY=("first", "second"))
    assert core.user_of({"second": "b"}) == core.user_text_of({"second": "b"}) == "b"
    assert core.user_of({"first": "a", "second": "b"}) == "a"
    assert core.is_user_key("second") is True
    assert core.is_user_key("third") is False
    core = make_core(SESSION_USER_KEY=lambda own: own["who"])
    assert core.user_of({"who": "a"}) == "a"
    # Nobody is asked about what is empty.
    assert core.user_of({}) is core.user_of({"_permanent": True}) is None
    assert core.is_user_key("who") is True
    assert core.is_user_key("what") is False


def test_a_user_with_a_long_name_is_kept_under_a_shorter_one() -> None:
    core = make_core()
    name = core.user_of({"_user_id": "x" * 256})
    assert name is not None
    assert len(name) <= 255
    assert core.user_text_of({"_user_id": "x" * 256}) == "x" * 256
    assert core.user_of({"_user_id": "x" * 255}) == "x" * 255


def test_only_a_new_session_gets_an_id_when_it_is_asked_for_one() -> None:
    core = make_core()
    unit = new_unit()
    assert core.id(unit) == core.handle(unit) == ""
    assert unit.identity is None
    unit = begun()
    id = core.id(unit)
    assert len(id) == 43
    assert core.id(unit) == id
    assert core.handle(unit) == key_of(id, "")
    unit = begun()
    handle = core.handle(unit)
    assert unit.identity is not None
    assert handle == core.handle(unit) == core.handle_of(unit.identity.key)


# Time-outs


def test_the_times_of_a_stored_session_are_those_of_its_record() -> None:
    core = make_core(SESSION_IDLE_TIMEOUT=600, SESSION_ABSOLUTE_TIMEOUT=1000)
    now = core.clock()
    unit = loaded(core)
    assert core.times(unit) == (now - 50, now + 5)
    unit.lose()
    assert core.times(unit) == (now, now + 600)
    unit = begun()
    assert core.times(unit) == (now, now + 600)
    unit.lifetime = 1200.0
    assert core.times(unit) == (now, now + 1000)


@pytest.mark.parametrize("default", [True, False])
def test_whether_a_session_outlives_the_browser(default: bool) -> None:
    core = make_core(SESSION_PERMANENT=default)
    unit = new_unit()
    assert core.is_permanent(unit) is False
    for is_permanent in (True, False):
        unit.presented = present(["value"], 0)
        unit.presented.cookie = CookieState("id", is_permanent, 1, 1)
        assert core.is_permanent(unit) is is_permanent
    assert core.is_permanent(begun()) is default
    for value in (True, False):
        assert core.is_permanent(begun(_permanent=value)) is value
        assert core.is_permanent(loaded(core, _permanent=value)) is value
    unit = loaded(core)
    assert core.is_permanent(unit) is False
    unit.want(Wish.NEW_ID)
    assert core.is_permanent(unit) is False
    unit.want(Wish.RESTART)
    assert core.is_permanent(unit) is default


def test_the_time_out_is_that_of_the_kind_of_session() -> None:
    core = make_core(PERMANENT_SESSION_LIFETIME=900, SESSION_IDLE_TIMEOUT=600)
    assert core.idle_timeout(True) == 900
    assert core.idle_timeout(False) == 600
    assert core.lifetime_of(begun(_permanent=True)) == 900
    assert core.lifetime_of(begun()) == 600
    core = make_core(PERMANENT_SESSION_LIFETIME=dt.timedelta(hours=1))
    assert core.idle_timeout(True) == core.idle_timeout(False) == 3600
    unit = begun()
    assert core.lifetime_of(unit) == 3600
    unit.lifetime = 5.0
    assert core.lifetime_of(unit) == 5


def test_a_lifetime_that_is_not_a_number_of_ours_is_read_as_flask_reads_it() -> None:
    core = make_core()
    sites[-1].app.config["PERMANENT_SESSION_LIFETIME"] = 70
    assert core.idle_timeout(True) == 70
    assert isinstance(core.idle_timeout(True), float)


def test_the_absolute_time_out_ends_what_is_used() -> None:
    core = make_core()
    record = loaded(core).record
    assert core.limit(200, 100) == 200
    assert core.is_too_old(record) is False
    core = make_core(SESSION_ABSOLUTE_TIMEOUT=60)
    assert core.limit(200, 100) == 160
    assert core.limit(130, 100) == 130
    record = loaded(core).record  # 50 seconds old
    clock = t.cast(FakeClock, sites[-1].clock)
    clock.advance(9)
    assert core.is_too_old(record) is False
    clock.advance(1)
    assert core.is_too_old(record) is True


def test_a_touch_is_due_after_the_interval_or_a_twentieth_of_the_lifetime() -> None:
    core = make_core(SESSION_TOUCH_INTERVAL=60)
    assert core.is_touch_due(159, 100, DAY) is False
    assert core.is_touch_due(160, 100, DAY) is True
    assert core.is_touch_due(104.9, 100, 100) is False
    assert core.is_touch_due(105, 100, 100) is True


def test_a_session_is_idle_at_the_end_of_its_lifetime() -> None:
    core = make_core(SESSION_IDLE_TIMEOUT=15)
    clock = t.cast(FakeClock, sites[-1].clock)
    unit = loaded(core)  # used five seconds ago
    clock.advance(9)
    assert core.is_idle(unit) is False
    clock.advance(1)
    assert core.is_idle(unit) is True


def test_use_now_prolongs_a_session_up_to_its_absolute_time_out() -> None:
    core = make_core(SESSION_IDLE_TIMEOUT=600, SESSION_ABSOLUTE_TIMEOUT=620)
    now = core.clock()
    assert core.renewed(begun()) == now + 600
    unit = loaded(core)  # 50 seconds old
    assert core.renewed(unit) == now + 570
    unit.want(Wish.RESTART)
    assert core.renewed(unit) == now + 600


@pytest.mark.parametrize("value", [True, False])
def test_whether_use_renews_is_read_at_each_request(value: bool) -> None:
    core = make_core(SESSION_REFRESH_EACH_REQUEST=not value)
    sites[-1].app.config["SESSION_REFRESH_EACH_REQUEST"] = value
    assert core.is_refreshed is value


# What is in a record


def test_what_the_application_tells_is_kept_beside_what_is_recorded() -> None:
    core = make_core()
    now = core.clock()
    unit = begun(n=1)
    unit.meta = {"user_agent": "a browser"}

    def meta_of(unit: Unit) -> t.Mapping[str, str]:
        payload = core.dumps(unit)
        return core.make(unit, IDENTITY, payload, now, now, now).record.meta

    assert meta_of(unit) is unit.meta
    unit.change_meta({"device": "phone"})
    assert meta_of(unit) == {"device": "phone", "user_agent": "a browser"}
    unit.change_meta({"device": "x" * (4096 - 6)})
    assert len(meta_of(unit)["device"]) == 4090
    # What is there is there, and is not looked at again.
    record = dataclasses.replace(loaded(core).record, meta=unit.own_meta)
    unit = loaded(core)
    assert unit.stored is not None
    unit.stored = dataclasses.replace(unit.stored, record=record)
    assert meta_of(unit) == record.meta


def test_a_first_look_that_comes_second_adopts_nothing() -> None:
    core = make_core()
    unit = begun(n=1)
    record = core.make(unit, IDENTITY, core.dumps(unit), 1, 1, 1).record
    found = new_unit()
    found.identity = IDENTITY
    assert core.adopt(found, record, is_first_look=True) is True
    assert core.adopt(found, record, is_first_look=True) is False
    assert core.adopt(found, record) is True


def test_the_size_of_the_content_is_limited() -> None:
    core = make_core(SESSION_MAX_SIZE=50)
    unit = begun()
    size = len(core.dumps(unit))
    assert core.dumps(unit, b"x" * 50) == b"x" * 50
    with pytest.raises(SessionTooLargeError) as caught:
        core.dumps(unit, b"x" * 51)
    assert "is 51 bytes when serialized; 'SESSION_MAX_SIZE' allows 50" in str(
        caught.value
    )
    unit.data = {"a": 1}
    assert core.dumps(unit) == core.serializer.dumps({"a": 1})
    assert len(core.dumps(unit)) > size


def test_a_record_says_what_the_session_is_now() -> None:
    core = make_core(SESSION_IDLE_TIMEOUT=600, SESSION_ABSOLUTE_TIMEOUT=1000)
    now = core.clock()
    unit = begun(_user_id="ada")
    unit.meta = {"user_agent": "a browser"}
    payload = core.dumps(unit)
    record = core.make(unit, IDENTITY, payload, now, now, now - 3).record
    assert (record.version, record.user, record.meta) == (1, "ada", unit.meta)
    assert (record.created_at, record.touched_at) == (now, now)
    assert record.expires_at == now + 600
    assert core.make(
        unit, IDENTITY, payload, now, now - 500, now, version=8
    ).record == dataclasses.replace(
        record,
        data=t.cast(t.Any, AnyData()),
        version=8,
        created_at=now - 500,  # which the absolute timeout does not count from
    )
    found = new_unit()
    found.identity = IDENTITY
    core.adopt(found, record)
    assert found.data == {"_user_id": "ada"}
    assert found.stored is not None
    assert found.stored.record is record
    assert found.stored.envelope.payload == payload
    assert found.stored.serializer is core.serializer
    assert found.stored.envelope.issued_at == now - 3
    assert found.stored.envelope.lifetime is found.lifetime is None


class AnyData(bytes):
    """Equals what lies in any record: no two are alike."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, bytes)

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("renews", [True, False])
def test_what_was_not_used_is_written_with_the_times_that_it_had(renews: bool) -> None:
    core = make_core(SESSION_IDLE_TIMEOUT=600)
    now = core.clock()
    for unit, is_renewed in ((loaded(core, n=1), renews), (begun(n=1), True)):
        record = core.make(
            unit, IDENTITY, core.dumps(unit), now, now, now, renews=renews
        ).record
        times = (now, now + 600) if is_renewed else (now - 5, now + 5)
        assert (record.touched_at, record.expires_at) == times
        record = core.make(unit, IDENTITY, core.dumps(unit), now, now, now).record
        assert (record.touched_at, record.expires_at) == (now, now + 600)


def test_its_own_lifetime_is_kept_in_the_record() -> None:
    core = make_core(SESSION_IDLE_TIMEOUT=600)
    now = core.clock()
    unit = begun(n=1)
    unit.lifetime = 30.0
    record = core.make(unit, IDENTITY, core.dumps(unit), now, now, now).record
    assert record.expires_at == now + 30
    found = new_unit()
    found.identity = IDENTITY
    core.adopt(found, record)
    assert found.lifetime == 30
    assert found.stored is not None
    assert found.stored.envelope.lifetime == 30


def test_what_is_to_be_stored_is_what_is_read_afterwards() -> None:
    core = make_core()
    unit, found = begun(n=1, _user_id="ada"), new_unit()
    unit.lifetime = 30.0
    made = core.make(unit, IDENTITY, core.dumps(unit), 9, 7, 3.0)
    found.identity = IDENTITY
    core.adopt(found, made.record)
    assert found.stored == made
    assert made.envelope.authenticated_at == 9


def test_what_another_serializer_of_ours_wrote_is_read() -> None:
    before = make_core(SESSION_SERIALIZER="json")
    unit = begun(n=1)
    record = before.make(unit, IDENTITY, before.dumps(unit), 1, 1, 1).record
    after = make_core()
    found = new_unit()
    found.identity = IDENTITY
    after.adopt(found, record)
    assert found.data == {"n": 1}
    assert found.stored is not None
    assert found.stored.serializer.code == serializer_for("json").code


def test_what_an_applications_own_serializer_wrote_is_read_by_it_alone() -> None:
    import json
    import types

    own = types.SimpleNamespace(
        dumps=lambda data: json.dumps(data).encode(), loads=json.loads
    )
    before = make_core(SESSION_SERIALIZER=own)
    unit = begun(n=1)
    record = before.make(unit, IDENTITY, before.dumps(unit), 1, 1, 1).record
    found = new_unit()
    found.identity = IDENTITY
    before.adopt(found, record)
    assert found.data == {"n": 1}
    after = make_core()
    with pytest.raises(RecordError) as caught:
        after.adopt(found, record)
    assert caught.value.reason == "unreadable"
    assert str(caught.value) == (
        "The session was written with another serializer than 'SESSION_SERIALIZER'."
    )


def test_a_record_is_bound_to_its_key() -> None:
    core = make_core(SESSION_ENCRYPTION_KEY=b"k" * 32)
    unit = begun(n=1)
    record = core.make(unit, IDENTITY, core.dumps(unit), 1, 1, 1).record
    found = new_unit()
    found.identity = Identity("another id", "another key")
    with pytest.raises(RecordError):
        core.adopt(found, record)
    found.identity = IDENTITY
    core.adopt(found, record)
    assert found.data == {"n": 1}
