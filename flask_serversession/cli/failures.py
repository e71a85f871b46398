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
from ..trial import Step
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


def failure_of(error: BackendError | RecordError) -> Failure:
    """Return the failure of a command for an exception, with what to do about it."""
    if isinstance(error, NotSupportedError):
        return Unsupported(str(error))
    if isinstance(error, BackendUnavailableError) and not error.refused:
        return Unavailable(
            f"{error} Is it running, and is its address right? See: flask sessions info"
        )
    if isinstance(error, BackendError):
        # It has answered, and its message says what to do.
        return Unavailable(str(error))
    return NotFound(f"{error} Use the version of flask-serversession that wrote it.")


def fail_if_wrong(steps: cabc.Sequence[Step]) -> None:
    """Fail if anything went wrong when the backend was tried out.

    :raises Failure: about the first that did, and with the names of the others.
    """
    failed = [step for step in steps if step.error is not None]
    if not failed:
        return
    first, *others = failed
    if isinstance(first.error, BackendError):
        text = failure_of(first.error).message
    else:
        text = f"What was written cannot be read back: {first.error}"
    names = {step.operation for step in others} - {first.operation}
    if names:
        listed = ", ".join(map(repr, sorted(names)))
        text += f" These failed as well: {listed}. See: flask sessions check --json"
    raise Unavailable(text)


def explained(function: cabc.Callable[P, T]) -> cabc.Callable[P, T]:
    """Return a function that turns the library's exceptions into failures."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except (BackendError, RecordError) as error:
            raise failure_of(error) from error

    return run
