"""How commands fail: with one line on stderr and an exit code."""

from __future__ import annotations

import collections.abc as cabc
import functools
import typing as t

import click

from ..errors import BackendError
from ..errors import BackendUnavailableError
from ..errors import NotSupportedError
from ..errors import RecordError
from .output import escape

P = t.ParamSpec("P")
T = t.TypeVar("T")


class Failure(click.ClickException):
    """Ends a command with one line on stderr and an exit code."""

    def __init__(self, message: str) -> None:
        super().__init__(escape(message))


class NotFound(Failure):
    """There is no such session, or none was ended."""

    exit_code = 1  # click itself uses 2, for wrong usage


class Unsupported(Failure):
    """The backend cannot do that."""

    exit_code = 3


class Unavailable(Failure):
    """The backend does not answer, or refuses to work."""

    exit_code = 4


def explained(function: cabc.Callable[P, T]) -> cabc.Callable[P, T]:
    """Return a function that turns the library's exceptions into failures."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except NotSupportedError as error:
            raise Unsupported(
                f"{error} Choose another 'SESSION_BACKEND' if you need it."
            ) from error
        except BackendUnavailableError as error:
            raise Unavailable(
                f"{error} Is it running, and is its address right? See: flask sessions"
                " info"
            ) from error
        except BackendError as error:
            raise Unavailable(str(error)) from error
        except RecordError as error:
            raise NotFound(
                f"{error} Use the version of flask-serversession that wrote it."
            ) from error

    return run
