"""Tools for tests: of applications, and of backends.

Only :class:`.BackendContract` and the fixtures need pytest, which the library itself
does not. To get pytest's detailed messages for the assertions of the contract, put
this into ``conftest.py``, before anything imports it::

    pytest.register_assert_rewrite("flask_serversession.testing")
"""

from __future__ import annotations

import typing as t

from .applications import counting as counting
from .applications import fake_clock as fake_clock
from .applications import log_in as log_in
from .applications import no_round_trips as no_round_trips
from .clocks import Clock as Clock
from .clocks import FakeClock as FakeClock
from .clocks import RealClock as RealClock
from .counting import CountingBackend as CountingBackend

if t.TYPE_CHECKING:
    from .contract import BackendContract as BackendContract
    from .contract import Spoil as Spoil


def __getattr__(name: str) -> t.Any:
    # Only whoever imports them needs what they import.
    if name in ("BackendContract", "Spoil"):
        from . import contract

        return getattr(contract, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
