"""Which Flask runs the tests."""

from __future__ import annotations

import flask

#: From Flask 3.2 on, application and request have one context.
HAS_ONE_CONTEXT = hasattr(flask.ctx.AppContext, "has_request")
