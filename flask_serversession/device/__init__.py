"""Sessions that are bound to a key of the browser's device.

Theory of operation
===================

Device Bound Session Credentials (DBSC), a draft of the W3C, as Chromium speaks it. A
browser that can do it makes a key that never leaves its device, and proves now and
then that it has it. A second cookie, the *proof*, says until when that is known. A copy
of both cookies is of no use after that. Browsers that cannot do it ignore a header.

**Offered.** The response to a log-in carries a challenge for the session's new id
(:meth:`Devices.tell`). Nothing else does: who has only a copy of the cookie never gets
one, and cannot have the session bound to a key of their own.

**Registered.** The browser signs the challenge and sends it with the new key
(:mod:`.route`). The record gets the key, and is not bound yet: a browser that does not
accept the answer leaves a session as it was, and nobody is locked out.

**Bound.** No proof came with that, so the browser asks for one before its next request.
Who can do that has the key and has understood all else: now the record is bound.

**Used.** A bound record is accepted if the request arrived with a proof of its key
(:meth:`Devices.accepts`), which is checked where the record is loaded, before its
content is known to anybody. A request without one is answered in one of three ways
(:meth:`Devices.find_excuse`): a browser that could not get a proof right now tries
again; a link from another site is followed once more, by this one; of any other the
session is unknown, as if it had ended.

**What is not asked.** A request that does not look at its session learns nothing of it
and asks nobody, so it is not asked for a proof either; it may end the session, and
renew it where use does. Events of a socket prove what its handshake did.

Nothing is kept but the key in the record: its public half is the name of the device's
session, and challenges and proofs are sealed with the application's secret
(:mod:`.seals`).
"""

from __future__ import annotations

import functools
import logging
import typing as t
import urllib.parse

from flask import Flask
from flask import Response
from flask import current_app
from flask import has_request_context
from flask import request as current_request
from flask.sessions import SessionInterface

from ..config import SessionConfig
from ..cookie import MAX_CANDIDATES
from ..cookie import REMEMBERED
from ..cookie import CookieSigner
from ..cookie import attributes_of
from ..cookie import delete_cookie
from ..errors import BackendUnavailableError
from ..payload import device_part
from ..payload import read_bound
from ..record import Record
from ..unit import Cookie
from ..unit import Unit
from .seals import SKEW
from .seals import end_of_proof
from .seals import make_challenge
from .tokens import write_point

logger = logging.getLogger("flask_serversession")

#: What follows the name of the session's cookie in that of the proof.
SUFFIX = "_proof"

# A request that was on its way when its session was bound has no proof, in seconds.
_ON_THE_WAY = 30.0 + SKEW
# Of a proof. Nothing longer is remembered.
_MAX_LENGTH = 64


class _FollowAgain(BackendUnavailableError):
    """A link from another site, which the browser follows without a new proof.

    Answered by a page that follows it once more. The browser proves the key before
    that request, which is the site's own. No error page: it has no code.
    """

    code: t.Any = None

    def get_response(self, *_: t.Any, **__: t.Any) -> Response:
        """Return the page."""
        response = Response(
            "<!doctype html><title>&hellip;</title><script>location.reload()</script>",
            mimetype="text/html",
        )
        # Where scripts are forbidden. The path is the page's own: of all that a link
        # can hold, only the query stands here.
        query = urllib.parse.quote(
            current_request.query_string, safe="%/:@!$&'()*+,;=-._~?"
        )
        response.headers["Refresh"] = f"1; url=?{query}"
        response.headers["Cache-Control"] = "no-store"
        response.headers["Vary"] = "Cookie"
        return response


class Devices:
    """Binds the sessions of one application to devices. Thread-safe."""

    def __init__(self, config: SessionConfig) -> None:
        self.path = config.device_bound_path
        self.lifetime = config.device_bound_lifetime
        self.initiators = config.device_bound_initiators
        # By which the browser asks again before the end, and by which clocks differ.
        self.margin = min(SKEW, self.lifetime / 10)
        self._warned_of_remember_cookie = False
        # A browser sends the same one with all requests of some minutes.
        self._end_of_proof = functools.lru_cache(REMEMBERED)(_end_of_proof)

    # Whether a request may use a session

    def accepts(self, unit: Unit, record: Record) -> bool:
        """Whether a request may use the session of a record. Asks nobody."""
        presented, bound = unit.presented, read_bound(record.data)
        arrived_at = presented.arrived_at
        if arrived_at is None or bound is None:
            return True
        point, bound_at = bound
        if arrived_at < bound_at + _ON_THE_WAY:
            return True
        moment = arrived_at - self.margin
        for value in presented.values_beside(SUFFIX)[:MAX_CANDIDATES]:
            if (
                len(value) <= _MAX_LENGTH
                and self._end_of_proof(unit.signer, value, point) >= moment
            ):
                return True
        return False

    def find_excuse(self, unit: Unit) -> BackendUnavailableError | None:
        """Return how to answer a browser that may still have the key.

        :return: What is raised; ``None`` if there is no such session for it.
        """
        if unit.phase or not has_request_context():
            return None  # there is nobody to be answered
        headers = current_request.headers
        if "Secure-Session-Skipped" in headers:
            return BackendUnavailableError(
                "The browser did not get the proof that its session needs: it could"
                f" not reach {self.path!r}, or got an error from there. It tries again"
                " with its next request.",
                operation="prove",
            )
        if (
            current_request.method == "GET"
            and headers.get("Sec-Fetch-Mode") == "navigate"
            and headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
        ):
            return _FollowAgain(
                "A link from another site has to be followed again, with a proof.",
                operation="prove",
            )
        return None

    def is_out_of_scope(self) -> bool:
        """Whether the browser sends such a request without asking for a proof.

        What the application does before each request may look at the session of a
        picture, too.
        """
        if not has_request_context():
            return False
        path = path_out_of_scope(current_app)
        # Browsers leave out "/static/logo.png", and not "/statics".
        return bool(path) and f"{current_request.path}/".startswith(f"{path}/")

    # What a response says

    def tell(
        self,
        interface: SessionInterface,
        app: Flask,
        unit: Unit,
        response: Response,
        cookie: Cookie,
    ) -> None:
        """Let the browser of a new log-in register a key, and forget an old proof.

        :param cookie: What becomes of the session's.
        """
        stored, is_set = unit.stored, cookie is Cookie.SET
        # With an old proof, the browser would not ask for that of the new key.
        is_kept = is_set and (stored is None or device_part(stored.record.data))
        if not is_kept and unit.presented.values_beside(SUFFIX):
            delete_cookie(interface, app, response, SUFFIX)
        if unit.is_device_offered and is_set:
            self._offer(interface, app, unit, response)

    def _offer(
        self, interface: SessionInterface, app: Flask, unit: Unit, response: Response
    ) -> None:
        stored = unit.stored
        if stored is None or stored.record.user is None:
            return  # logged out again
        if read_bound(stored.record.data) is not None:
            return  # who has only confirmed it
        attributes = attributes_of(interface, app)
        if (
            not current_request.is_secure
            or not attributes["secure"]
            or attributes["domain"]
            or attributes["partitioned"]
        ):
            return
        now = stored.envelope.issued_at
        challenge = make_challenge(unit.signer, registration_of(unit.key), now)
        response.headers["Secure-Session-Registration"] = (
            f'(ES256);path="{url_of(self.path)}";challenge="{challenge}"'
        )
        self._warn_of_remember_cookie(app, response)

    def _warn_of_remember_cookie(self, app: Flask, response: Response) -> None:
        """Warn once of a cookie that needs no key and logs in again."""
        if self._warned_of_remember_cookie:
            return
        config: t.Any = app.config
        name: str = config.get("REMEMBER_COOKIE_NAME", "remember_token")
        start = f"{name}="
        if start in current_request.environ.get("HTTP_COOKIE", "") or any(
            value.startswith(start)
            for header, value in response.headers
            if header.lower() == "set-cookie"
        ):
            self._warned_of_remember_cookie = True
            logger.warning(
                "Sessions are bound to devices, but Flask-Login's cookie %r is in use,"
                " which logs in on any device. Call login_user() without remember, and"
                " set session.permanent to True.",
                name,
            )


def _end_of_proof(signer: CookieSigner, proof: str, point: bytes) -> float:
    return end_of_proof(signer, proof, write_point(point))


def registration_of(key: str) -> str:
    """Return the subject of the challenge that a log-in gives out."""
    return f"log-in {key}"


def path_out_of_scope(app: Flask) -> str:
    """Return how addresses begin for which no proof is asked; empty if there are none.

    Those of static files, which are many and need no session.
    """
    return app.static_url_path or "" if app.has_static_folder else ""


def url_of(path: str) -> str:
    """Return the path of an address of the application, as a browser asks for it.

    The application's root can come from a header, so it may hold anything.
    """
    root = current_request.root_path.strip("/")
    return f"/{urllib.parse.quote(root, safe='/~')}{path}" if root else path
