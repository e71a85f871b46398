"""The facts that the table asks for, each by itself."""

from __future__ import annotations

import typing as t

import pytest
from flask import Response

from flask_serversession.cookie import CookieState
from flask_serversession.moment import Ahead
from flask_serversession.moment import EndOfRequest
from flask_serversession.moment import Moment
from flask_serversession.moment import is_doubtful
from flask_serversession.moment import is_public
from flask_serversession.moment import is_targeted
from flask_serversession.payload import Envelope
from flask_serversession.record import Record
from flask_serversession.unit import Identity
from flask_serversession.unit import Stored
from flask_serversession.unit import Unit

from .site import Site
from .site import advance
from .site import present

HOUR = 3600.0
DAY = 86_400.0


def make_site(**settings: t.Any) -> Site:
    return Site({"SESSION_BACKEND": "memory"}, **settings)


def end_of(site: Site, **headers: str) -> EndOfRequest:
    core = site.state.interface.core
    return EndOfRequest(core, Response(headers=headers))


def unit_of(site: Site) -> Unit:
    signer = site.state.interface.get_signer(site.app)
    assert signer is not None
    return Unit(signer)


def with_cookie(site: Site, **values: t.Any) -> Unit:
    unit, now = unit_of(site), site.clock()
    unit.presented = present(["value"], now)
    unit.presented.is_verified = True
    state: dict[str, t.Any] = {"is_permanent": False, "touched_at": now, **values}
    unit.presented.cookie = CookieState(id="id", counts_from=now, **state)
    return unit


def with_record(site: Site, lifetime: float | None = None) -> Unit:
    core, now = site.state.interface.core, site.clock()
    record = Record(b"data", version=1, created_at=now, touched_at=now, expires_at=now)
    unit = with_cookie(site, touched_at=now - 10 * HOUR)
    payload = core.serializer.dumps({})
    envelope = Envelope(payload, core.serializer.code, lifetime, now)
    unit.adopt(Stored(record, envelope, core.serializer), {})
    return unit


def test_a_moment_in_a_request_is_not_its_end() -> None:
    site = make_site(SESSION_RESAVE=True, SESSION_REFRESH_EACH_REQUEST=False)
    moment = Moment(site.state.interface.core)
    assert moment.is_error_unsaved is False
    assert moment.is_wanted is None
    assert moment.rotation == ""
    assert moment.resave is False
    assert moment.is_refreshed is True
    assert moment.is_public is False


@pytest.mark.parametrize("value", [True, False])
def test_the_settings_are_facts(value: bool) -> None:
    site = make_site(
        SESSION_RESAVE=value,
        SESSION_SAVE_UNINITIALIZED=value,
        SESSION_ON_BACKEND_ERROR="raise" if value else "ignore",
        SESSION_REFRESH_EACH_REQUEST=value,
    )
    end = end_of(site)
    assert end.resave is value
    assert end.save_uninitialized is value
    assert end.raises is value
    assert end.is_refreshed is value
    assert end.rotation == ""
    assert end.is_wanted is None
    assert end.is_error_unsaved is False


def test_a_touch_is_due_once_an_interval_at_the_end_of_a_request() -> None:
    site = make_site(SESSION_TOUCH_INTERVAL=60)
    within, end = Moment(site.state.interface.core), end_of(site)
    at_end = Moment(site.state.interface.core, is_end=True)
    assert not end.is_touch_due(unit_of(site))
    for make in (with_cookie, with_record):
        unit = make(site)
        assert not end.is_touch_due(unit)
        advance(site, 59)
        assert end.is_touch_due(unit) is at_end.is_touch_due(unit) is False
        advance(site, 1)
        assert end.is_touch_due(unit) is at_end.is_touch_due(unit) is True
        assert within.is_touch_due(unit) is False


@pytest.mark.parametrize("kind", ["cookie", "record"])
def test_a_short_lifetime_is_renewed_sooner(kind: str) -> None:
    site = make_site(SESSION_TOUCH_INTERVAL=60)
    unit = with_cookie(site, lifetime=200.0) if kind == "cookie" else with_record(site)
    if kind == "record":
        unit.lifetime = 200.0
    advance(site, 9)
    assert not end_of(site).is_touch_due(unit)
    advance(site, 1)
    assert end_of(site).is_touch_due(unit)


@pytest.mark.parametrize("is_permanent", [True, False])
def test_the_time_out_of_the_cookies_kind_of_session_counts(is_permanent: bool) -> None:
    site = make_site(
        SESSION_TOUCH_INTERVAL=60,
        PERMANENT_SESSION_LIFETIME=200,
        SESSION_IDLE_TIMEOUT=400,
    )
    unit = with_cookie(site, is_permanent=is_permanent)
    advance(site, 10)
    assert end_of(site).is_touch_due(unit) is is_permanent
    assert end_of(site).is_permanent(unit) is is_permanent
    advance(site, 10)
    assert end_of(site).is_touch_due(unit)


def test_what_was_seen_is_trusted_for_a_tenth_of_a_second() -> None:
    site = make_site()
    unit = with_cookie(site)
    assert end_of(site).is_doubtful(unit) is False
    advance(site, 0.09)
    assert not end_of(site).is_doubtful(unit)
    advance(site, 0.02)
    assert end_of(site).is_doubtful(unit) is True
    assert Moment(site.state.interface.core).is_doubtful(unit) is False


def test_only_a_session_with_an_id_was_ended_here() -> None:
    site = make_site()
    unit = unit_of(site)
    site.state.interface.core.ended.add("key", "logged out")
    assert end_of(site).is_ended_here(unit) is False
    unit.identity = Identity("id", "key")
    assert end_of(site).is_ended_here(unit) is True
    unit.identity = Identity("id", "another key")
    assert end_of(site).is_ended_here(unit) is False


def test_a_cookie_differs_if_it_says_something_else_or_is_stale() -> None:
    site = make_site()
    end = end_of(site)
    assert end.differs_from_cookie(unit_of(site), True) is False
    unit = with_cookie(site, is_permanent=True, lifetime=5.0)
    assert end.differs_from_cookie(unit, True) is True
    unit.lifetime = 5.0
    assert end.differs_from_cookie(unit, True) is False
    assert end.differs_from_cookie(unit, False) is True
    stale = with_cookie(site, is_stale=True)
    assert end.differs_from_cookie(stale, False) is True


@pytest.mark.parametrize(
    ("name", "value", "is_for_everybody"),
    [
        ("Cache-Control", "public", True),
        ("Cache-Control", "PUBLIC, max-age=60", True),
        ("cache-control", "s-maxage=60", True),
        ("Cache-Control", "max-age=60", False),
        ("Cache-Control", "private", False),
        ("Cache-Control", "republican", False),
        ("X-Other", "public", False),
        ("CDN-Cache-Control", "max-age=60", True),
        ("cdn-cache-control", "S-MaxAge=60", True),
        ("CDN-Cache-Control", "Public", True),
        ("CDN-Cache-Control", "max-age=60, private", False),
        ("CDN-Cache-Control", "No-Store, max-age=60", False),
        ("CDN-Cache-Control", "must-revalidate", False),
        ("Surrogate-Control", "max-age=60", True),
    ],
)
def test_a_response_is_public_if_some_cache_may_keep_it_for_everybody(
    name: str, value: str, is_for_everybody: bool
) -> None:
    response = Response(headers={"X-First": "1", name: value})
    assert is_public(response) is is_for_everybody
    assert end_of(make_site(), **{name: value}).is_public is is_for_everybody


def test_of_several_headers_one_is_enough() -> None:
    assert not is_public(Response())
    response = Response(headers=[("Cache-Control", "private")])
    response.headers.add("Surrogate-Control", "max-age=60")
    assert is_public(response)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Cache-Control", False),
        ("CACHE-CONTROL", False),
        ("CDN-Cache-Control", True),
        ("Surrogate-Control", True),
        ("Cache-Control-X", False),
    ],
)
def test_a_header_that_is_for_cdns_alone_is_known_by_its_end(
    name: str, expected: bool
) -> None:
    assert is_targeted(name) is expected


@pytest.mark.parametrize("value", [True, False])
def test_before_there_is_a_response_it_is_taken_for_private(value: bool) -> None:
    site = make_site(SESSION_RESAVE=value, SESSION_REFRESH_EACH_REQUEST=value)
    ahead = Ahead(site.state.interface.core)
    assert ahead.resave is ahead.is_refreshed is value
    assert ahead.is_public is False
    unit = with_cookie(site)
    advance(site, DAY)
    assert ahead.is_touch_due(unit) is True
    assert is_doubtful(site.state.interface.core, unit) is True
