"""``flask sessions …``: see and end sessions from the command line."""

from .commands import sessions as sessions
