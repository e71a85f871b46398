"""Server-side sessions for Flask.

.. code-block:: python

    from flask import Flask
    from flask_serversession import ServerSession, session

    app = Flask(__name__)
    app.config["SECRET_KEY"] = "..."
    ServerSession(app)
"""

from __future__ import annotations

import typing as t

from flask import session as _flask_session

from .backends.base import Backend as Backend
from .backends.base import Capability as Capability
from .config import ConfigurationWarning as ConfigurationWarning
from .errors import BackendError as BackendError
from .errors import BackendUnavailableError as BackendUnavailableError
from .errors import ConfigurationError as ConfigurationError
from .errors import ConflictError as ConflictError
from .errors import NotSupportedError as NotSupportedError
from .errors import RecordError as RecordError
from .errors import SerializationError as SerializationError
from .errors import ServerSessionError as ServerSessionError
from .errors import SessionLostError as SessionLostError
from .errors import SessionTooLargeError as SessionTooLargeError
from .extension import ServerSession as ServerSession
from .extension import SessionInfo as SessionInfo
from .interface import ServerSessionInterface as ServerSessionInterface
from .opened import passive as passive
from .record import Record as Record
from .sessions import ServerSideSession as ServerSideSession
from .signals import backend_failed as backend_failed
from .signals import backend_recovered as backend_recovered
from .signals import session_created as session_created
from .signals import session_destroyed as session_destroyed
from .signals import session_lost as session_lost
from .signals import session_regenerated as session_regenerated
from .signals import session_rejected as session_rejected
from .signals import session_saved as session_saved

#: :data:`flask.session`, annotated so that type checkers and editors know
#: ``destroy()`` and the rest. It is the same object.
session: ServerSideSession = t.cast(ServerSideSession, _flask_session)
