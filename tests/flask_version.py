"""Which Flask runs the tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import flask
import pytest

#: From Flask 3.2 on, application and request have one context.
HAS_ONE_CONTEXT = hasattr(flask.ctx.AppContext, "has_request")


@contextlib.contextmanager
def skipping_where_deprecated(package: str) -> Iterator[None]:
    """Skip a module that imports a package which is not made for Flask 3.2 yet."""
    try:
        yield
    except DeprecationWarning as warning:
        if not HAS_ONE_CONTEXT:
            raise
        pytest.skip(
            f"{package} cannot be imported with Flask 3.2 where warnings are errors:"
            f" {warning}",
            allow_module_level=True,
        )
