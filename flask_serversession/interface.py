"""The two ends of a request: a session is opened, and it is settled.

:mod:`.plan` decides what is written and which cookie is sent, and :mod:`.lifecycle`
carries it out. Here is what Flask asks of a session interface, and the cookie itself.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import logging
import re
import sys
import typing as t
import warnings

from flask import Flask
from flask import Request
from flask import Response
from flask import request as current_request
from flask.ctx import AppContext
from flask.globals import app_ctx
from flask.sessions import NullSession
from flask.sessions import SessionInterface
from flask.sessions import SessionMixin

from .config import ConfigurationWarning
from .config import SessionConfig
from .config import find_late_keys
from .config_checks import find_late_mistakes
from .cookie import CookieSigner
from .cookie import CookieState
from .cookie import delete_cookie
from .cookie import set_cookie
from .errors import BackendUnavailableError
from .hiding import HiddenTuple
from .lifecycle import Lifecycle
from .moment import EndOfRequest
from .moment import is_public
from .moment import is_targeted
from .opened import is_visitors
from .opened import remember
from .sessions import NullServerSession
from .sessions import ServerSideSession
from .sessions import unit_of
from .socketio import is_socket_event
from .unit import Cookie
from .unit import Known
from .unit import Phase
from .unit import Presented
from .unit import Unit

logger = logging.getLogger("flask_serversession")

# Looked up once: see Known.
_NEW, _STORED, _CLOSED = Known.NEW, Known.STORED, Phase.CLOSED
_NONE, _DELETE = Cookie.NONE, Cookie.DELETE

# Longer user agents say nothing more, and are often an attack on whoever lists them.
_MAX_META = 256
_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')

# From Flask 3.2 on, application and request have one context, and Flask's methods that
# handle a request take it before their other arguments.
_TAKE_CONTEXT = hasattr(AppContext, "has_request")


class ServerSessionInterface(SessionInterface):
    """The session interface of one application. Thread-safe.

    The getters of the cookie's attributes are Flask's, asked at each response, so a
    subclass may override them. Install a subclass by setting it as
    :attr:`.ServerSession.interface_class`.
    """

    session_class: type[ServerSideSession] = ServerSideSession
    null_session_class = NullServerSession

    def __init__(
        self,
        config: SessionConfig,
        lifecycle: Lifecycle,
        cleanup: cabc.Callable[[], None],
    ) -> None:
        self.config = config
        self._secrets = HiddenTuple(config.secret)
        self.lifecycle = lifecycle
        self.core = lifecycle.core
        self._cleanup = cleanup
        self._signer: tuple[object, CookieSigner] | None = None
        self._warned_of_http = False
        self._warned_of_caches: set[str | None] = set()

    def is_null_session(self, obj: object) -> bool:
        """Whether it stands for no session, because there is no secret."""
        # Asked at each request. For a class that has abstract ancestors, isinstance()
        # takes ten times as long.
        return type(obj) is not self.session_class and (
            super().is_null_session(obj) or isinstance(obj, NullSession)
        )

    def regenerate(self, session: SessionMixin) -> None:
        """Give the session a new id, as Flask-Session's method of this name does.

        For code written for it; see :meth:`.ServerSideSession.regenerate`.
        """
        t.cast("ServerSideSession", session).regenerate()

    # Flask's getters, where "auto" means something

    def get_cookie_secure(self, app: Flask) -> bool:
        """Whether the cookie is sent over HTTPS only; "auto" follows the request."""
        secure: t.Any = super().get_cookie_secure(app)
        return current_request.is_secure if secure == "auto" else secure

    def get_cookie_samesite(self, app: Flask) -> str | None:
        """Return ``SameSite``; "auto" is ``None`` for a Secure cookie, else ``Lax``.

        As express-session has it: a page that is embedded elsewhere keeps working
        over HTTPS, and plain HTTP gets what browsers accept there.
        """
        samesite = super().get_cookie_samesite(app)
        if samesite is not None and samesite.lower() == "auto":
            return "None" if self.get_cookie_secure(app) else "Lax"
        return samesite

    def get_expiration_time(
        self, app: Flask, session: SessionMixin
    ) -> dt.datetime | None:
        """Return when the browser drops the cookie: not before the session expires."""
        if not session.permanent:
            return None
        lifetime = app.permanent_session_lifetime
        if isinstance(session, ServerSideSession) and session.lifetime is not None:
            lifetime = session.lifetime
        return dt.datetime.fromtimestamp(self.core.clock(), dt.timezone.utc) + lifetime

    def get_signer(self, app: Flask) -> CookieSigner | None:
        """Return the signer; ``None`` if there is no secret at all."""
        # Read at each request like Flask does, derived only when they change.
        secrets = self._secrets
        if not secrets:
            secrets = HiddenTuple(
                (app.secret_key, *(self.core.app_config["SECRET_KEY_FALLBACKS"] or ()))
            )
            if not secrets[0]:
                return None
        known = self._signer
        if known is None or known[0] != secrets:
            is_first = known is None
            known = self._signer = (secrets, CookieSigner(secrets))
            if is_first:  # here, it costs the other requests nothing
                self._warn_of_late_settings(app)
        return known[1]

    def _warn_of_late_settings(self, app: Flask) -> None:
        if keys := find_late_keys(app.config, self.config):
            names = ", ".join(map(repr, keys))
            warnings.warn(
                "These settings were set or changed after ServerSession(app) or"
                f" init_app(app) had read them, and are not in force: {names}. Set them"
                " before.",
                ConfigurationWarning,
                stacklevel=2,
            )
        # What Flask reads at each response is in force, and may be wrong.
        for message in find_late_mistakes(app.config):
            warnings.warn(
                f"{message} It was set after ServerSession(app) or init_app(app) had"
                " checked the settings.",
                ConfigurationWarning,
                stacklevel=2,
            )

    # The two ends of a request

    def open_session(self, app: Flask, request: Request) -> ServerSideSession | None:
        """Make the session, without verifying its cookie or asking the backend."""
        if (signer := self.get_signer(app)) is None:
            return None
        unit = Unit(signer)
        # No local variable: an error reporter could find the cookie in it.
        if "HTTP_COOKIE" in request.environ:
            name, now = self.get_cookie_name(app), self.core.clock()
            unit.presented = Presented(request.environ["HTTP_COOKIE"], name, now)
            if self.core.devices is not None:
                unit.presented.arrived_at = now
        if "socketio" in app.extensions and is_socket_event(app, request):
            unit.phase = _CLOSED
            unit.presented.arrive_with(request.environ)
        if self.config.track:
            unit.meta = self._meta(request)
        session = self.session_class(unit, self.lifecycle)
        return remember(session, request)

    def _meta(self, request: Request) -> dict[str, str]:
        values = {
            "user_agent": request.user_agent.string,
            "remote_addr": request.remote_addr or "",
        }
        return {
            name: values[name][:_MAX_META] for name in self.config.track if values[name]
        }

    def save_session(
        self, app: Flask, session: SessionMixin, response: Response
    ) -> None:
        """Write what has changed and send the cookie that goes with it.

        A session of another kind, which an application's own :meth:`open_session`
        made, is left to the application.

        :raises SerializationError: if the session holds what cannot be written.
        :raises SessionTooLargeError: if it is larger than ``SESSION_MAX_SIZE``.
        :raises ConflictError: if ``SESSION_CONFLICT`` asks for it.
        :raises SessionLostError: if ``SESSION_ON_LOST`` asks for it.
        :raises BackendUnavailableError: in a test client's ``session_transaction()``.
        """
        if type(session) is not self.session_class and not isinstance(
            session, ServerSideSession
        ):
            if session.accessed:
                _vary_by_cookie(response)
            return
        unit = unit_of(session)
        if unit.phase:
            if is_socket_event(app, current_request):
                self.lifecycle.save_event(unit)
            else:
                # Flask calls a second time when the first call has raised.
                self._pay(app, session, unit, response)
            return
        failure = unit.failure
        try:
            if failure is not None and failure is sys.exc_info()[1]:
                # An after_request function or error handler met it: Flask's 500.
                unit.phase = Phase.CLOSED
                _answer_unavailable(app, response, failure)
                return
            cookie = self._settle(app, session, unit, response)
            if unit.is_new and unit.known is _STORED:
                self._cleanup()
        except BackendUnavailableError as error:
            unit.phase = Phase.CLOSED
            if not is_visitors(session):
                raise
            # An error page is the application's answer to a failure it was told of.
            if failure is None or response.status_code < 500:
                _answer_unavailable(app, response, error)
            _vary_by_cookie(response)
            self._pay(app, session, unit, response)
            return
        except BaseException:
            unit.phase = Phase.ABANDONED
            raise
        unit.phase = unit.phase or _CLOSED
        if unit.is_exposed and _is_followed(app, response):
            self.lifecycle.unsaved.watch_response(unit, response)
        else:
            unit.is_exposed = False
        if cookie or session.accessed:
            _vary_by_cookie(response)
        if cookie:
            self._send(app, session, unit, response, cookie)

    def _settle(
        self, app: Flask, session: SessionMixin, unit: Unit, response: Response
    ) -> Cookie:
        moment = EndOfRequest(self.core, response)
        if not self.config.save_on_error and response.status_code >= 500:
            moment.is_error_unsaved = True
            unit.phase = Phase.ABANDONED
        else:
            moment.is_wanted = self._is_wanted(app, session, unit)
        cookie = self.lifecycle.settle(unit, moment)
        if unit.failure is not None and not is_visitors(session):
            raise unit.failure  # whatever SESSION_ON_BACKEND_ERROR keeps from visitors
        return cookie

    def _is_wanted(self, app: Flask, session: SessionMixin, unit: Unit) -> bool | None:
        """Ask ``should_set_cookie()`` if an application has its own, else ``None``.

        Flask's would load the session, so the table has what it says as rows. An
        application's own, or its own session class, may load it, and so it is asked
        before the table is.
        """
        function = getattr(self.should_set_cookie, "__func__", None)
        if function is SessionInterface.should_set_cookie:
            kind: t.Any = type(session)
            if kind is ServerSideSession or (
                kind.modified is ServerSideSession.modified
                and kind.permanent is ServerSideSession.permanent
            ):
                return None
        if unit.known is not _NEW and not unit.presented.values:
            return None  # there is nobody to be sent a cookie
        # What it looks at, the view has not looked at: no page depends on it.
        accessed, was_passive, was_glanced = (
            session.accessed,
            unit.is_passive,
            unit.is_glanced,
        )
        try:
            return self.should_set_cookie(app, session)
        finally:
            session.accessed = accessed
            unit.is_passive, unit.is_glanced = was_passive, was_glanced

    # The cookie

    def _pay(
        self, app: Flask, session: SessionMixin, unit: Unit, response: Response
    ) -> None:
        """Send what is owed with an error page.

        A new id was stored and the old one is dead, or the session was ended.
        """
        owed = unit.owed
        is_ended = owed is Cookie.DELETE and unit.phase is Phase.ABANDONED
        if is_ended or owed is Cookie.SET:
            _vary_by_cookie(response)
            self._send(app, session, unit, response, owed)

    def _send(
        self,
        app: Flask,
        session: SessionMixin,
        unit: Unit,
        response: Response,
        cookie: Cookie,
    ) -> None:
        if (devices := self.core.devices) is not None:
            devices.tell(self, app, unit, response, cookie)
        # One that is only sent again was left out of a public response before.
        if (cookie is _DELETE or unit.owed) and is_public(response):
            self._make_private(response)
        if cookie is _DELETE:
            delete_cookie(self, app, response)
            return
        unit.owed = _NONE
        expires = self.get_expiration_time(app, session)
        now = self.core.clock()
        if set_cookie(self, app, response, lambda: self._value(unit), expires, now):
            self._warn_of_http()

    def _warn_of_http(self) -> None:
        """Warn once of a Secure cookie that a browser ignores."""
        if not self._warned_of_http and not current_request.is_secure:
            self._warned_of_http = True
            logger.warning(
                "The session cookie is Secure, but a request came over plain HTTP, from"
                " which browsers ignore it. Behind a proxy that speaks HTTPS, use"
                " werkzeug.middleware.proxy_fix.ProxyFix."
            )

    def _value(self, unit: Unit) -> str:
        """Sign the cookie, unless it says what the one that came with the request does.

        That of a browser session may name an earlier touch, which costs no more than
        one touch before its time.
        """
        core, stored, cookie = self.core, unit.stored, unit.presented.cookie
        if stored is not None and unit.identity is not None:
            cookie = CookieState(
                unit.identity.id,
                core.is_permanent(unit),
                stored.record.touched_at,
                stored.counts_from,
                unit.lifetime,
                False,
                unit.is_unsettled,
            )
        assert cookie is not None  # noqa: S101 - for type checkers
        value = unit.presented.value
        # What came, which is remembered.
        given = unit.signer.verify(value) if value else None
        if (
            given is not None
            and given.id == cookie.id
            and not given.is_stale
            and given.is_unsettled is cookie.is_unsettled
            and given.says(cookie.is_permanent, cookie.lifetime)
            and int(given.counts_from) == int(cookie.counts_from)
            and (
                given.touched_at >= cookie.touched_at
                or not (
                    cookie.is_permanent
                    or core.is_touch_due(
                        cookie.touched_at,
                        given.touched_at,
                        cookie.lifetime or core.idle_timeout(False),
                    )
                )
            )
        ):
            return value
        return unit.signer.sign(cookie)

    def _make_private(self, response: Response) -> None:
        """Keep a response out of the caches that are shared, since it has a cookie."""
        endpoint = current_request.endpoint
        if endpoint not in self._warned_of_caches:
            self._warned_of_caches.add(endpoint)
            logger.warning(
                "The response of the endpoint %r carries a session cookie that must be"
                " sent, but its Cache-Control lets any cache keep it for everybody, or"
                " a header like it lets a CDN. It was made private. Do not change the"
                " session there, or leave out 'public', 's-maxage' and that header.",
                endpoint,
            )
        for name in filter(is_targeted, {*response.headers.keys()}):
            del response.headers[name]
        header = ",".join(response.headers.getlist("Cache-Control"))
        kept = [
            directive.strip()
            for directive in _COMMA.split(header)
            if directive.partition("=")[0].strip().lower()
            not in ("", "public", "s-maxage", "private")
        ]
        response.headers["Cache-Control"] = ", ".join([*kept, "private"])


def _is_followed(app: Flask, response: Response) -> bool:
    """Whether code of the application's may run after the response was made."""
    calls: t.Any = response._on_close  # pyright: ignore[reportPrivateUsage]
    return bool(response.is_streamed or calls or app.teardown_request_funcs)


def _vary_by_cookie(response: Response) -> None:
    # Adding the header costs a fifth of parsing it; looking for it by "in" raises an
    # exception inside of werkzeug, which costs as much again.
    for name, _ in response.headers:
        if name.lower() == "vary":
            response.vary.add("Cookie")
            return
    response.headers.add("Vary", "Cookie")


def _context() -> tuple[t.Any, ...]:
    """Return what Flask's methods that handle a request take first."""
    context: t.Any = app_ctx
    return (context._get_current_object(),) if _TAKE_CONTEXT else ()


def _answer_unavailable(
    app: Flask, response: Response, error: BackendUnavailableError
) -> None:
    """Turn a response whose session could not be stored into the error's own.

    An exception from ``save_session`` would reach the visitor as a 500, past the
    application's own error handlers for this one. The functions that run after each
    request run again, as they do whenever Flask answers with an error page.
    """
    methods: t.Any = app
    answer: Response = methods.finalize_request(
        *_context(),
        methods.handle_user_exception(*_context(), error),
        from_error_handler=True,
    )
    if (close := getattr(response.response, "close", None)) is not None:
        close()
    response.direct_passthrough = answer.direct_passthrough
    response.response = answer.response
    response.status = answer.status
    response.headers.clear()
    response.headers.extend(answer.headers)
    _vary_by_cookie(response)
