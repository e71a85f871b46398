"""Signals, sent with blinker. None of them ever carries an id.

Each sends the application, and as keyword arguments the session's ``handle`` and
``user`` (either may be ``None``), and what is listed here. Receivers run inside the
request; one that raises makes the request fail, as with Flask's own signals.
"""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

#: A session was stored for the first time.
session_created = _signals.signal("session-created")
#: A stored session was written again.
session_saved = _signals.signal("session-saved")
#: A session got a new id. ``previous`` is the handle that it had.
session_regenerated = _signals.signal("session-regenerated")
#: A session was ended by :meth:`.ServerSideSession.destroy` or by emptying it.
session_destroyed = _signals.signal("session-destroyed")
#: Another request ended the session, or rotated its id, while this one ran; what this
#: one changed was dropped.
session_lost = _signals.signal("session-lost")
#: A cookie was not accepted. ``reason`` is ``"forged"`` (nothing in it verifies),
#: ``"unknown"`` (well signed, but there is no such session any more), ``"rotated"``
#: (its id was replaced a moment ago), ``"damaged"``, ``"unreadable"`` or ``"newer"``
#: (there is a record, but it cannot be read).
session_rejected = _signals.signal("session-rejected")
#: The backend failed. ``operation`` names what it was asked for, ``error`` is the
#: :exc:`.BackendUnavailableError`.
backend_failed = _signals.signal("backend-failed")
