"""Signals, sent with blinker. None of them ever carries an id.

Each sends the application, and as keyword arguments the session's ``handle`` and
``user`` (either may be ``None``), and what is listed here.

Receivers run at once: inside the request, or inside the command that ends a session.
What a signal tells of has happened then, and is stored, so a receiver cannot prevent
it. It should not change the session.

A receiver that raises makes the request fail, as with Flask's own signals; other
receivers may not be called any more. Nothing is lost or half done: what was stored
stays stored, what was ended stays ended, and the answer to the exception still sends
the cookie that goes with it, so that a visitor whose id has changed gets the new one. A
view that catches the exception, from ``session.save()`` for example, goes on with what
is stored. Who ends several sessions at once ends all of them before the first signal.

Receivers may be coroutines. Flask runs them to their end, which is impossible while an
async view runs: what such a view causes itself, by ``session.save()`` or
``session.destroy()``, needs receivers that are ordinary functions.

Blinker keeps weak references to receivers. One that nobody else refers to, such as a
function within a function, is never called, unless it is connected with ``weak=False``.
"""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

#: A session was stored for the first time. Also when its visitor logs in at once.
session_created = _signals.signal("session-created")
#: A stored session was written again. Not for recorded activity, nor for a new id.
session_saved = _signals.signal("session-saved")
#: A stored session got a new id, because its user changed, its id was old, or somebody
#: asked for it. ``previous`` is the handle that it had. What else had changed was
#: written with it.
session_regenerated = _signals.signal("session-regenerated")
#: A session was ended by :meth:`.ServerSideSession.destroy`, by emptying it, by an
#: operator or by :data:`SESSION_MAX_PER_USER`. Not one that has expired. ``user`` is
#: ``None`` also if the session was ended without having been looked at. ``reason`` is
#: ``"logged out"`` (by its own browser), ``"revoked"`` (by an operator), ``"limit"``
#: (:data:`SESSION_MAX_PER_USER`) or ``"replaced"`` (by ``regenerate(keep_data=False)``,
#: or because it was emptied and written again; ``session_regenerated`` names what came
#: in its place).
session_destroyed = _signals.signal("session-destroyed")
#: Another request ended the session, or rotated its id, while this one ran; what this
#: one changed was dropped. Once a request, and not if it had changed nothing.
session_lost = _signals.signal("session-lost")
#: A cookie was not accepted. ``reason`` is one of:
#:
#: -   ``"malformed"``: it is not one of ours;
#: -   ``"forged"``: it looks like one of ours, but its signature does not verify;
#: -   ``"expired"``: its session was not used for too long, or lived for too long;
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
#: How a session has ended is known in the process that ended it, for a day and for the
#: last 10,000; elsewhere it is ``"unknown"``, or ``"expired"`` if the time has passed
#: that the cookie tells. Only a request that looks at its session finds out. ``user``
#: is always ``None``, and ``handle`` is for ``"forged"`` and ``"malformed"``.
session_rejected = _signals.signal("session-rejected")
#: The backend failed a request. ``operation`` names what it was asked for, ``error`` is
#: the :exc:`.BackendUnavailableError`. Not for what an operator asks, who gets the
#: exception, nor for the automatic cleanup, which logs it.
backend_failed = _signals.signal("backend-failed")
#: The backend answers again, after it had failed five times in a row, so that this
#: process had given it up. ``handle`` and ``user`` are ``None``.
backend_recovered = _signals.signal("backend-recovered")
