"""``flask sessions …``: see and end sessions from the command line."""

from .commands import sessions as sessions
from .migrating import migrate as migrate
