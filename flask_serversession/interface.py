"""Decides, at the end of each request, what is written and which cookie is sent.

The table that the methods below follow, row by row:

==========================================  =====================  ==================
the request                                 backend                cookie
==========================================  =====================  ==================
no cookie, nothing written                  nothing                none
the same, ``SESSION_SAVE_UNINITIALIZED``    create                 set
cookie, session not looked at               nothing                none
the same, permanent and refreshed           touch, once an         sent again
                                            interval
only read                                   load (touch, once an   if permanent and
                                            interval)              refreshed
changed                                     load, replace          set
fresh and written                           create                 set
``SESSION_RESAVE`` and unchanged            load, replace          as read
emptied or destroyed                        delete                 deleted, if sent
emptied and then written                    load, create, replace  set
id rotated                                  load, create, replace  set
unknown, expired, forged or malformed id    at most one load       none
rotated away, or gone when saving           as above               none, either way
==========================================  =====================  ==================

A session that was emptied by removing its keys, not by ``clear()``, is removed by a
replace with a record that has expired already: a delete that compares the version,
so that a key which another request adds at that moment is not lost.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import enum
import logging
import re
import sys
import typing as t

from flask import Flask
from flask import Request
from flask import Response
from flask import request as current_request
from flask.ctx import AppContext
from flask.globals import app_ctx
from flask.sessions import NullSession
from flask.sessions import SessionInterface
from flask.sessions import SessionMixin

from .config import SessionConfig
from .cookie import CookieSigner
from .cookie import CookieState
from .cookie import claims_permanent
from .cookie import find_values
from .errors import BackendUnavailableError
from .keeper import BackendKeeper
from .keeper import Outcome
from .session import NullServerSession
from .session import ServerSideSession
from .session import State
from .session import Status
from .session import is_unused
from .session import remember
from .session import state_of

logger = logging.getLogger("flask_serversession")

# Longer user agents say nothing more, and are often an attack on whoever lists them.
_MAX_META = 256
# Directives that let a cache keep a response for everybody: RFC 9111, section 5.2.2.
_PUBLIC = re.compile(r"\b(?:public|s-maxage)\b", re.IGNORECASE)
_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')

# From Flask 3.2 on, application and request have one context, and Flask's methods that
# handle a request take it before their other arguments.
_TAKE_CONTEXT = hasattr(AppContext, "has_request")


class Cookie(enum.Enum):
    """What happens to the cookie."""

    NONE = enum.auto()
    SET = enum.auto()
    DELETE = enum.auto()


class ServerSessionInterface(SessionInterface):
    """Flask's way to the sessions of one application. Thread-safe.

    The getters of the cookie's attributes are Flask's, asked at each response, so a
    subclass may override them. Install a subclass by setting it as
    :attr:`.ServerSession.interface_class`.
    """

    session_class: type[ServerSideSession] = ServerSideSession
    null_session_class = NullServerSession

    def __init__(
        self,
        config: SessionConfig,
        keeper: BackendKeeper,
        cleanup: cabc.Callable[[], None],
    ) -> None:
        self.config = config
        self.keeper = keeper
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
        """Give ``SameSite``; "auto" is ``None`` for a Secure cookie, else ``Lax``.

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
        """Give when the browser drops the cookie: never before the session expires."""
        if not session.permanent:
            return None
        lifetime = app.permanent_session_lifetime
        if isinstance(session, ServerSideSession) and session.lifetime is not None:
            lifetime = session.lifetime
        return (
            dt.datetime.fromtimestamp(self.keeper.clock(), dt.timezone.utc) + lifetime
        )

    def get_signer(self, app: Flask) -> CookieSigner | None:
        """Give the signer; ``None`` if there is no secret at all."""
        # Read at each request like Flask does, derived only when they change.
        secrets: t.Any = self.config.secret
        if not secrets:
            if not (secret := app.secret_key):
                return None
            config: t.Any = app.config
            secrets = (secret, *(config["SECRET_KEY_FALLBACKS"] or ()))
        if self._signer is None or self._signer[0] != secrets:
            self._signer = (secrets, CookieSigner(secrets))
        return self._signer[1]

    # The two ends of a request

    def open_session(self, app: Flask, request: Request) -> ServerSideSession | None:
        """Make the session, without verifying its cookie or asking the backend."""
        if (signer := self.get_signer(app)) is None:
            return None
        candidates: cabc.Sequence[str] = ()
        header: str | None = request.environ.get("HTTP_COOKIE")
        if header is not None:
            name = self.get_cookie_name(app)
            if '"' in header:
                candidates = request.cookies.getlist(name)
            else:
                candidates = find_values(header, name)
        state = State(signer, candidates)
        if candidates:
            state.seen_at = self.keeper.clock()
        if _is_socket_event(app, request):
            state.is_closed = True
        if self.config.track:
            state.meta = self._meta(request)
        return remember(self.session_class(state, self.keeper), request)

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
        """
        if type(session) is not self.session_class and not isinstance(
            session, ServerSideSession
        ):
            if session.accessed:
                _vary_by_cookie(response)
            return
        state = state_of(session)
        if state.is_closed and _is_socket_event(app, current_request):
            self._save_event(state)
            return
        if state.is_closed:
            # Flask calls a second time when the first call has raised. Nothing is
            # stored then, but an id that has changed must reach the browser.
            self._set_due_cookie(app, session, state, response)
            if (
                state.is_abandoned
                and state.status is Status.NEW
                and self._is_ended(state)
            ):
                _vary_by_cookie(response)
                self._delete_cookie(app, response)
            return
        failure = state.failure
        try:
            if failure is not None and failure is sys.exc_info()[1]:
                # Met by an after_request function or an error handler: what those
                # raise, Flask answers with a 500 and brings here.
                state.is_closed = True
                _answer_unavailable(app, response, failure)
                _vary_by_cookie(response)
                return
            cookie = self._settle(app, session, state, response)
            if state.is_new and state.status is Status.STORED:
                self._cleanup()
        except BackendUnavailableError as error:
            state.is_closed = True
            # An error page is the application's answer to a failure it was told of.
            if failure is None or response.status_code < 500:
                _answer_unavailable(app, response, error)
            _vary_by_cookie(response)
            self._set_due_cookie(app, session, state, response)
            return
        except BaseException:
            state.is_abandoned = True
            raise
        finally:
            state.is_closed = True
            if not response.is_streamed:
                state.is_exposed = False
            elif state.is_exposed:
                self.keeper.watch()
        if cookie is Cookie.SET and not state.is_cookie_due and _is_public(response):
            # The browser has it already, and whoever shares the cache must not get it.
            cookie = Cookie.NONE
        if session.accessed or cookie is not Cookie.NONE:
            _vary_by_cookie(response)
        if cookie is Cookie.SET:
            self._set_cookie(app, session, state, response)
        elif cookie is Cookie.DELETE:
            self._delete_cookie(app, response)

    def _save_event(self, state: State) -> None:
        """Save what a handler of Flask-SocketIO has changed.

        No cookie can be sent, so a session that would need one stays as it is stored,
        which is warned of afterwards. :meth:`.ServerSideSession.save` raises instead.
        """
        if state.status is Status.UNLOADED:
            self.keeper.load(state)
        is_moving = (
            state.status is Status.STORED
            and not is_unused(state.data)
            and self.keeper.rotation_reason(state) is not None
        )
        if state.status is not Status.NEW and not is_moving:
            self.keeper.save(state)

    # The decisions

    def _is_wanted(self, app: Flask, session: SessionMixin) -> bool | None:
        """Ask an application's own ``should_set_cookie``; ``None`` if it has none.

        Flask's would load the session, so what it says is said here in other words.
        """
        function = getattr(self.should_set_cookie, "__func__", None)
        if function is SessionInterface.should_set_cookie:
            return None
        return self.should_set_cookie(app, session)

    def _settle(
        self, app: Flask, session: SessionMixin, state: State, response: Response
    ) -> Cookie:
        if not self.config.save_on_error and response.status_code >= 500:
            state.is_abandoned = True
            if state.is_cookie_due and state.status is Status.STORED:
                return Cookie.SET
            return Cookie.DELETE if self._is_ended(state) else Cookie.NONE
        is_wanted = None
        if state.candidates or state.status is Status.NEW:
            # It may look at the session, so it comes first.
            is_wanted = self._is_wanted(app, session)
        if state.status is Status.UNLOADED:
            if not state.is_written:
                return self._settle_unseen(app, state, response, is_wanted)
            if state.is_cleared:
                outcome = self.keeper.clear(state)
                return Cookie.DELETE if outcome is Outcome.EMPTIED else Cookie.NONE
            self.keeper.load(state)
        if state.status is Status.NEW:
            return self._settle_new(state, is_wanted)
        if state.status is Status.STORED:
            return self._settle_stored(app, state, is_wanted)
        if state.status is Status.LOST:
            is_dropped = state.is_written and not (
                is_unused(state.data) and (state.data or state.is_cleared)
            )
            try:
                if is_dropped:
                    self.keeper.drop(state)
            finally:
                # Who logs out does so whatever else is dropped, such as a message.
                if state.is_cleared:
                    self.keeper.clear(state)
        elif state.failure is not None and (
            state.is_cleared
            or (state.is_written and self.config.on_backend_error == "raise")
        ):
            # Logging out must not look as if it had worked, nor must a change that
            # was made although the failure was raised.
            raise state.failure
        return Cookie.NONE

    def _settle_unseen(
        self, app: Flask, state: State, response: Response, is_wanted: bool | None
    ) -> Cookie:
        """Settle a session that nobody looked at."""
        if not state.candidates:
            if not self.config.save_uninitialized:
                return Cookie.NONE
            self.keeper.load(state)
            return self._settle_new(state, is_wanted)
        is_refreshed = is_wanted
        if is_refreshed is None:
            is_refreshed = _is_refreshed(app) and any(
                claims_permanent(value) for value in state.candidates
            )
        if not (is_refreshed and not _is_public(response)) and not state.is_touched:
            # Where the cookie cannot be sent, it would not learn of a touch either,
            # and the next request would have to touch again.
            return Cookie.NONE
        self.keeper.verify(state)
        is_permanent = state.cookie is not None and state.cookie.is_permanent
        if state.cookie is None or not (is_wanted or is_permanent or state.is_touched):
            return Cookie.NONE
        touched_at = self.keeper.renew_unseen(state)
        if touched_at is None:
            return Cookie.NONE
        cookie, state.cookie = state.cookie, _touched(state.cookie, touched_at)
        if is_wanted is not None:
            return Cookie.SET if is_wanted else Cookie.NONE
        # Without being told, a browser session's cookie would have every touch() done.
        is_sent = cookie.is_permanent and is_refreshed
        return Cookie.SET if is_sent or touched_at != cookie.touched_at else Cookie.NONE

    def _settle_new(self, state: State, is_wanted: bool | None) -> Cookie:
        """Settle a session that is not stored."""
        is_empty = is_unused(state.data)
        if self._is_ended(state) and is_empty:
            return Cookie.DELETE
        if not (state.is_written and not is_empty) and not (
            self.config.save_uninitialized and not state.is_cleared
        ):
            return Cookie.NONE
        if is_wanted is False:
            return Cookie.NONE  # nobody could ever find what would be stored
        self.keeper.write(state, "new")
        return Cookie.SET

    def _settle_stored(
        self, app: Flask, state: State, is_wanted: bool | None
    ) -> Cookie:
        """Settle a session that was loaded, or saved before the end of the request."""
        keeper = self.keeper
        change = keeper.change_reason(state)
        is_changed = change is not None or state.is_saved
        is_renewed = _is_refreshed(app) or state.is_touched
        is_permanent = keeper.is_permanent(state)
        is_used = is_renewed or not is_permanent
        state.is_activity = is_changed or is_used
        is_written = (
            change is not None
            or self.config.resave
            or keeper.rotation_reason(state) is not None
        )
        if is_written:
            outcome = keeper.write(state, change)
            if outcome is Outcome.EMPTIED:
                return Cookie.DELETE if state.cookie is not None else Cookie.NONE
            if outcome is Outcome.LOST:
                return Cookie.NONE
            # What another request has stored may have been merged in.
            is_permanent = keeper.is_permanent(state)
        if keeper.is_retired(state.key):
            return Cookie.NONE
        is_due = is_wanted
        if is_due is None:
            is_due = (
                state.cookie is None
                # Signed with a secret that will be removed one day.
                or state.cookie.is_stale
                or not state.cookie.says(is_permanent, state.lifetime)
                # As Flask's should_set_cookie() has it.
                or state.is_written
                or state.was_written
                or (is_permanent and (is_renewed or is_changed))
            )
        is_due = is_due and state.failure is None
        if not is_written:
            is_old = state.cookie is not None and not state.is_cookie_due
            if not keeper.renew(state, is_used, is_sent_again=is_due and is_old):
                return Cookie.NONE
        return Cookie.SET if is_due or state.is_cookie_due else Cookie.NONE

    def _is_ended(self, state: State) -> bool:
        """Whether this request has ended the session that its cookie names."""
        return state.is_destroyed and state.cookie is not None

    # The cookie

    def _set_due_cookie(
        self, app: Flask, session: SessionMixin, state: State, response: Response
    ) -> None:
        """Send a new id with an error page: it was stored, and the old one is dead."""
        if state.is_cookie_due and state.status is Status.STORED:
            _vary_by_cookie(response)
            self._set_cookie(app, session, state, response)

    def _set_cookie(
        self, app: Flask, session: SessionMixin, state: State, response: Response
    ) -> None:
        cookie = state.cookie
        if state.status is not Status.UNLOADED:
            record = state.stored
            cookie = CookieState(
                id=self.keeper.id(state),
                is_permanent=self.keeper.is_permanent(state),
                touched_at=record.touched_at,
                created_at=record.created_at,
                lifetime=state.lifetime,
            )
        if cookie is None:
            return
        if _is_public(response):
            self._make_private(response)
        state.is_cookie_due = False
        secure = self.get_cookie_secure(app)
        if secure and not self._warned_of_http and not current_request.is_secure:
            self._warned_of_http = True
            logger.warning(
                "The session cookie is Secure, but a request came over plain HTTP, from"
                " which browsers ignore it. Behind a proxy that speaks HTTPS, use"
                " werkzeug.middleware.proxy_fix.ProxyFix."
            )
        response.set_cookie(
            self.get_cookie_name(app),
            self._value(state, cookie),
            expires=self.get_expiration_time(app, session),
            domain=self.get_cookie_domain(app),
            path=self.get_cookie_path(app),
            secure=secure,
            partitioned=self.get_cookie_partitioned(app),
            samesite=self.get_cookie_samesite(app),
            httponly=self.get_cookie_httponly(app),
        )

    def _value(self, state: State, cookie: CookieState) -> str:
        """Sign a cookie, unless it says what the one that came with the request does.

        That of a browser session may name an earlier touch, which costs no more than
        one touch before its time.
        """
        value = state.candidates[state.tried - 1] if state.tried else ""
        given = state.signer.verify(value)  # which it remembers
        if (
            given is not None
            and given.id == cookie.id
            and not given.is_stale
            and given.says(cookie.is_permanent, cookie.lifetime)
            and (
                given.touched_at >= cookie.touched_at
                or not (
                    cookie.is_permanent
                    or self.keeper.is_touch_due(
                        cookie.touched_at,
                        given.touched_at,
                        cookie.lifetime or self.keeper.idle_timeout(False),
                    )
                )
            )
        ):
            return value
        return state.signer.sign(cookie)

    def _make_private(self, response: Response) -> None:
        """Keep a response out of the caches that are shared, since it has a cookie."""
        endpoint = current_request.endpoint
        if endpoint not in self._warned_of_caches:
            self._warned_of_caches.add(endpoint)
            logger.warning(
                "The response of the endpoint %r carries a session cookie that must be"
                " sent, but its Cache-Control lets any cache keep it for everybody. It"
                " was made private. Do not change the session there, or leave out"
                " 'public' and 's-maxage'.",
                endpoint,
            )
        header = ",".join(response.headers.getlist("Cache-Control"))
        kept = [
            directive.strip()
            for directive in _COMMA.split(header)
            if directive.partition("=")[0].strip().lower()
            not in ("", "public", "s-maxage", "private")
        ]
        response.headers["Cache-Control"] = ", ".join([*kept, "private"])

    def _delete_cookie(self, app: Flask, response: Response) -> None:
        if _is_public(response):
            self._make_private(response)
        # With the attributes it was set with: browsers ignore it otherwise.
        response.delete_cookie(
            self.get_cookie_name(app),
            domain=self.get_cookie_domain(app),
            path=self.get_cookie_path(app),
            secure=self.get_cookie_secure(app),
            partitioned=self.get_cookie_partitioned(app),
            samesite=self.get_cookie_samesite(app),
            httponly=self.get_cookie_httponly(app),
        )


def _is_socket_event(app: Flask, request: Request) -> bool:
    """Whether Flask-SocketIO handles an event, to which no response belongs.

    It opens the session anew for each event, with the request of the handshake. That
    one's path reaches Flask in no other way: Flask-SocketIO's middleware keeps it.
    """
    if "socketio" not in app.extensions:
        return False
    middleware = getattr(app.extensions["socketio"], "sockio_mw", None)
    path: str | None = getattr(middleware, "engineio_path", None)
    return path is not None and request.path.strip("/") == path.strip("/")


def _is_refreshed(app: Flask) -> bool:
    config: t.Any = app.config
    return bool(config["SESSION_REFRESH_EACH_REQUEST"])


def _touched(cookie: CookieState, touched_at: float) -> CookieState:
    return CookieState(
        id=cookie.id,
        is_permanent=cookie.is_permanent,
        touched_at=touched_at,
        created_at=cookie.created_at,
        lifetime=cookie.lifetime,
    )


def _is_public(response: Response) -> bool:
    """Whether any cache may keep the response and give it to everybody."""
    headers = response.headers.getlist("Cache-Control")
    return bool(headers) and any(_PUBLIC.search(header) for header in headers)


def _vary_by_cookie(response: Response) -> None:
    # Adding the header costs a fifth of parsing it; looking for it by "in" raises an
    # exception inside of werkzeug, which costs as much again.
    if response.headers.getlist("Vary"):
        response.vary.add("Cookie")
    else:
        response.headers.add("Vary", "Cookie")


def _context() -> tuple[t.Any, ...]:
    """Give what Flask's methods that handle a request take first."""
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
