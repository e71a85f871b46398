"""Every exception the library raises.

.. code-block:: text

    ServerSessionError
    ├─ ConfigurationError (also ValueError)    from init_app only
    ├─ BackendError                            a backend failed; its driver's
    │  │                                       exception is __cause__
    │  ├─ BackendUnavailableError (a 503 too)  unreachable, too slow, or refuses
    │  └─ NotSupportedError                    this backend has no such operation
    ├─ SerializationError (also TypeError)     what the session holds cannot be written
    ├─ RecordError                             a stored record cannot be read back
    ├─ SessionTooLargeError                    it is bigger than SESSION_MAX_SIZE
    ├─ ConflictError                           only where the configuration asks for it
    └─ SessionLostError                        where the configuration asks for it, and
                                               from outside

No message holds a session id, a secret, a value kept in a session, or the
password of a URL.
"""

from __future__ import annotations

import typing as t

from flask import current_app
from werkzeug.exceptions import ServiceUnavailable


class ServerSessionError(Exception):
    """Base class of every exception that the library raises.

    All of them can be copied and pickled, as other processes and test runners do.
    """

    def __reduce__(self) -> tuple[t.Any, ...]:
        # Exception's own calls the class with what is in ``args``, the message alone.
        return _remake, (type(self), self.args), vars(self)


def _remake(
    kind: type[ServerSessionError], args: tuple[t.Any, ...]
) -> ServerSessionError:
    """Return an exception with these arguments; its attributes follow."""
    error = kind.__new__(kind)
    error.args = args
    return error


class ConfigurationError(ServerSessionError, ValueError):
    """The configuration of the application cannot work.

    Raised by :meth:`.ServerSession.init_app` only, once, with every wrong key
    in one message.

    :param message: What is wrong, and what to do.
    :param option: The first configuration key concerned, if it is one key's fault.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class BackendError(ServerSessionError):
    """A backend failed. The exception of its driver is the ``__cause__``.

    :param message: What failed.
    :param backend: The backend's name.
    :param operation: The operation that was asked for, such as ``"load"``.
    """

    def __init__(
        self,
        message: str,
        *,
        backend: str | None = None,
        operation: str | None = None,
    ) -> None:
        super().__init__(message)
        self.backend = backend
        self.operation = operation


class BackendUnavailableError(BackendError, ServiceUnavailable):
    """The engine behind a backend cannot be reached, timed out or refused to work.

    It is also an HTTP exception: where nobody handles it, the visitor gets a
    ``503 Service Unavailable`` with ``Retry-After``. The page shows werkzeug's
    standard text; with ``app.debug`` the message of this exception and what to do.

    :param retry_after: What ``Retry-After`` says, in seconds.
    :param refused: Whether the engine has answered, and refused: it is full or
        read-only, another writer holds its lock, or there is no such database, table or
        privilege. Other operations may work.
    :param full: Whether it has refused because it is full, so that deleting works.
    """

    def __init__(
        self,
        message: str,
        *,
        backend: str | None = None,
        operation: str | None = None,
        retry_after: int = 5,
        refused: bool = False,
        full: bool = False,
    ) -> None:
        self.refused = refused
        self.full = full
        BackendError.__init__(self, message, backend=backend, operation=operation)
        # BackendError's super() has made the message the page's text meanwhile.
        text = ServiceUnavailable.description
        if current_app and current_app.debug:
            text = _page_of(message, refused)
        ServiceUnavailable.__init__(self, text, retry_after=retry_after)
        # HTTPException.__init__ resets the arguments that tracebacks print.
        self.args = (message,)

    def __str__(self) -> str:
        return str(self.args[0])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.args[0]!r}>"


def _page_of(message: str, refused: bool) -> str:
    """Return what the page says to whoever is at work on the application."""
    lines = [message]
    if not refused:  # else it has answered, and the message says what to do
        lines.append(
            "Is it running, and is its address right? Try it out with: flask sessions"
            " check"
        )
    return "\n".join([*lines, "Only debug mode shows this."])


# What an operation that a backend may lack is for.
_OPTIONAL = {
    "keys_of_user": "list the sessions of a user",
    "iterate": "list all sessions",
    "count": "count sessions",
    "prune": "delete expired sessions on demand",
}


class NotSupportedError(BackendError):
    """The backend has no such operation; its capabilities say which it has."""

    def __init__(self, backend: str, operation: str) -> None:
        what = _OPTIONAL.get(operation, operation)
        super().__init__(
            f"The {backend!r} backend cannot {what} ({operation!r}). Choose another"
            " 'SESSION_BACKEND' if you need it.",
            backend=backend,
            operation=operation,
        )


class SerializationError(ServerSessionError, TypeError):
    """The session holds something that cannot be written; the stored version stays.

    :param message: Names the key path and the type, never the value.
    :param path: Where the value is, such as ``session['cart'][2]['thumb']``.
    """

    def __init__(self, message: str, path: str = "session") -> None:
        super().__init__(message)
        self.path = path


class RecordError(ServerSessionError):
    """A stored record cannot be read back.

    :param reason: ``"damaged"`` for bytes that are not what was written;
        ``"newer"`` for a format that a later version of the library wrote, which
        must be neither destroyed nor overwritten; ``"unreadable"`` for a payload
        that the configured serializer or encryption keys cannot open.
    """

    def __init__(
        self, message: str, reason: t.Literal["damaged", "newer", "unreadable"]
    ) -> None:
        super().__init__(message)
        self.reason: t.Literal["damaged", "newer", "unreadable"] = reason


class SessionTooLargeError(ServerSessionError):
    """The session exceeds :data:`SESSION_MAX_SIZE`; the stored version stays.

    Or it exceeds what the server takes.

    :param size: The size of the serialized session, in bytes.
    :param limit: The configured limit, in bytes.
    :param setting: What sets the limit.
    """

    def __init__(
        self, size: int, limit: int, setting: str = "'SESSION_MAX_SIZE'"
    ) -> None:
        super().__init__(
            f"The session is {size} bytes when serialized; {setting} allows"
            f" {limit}. Keep large data elsewhere and its key in the session, or"
            f" raise {setting}."
        )
        self.size = size
        self.limit = limit


class ConflictError(ServerSessionError):
    """Another request changed the session meanwhile, and both cannot be merged."""


class SessionLostError(ServerSessionError):
    """Another request ended the session, and the changes of this one were dropped.

    Raised where :data:`SESSION_ON_LOST` asks for it, and by :meth:`.ServerSession.open`
    always, also if there is no such session.
    """
