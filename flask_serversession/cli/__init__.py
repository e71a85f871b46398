"""``flask sessions …``: see and end sessions from the command line."""

from .checking import check as check
from .commands import sessions as sessions
from .migrating import migrate as migrate
