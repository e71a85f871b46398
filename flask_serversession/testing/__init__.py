"""Tools for tests: a clock to set, a backend that counts, and the backend contract.

Needs pytest, which the library itself does not. To get pytest's detailed messages
for the assertions in here, put this into ``conftest.py``, before anything imports
the module::

    pytest.register_assert_rewrite("flask_serversession.testing")
"""

from __future__ import annotations

from .clocks import Clock as Clock
from .clocks import FakeClock as FakeClock
from .clocks import RealClock as RealClock
from .contract import BackendContract as BackendContract
from .contract import Spoil as Spoil
from .counting import CountingBackend as CountingBackend
