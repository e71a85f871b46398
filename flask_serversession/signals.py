"""Signals, sent with blinker. None of them ever carries an id.

Each sends the application, and as keyword arguments the session's ``handle`` and
``user`` (either may be ``None``), and what is listed here.

Receivers run at once: inside the request, or inside the command that ends a session.
The event has already happened and is stored, so a receiver cannot prevent it. A
receiver should not change the session.

A receiver that raises makes the request fail, as with Flask's own signals, and other
receivers may not be called. Nothing is lost or half done: what was stored stays stored,
what was ended stays ended, and the cookie is sent with the error page. Where several
sessions are ended at once, all of them are ended before the first signal.

Receivers may be coroutines, except for what an async view causes itself, such as by
``session.save()``: Flask cannot run a coroutine there.

Blinker keeps weak references to receivers. A function within a function is never
called, unless it is connected with ``weak=False``.
"""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

#: A session was stored for the first time, even if its visitor logged in at once.
session_created = _signals.signal("session-created")
#: A stored session was written again. Not sent for activity, nor for a new id.
session_saved = _signals.signal("session-saved")
#: A stored session got a new id, because its user changed, its id was old, or somebody
#: asked for it. ``previous`` is its former handle. Other changes were written with it.
session_regenerated = _signals.signal("session-regenerated")
#: A session was ended by :meth:`.ServerSideSession.destroy`, by emptying it, by an
#: operator or by :data:`SESSION_MAX_PER_USER`. Not sent when a session expires.
#: ``user`` is also ``None`` if the session was not loaded before. ``reason`` is
#: ``"logged out"`` (by its own browser), ``"revoked"`` (by an operator), ``"limit"``
#: (:data:`SESSION_MAX_PER_USER`) or ``"replaced"`` (by ``regenerate(keep_data=False)``,
#: or because it was emptied and written again; ``session_regenerated`` names what came
#: in its place).
session_destroyed = _signals.signal("session-destroyed")
#: Another request ended the session, or changed its id, while this one ran. The changes
#: of this request were dropped. Sent once per request, if there were any changes. Also
#: sent where the backend is too full to keep what a log-out leaves in a session.
session_lost = _signals.signal("session-lost")
#: A cookie was not accepted. ``reason`` is one of:
#:
#: -   ``"malformed"``: it is not one of ours;
#: -   ``"forged"``: it looks like one of ours, but its signature does not verify;
#: -   ``"expired"``: its session has reached a timeout;
#: -   ``"ended"``: its session was ended. ``ended``, which is sent with this reason
#:     only, is the reason of :data:`session_destroyed`;
#: -   ``"rotated"``: its id was replaced a moment ago;
#: -   ``"reused"``: its id was replaced, and the time for that is over. Somebody may
#:     have a copy of an old cookie;
#: -   ``"damaged"``, ``"unreadable"`` or ``"newer"``: there is a record, but it cannot
#:     be read;
#: -   ``"unproven"``: its session is bound to a device (:data:`SESSION_DEVICE_BOUND`),
#:     and the request has no proof of the key. Somebody may have a copy of the cookie;
#: -   ``"unknown"``: it is well signed, but there is no such session.
#:
#: Only the process that ended a session knows the reason, for a day and for the last
#: 10,000 sessions. Other processes say ``"unknown"``, or ``"expired"`` if the cookie is
#: that old. Sent only if the request uses its session. ``user`` is always ``None``, and
#: ``handle`` is ``None`` for ``"forged"`` and ``"malformed"``.
session_rejected = _signals.signal("session-rejected")
#: The backend failed in a request. ``operation`` is what it was asked for, ``error`` is
#: the :exc:`.BackendUnavailableError`. Not sent for operators, who get the exception,
#: nor for the automatic cleanup, which logs it.
backend_failed = _signals.signal("backend-failed")
#: The backend answers again, after it had failed five times in a row in this process.
#: ``handle`` and ``user`` are ``None``.
backend_recovered = _signals.signal("backend-recovered")
