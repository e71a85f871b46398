"""Where browsers register a key, and prove that they have it.

Nothing is asked of the backend before the signature is verified. A failure is answered
such that the browser tries again, never such that it gives its key up: by a proof if
that is harmless, which it is without a session that it opens, or by ``403`` with
another challenge.
"""

from __future__ import annotations

import typing as t

from flask import Flask
from flask import Response
from flask import current_app
from flask import json
from flask import request as current_request
from werkzeug.http import dump_cookie

from ..cookie import attributes_of
from ..errors import BackendUnavailableError
from ..errors import ServerSessionError
from ..opened import opened_session
from ..payload import Device
from ..record import Record
from ..sessions import unit_of
from ..unit import Known
from ..unit import Unit
from ..unit import Wish
from . import SUFFIX
from . import Devices
from . import path_out_of_scope
from . import registration_of
from . import url_of
from .seals import CHALLENGE_AGE
from .seals import is_challenge
from .seals import make_challenge
from .seals import make_proof
from .tokens import read_point
from .tokens import read_token
from .tokens import unquote
from .tokens import write_point

if t.TYPE_CHECKING:
    from ..interface import ServerSessionInterface


def make_answer(
    interface: ServerSessionInterface, devices: Devices
) -> t.Callable[[], Response | None]:
    """Return the function that runs before each request, and answers some.

    It goes before all that the application has run there: a protection against
    cross-site requests, a wall that asks for a log-in, a limit.
    """
    route, path = _DeviceRoute(interface, devices), devices.path

    # All requests pay for this; Flask takes longer to look at a method.
    def answer() -> Response | None:
        return route.answer() if current_request.path == path else None

    return answer


class _DeviceRoute:
    """Answers browsers that register a key, or prove that they have it. Thread-safe."""

    def __init__(self, interface: ServerSessionInterface, devices: Devices) -> None:
        self._interface = interface
        self._core = interface.core
        self._devices = devices

    def answer(self) -> Response | None:
        """Answer the current request; ``None`` leaves it to the application."""
        session = opened_session()
        if session is None or current_request.method != "POST":
            return None
        unit = unit_of(session)
        # The browser does it, and not its user.
        unit.be_active(False)
        if unit.presented.arrived_at is not None:
            unit.presented.arrived_at = None  # the proof is what it has come for
        self._interface.lifecycle.loader.verify(unit)
        token = unquote(current_request.headers.get("Secure-Session-Response", ""))
        identifier = current_request.headers.get("Sec-Secure-Session-Id")
        if identifier is None:
            response = self._register(unit, token)
        else:
            response = self._refresh(unit, unquote(identifier), token)
        response.headers["Cache-Control"] = "no-store"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response

    # The two things that browsers want

    def _register(self, unit: Unit, text: str) -> Response:
        token = read_token(text)
        if unit.identity is None or token is None or token.point is None:
            return _refuse(unit)
        subject, now = registration_of(unit.key), self._core.clock()
        if not is_challenge(
            unit.signer, token.challenge, subject, now, CHALLENGE_AGE
        ) or not token.is_signed_by(token.point):
            return _refuse(unit)
        device = Device(token.point)
        try:
            self._interface.lifecycle.loader.load(unit)
            if _takes(unit, device):
                self._store(unit, device)
        except BackendUnavailableError:
            raise
        except ServerSessionError:
            self._forget(unit)
        if not _has(unit, device):
            return _refuse(unit)
        identifier = write_point(device.point)
        return self._instruct(unit, identifier)

    def _refresh(self, unit: Unit, identifier: str, text: str) -> Response:
        core = self._core
        if (point := read_point(identifier)) is None:
            return _refuse(unit)
        if unit.identity is None:
            return _end(unit, identifier)  # somebody has logged out
        now, token = core.clock(), read_token(text)
        max_age = self._devices.lifetime + CHALLENGE_AGE
        if (
            token is None
            or not is_challenge(unit.signer, token.challenge, identifier, now, max_age)
            or not token.is_signed_by(point)
        ):
            response = _refuse(unit)
            self._challenge(unit, response, identifier)
            return response
        device = Device(point, now)
        try:
            self._interface.lifecycle.loader.load(unit)
            if unit.known is Known.NEW or (
                unit.known is Known.STORED and not _has(unit, device)
            ):
                return _end(unit, identifier)
            if _takes(unit, device):
                self._store(unit, device)
        except ServerSessionError:
            self._forget(unit)  # it binds nothing now, and the next one will
        response = self._instruct(unit, identifier)
        self._prove(unit, response, identifier, now)
        return response

    def _store(self, unit: Unit, device: Device) -> None:
        """Put a key into the record of a session, whatever else is in there by then."""
        core = self._core

        def resolve(current: Record) -> None:
            core.adopt(unit, current)
            if not _takes(unit, device):
                self._forget(unit)

        unit.device = device
        unit.want(Wish.SAVE)
        self._interface.lifecycle.write(unit, resolve)

    def _forget(self, unit: Unit) -> None:
        """Do not store the key, nor try it again at the end of the request."""
        unit.device = None
        unit.forget_wishes()

    # What they get

    def _instruct(self, unit: Unit, identifier: str) -> Response:
        """Tell the browser when to come back, and what for."""
        app = _current_app()
        attributes = attributes_of(self._interface, app, SUFFIX)
        scope: list[dict[str, str]] = []
        if path := path_out_of_scope(app):
            scope = [{"type": "exclude", "domain": "*", "path": url_of(path)}]
        document: dict[str, t.Any] = {
            "session_identifier": identifier,
            "refresh_url": url_of(self._devices.path),
            "scope": {"include_site": False, "scope_specification": scope},
            "credentials": [
                {
                    "type": "cookie",
                    "name": attributes["key"],
                    "attributes": _cookie(attributes).partition("; ")[2],
                }
            ],
        }
        if self._devices.initiators:
            document["allowed_refresh_initiators"] = [*self._devices.initiators]
        response = _document(document)
        self._challenge(unit, response, identifier)
        return response

    def _challenge(self, unit: Unit, response: Response, identifier: str) -> None:
        """Give the browser what it has to sign next time."""
        challenge = make_challenge(unit.signer, identifier, self._core.clock())
        response.headers["Secure-Session-Challenge"] = (
            f'"{challenge}";id="{identifier}"'
        )

    def _prove(
        self, unit: Unit, response: Response, identifier: str, now: float
    ) -> None:
        """Set the cookie that says that the browser has the key."""
        devices = self._devices
        proof = make_proof(unit.signer, identifier, now + devices.lifetime)
        attributes = attributes_of(self._interface, _current_app(), SUFFIX)
        max_age = max(1, int(devices.lifetime - devices.margin))
        response.headers.add("Set-Cookie", _cookie(attributes, proof, max_age))


def _takes(unit: Unit, device: Device) -> bool:
    """Whether a session may get a key, or be bound to the one that it has."""
    stored = unit.stored
    if unit.known is not Known.STORED or stored is None or stored.record.user is None:
        return False
    known = stored.device
    if device.bound_at is None:
        return known is None or (known.bound_at is None and known != device)
    return known is not None and known == Device(device.point)


def _has(unit: Unit, device: Device) -> bool:
    """Whether a session has that key, bound to it or not."""
    known = None if unit.stored is None else unit.stored.device
    return (
        unit.known is Known.STORED and known is not None and known.point == device.point
    )


def _cookie(
    attributes: t.Mapping[str, t.Any], value: str = "", max_age: int | None = None
) -> str:
    # No script needs it, whatever becomes of the session's.
    attributes = {**attributes, "httponly": True}
    return dump_cookie(value=value, max_age=max_age, **attributes)


def _document(document: t.Mapping[str, t.Any]) -> Response:
    return Response(json.dumps(document), mimetype="application/json")


def _end(unit: Unit, identifier: str) -> Response:
    """Let the browser forget its key."""
    _hide(unit)
    return _document({"session_identifier": identifier, "continue": False})


def _refuse(unit: Unit) -> Response:
    _hide(unit)
    return Response("The key was not proven.", 403, mimetype="text/plain")


def _hide(unit: Unit) -> None:
    """Show nothing of a session that was not proven, and store nothing.

    Functions of the application that run after each request may look at it, and write:
    another session would take the place of one whose browser is about to prove it.
    """
    unit.data = {}
    unit.fail(None)


def _current_app() -> Flask:
    app: t.Any = current_app
    return t.cast(Flask, app._get_current_object())
