"""``session.meta``: small texts of an application, for lists and operators.

It lies in the meta of the record, in clear, beside what the library keeps there itself:
what :data:`SESSION_TRACK` asks for, and what leads from one id to the next.
"""

from __future__ import annotations

import collections.abc as cabc
import typing as t

from .record import NO_META

if t.TYPE_CHECKING:
    from .unit import Unit

#: What :data:`SESSION_TRACK` can ask for.
TRACKED = frozenset({"user_agent", "remote_addr"})
#: Key in the meta of a record that has just got its id: the handle before. While the
#: id changes there are two records of one session, and this tells.
PREDECESSOR = "predecessor"
#: Likewise, the version that the record before had: see :mod:`.unsettled`.
LEFT_AT = "left_at"
#: What leads from one id to the next: see :mod:`.rotation`. Nobody is shown it.
INTERNAL = frozenset(
    {"moving", PREDECESSOR, LEFT_AT, "renewed", "same_user", "successor"}
)
#: In the meta of a record that is just moved to where it is kept from now on: see
#: :mod:`.takeover.moving`.
MOVING = "moving"
#: How much an application may keep there: bytes of names and values together, in UTF-8.
MAX_SIZE = 4096

_RESERVED = TRACKED | INTERNAL


class Meta(cabc.MutableMapping[str, str]):
    """The application's own texts about a session, by their names.

    Kept with the session, in clear, and shown in lists. Not for use by several
    threads at once, like the session.

    :param load: Returns what the session knows of itself, with its content.
    """

    def __init__(self, load: cabc.Callable[[], Unit]) -> None:
        self._load = load

    def __getitem__(self, name: str) -> str:
        return self._load().current_meta[name]

    def __setitem__(self, name: str, value: str) -> None:
        unit = self._load()
        meta = unit.current_meta
        # Many say the same at each request, and nothing is written for it.
        if name not in meta or meta[name] != value:
            meta = {**meta, name: value}
            _check(name, value, meta)
            unit.change_meta(meta)

    def __delitem__(self, name: str) -> None:
        unit = self._load()
        meta = dict(unit.current_meta)
        del meta[name]
        unit.change_meta(meta)

    def __iter__(self) -> cabc.Iterator[str]:
        return iter(self._load().current_meta)

    def __len__(self) -> int:
        return len(self._load().current_meta)

    def __repr__(self) -> str:
        return f"<Meta names={list(self)!r}>"


def own_part(meta: cabc.Mapping[str, str]) -> cabc.Mapping[str, str]:
    """Return what the application itself has put into the meta of a record."""
    if not meta:
        return NO_META
    return {name: meta[name] for name in meta if name not in _RESERVED}


def internal_part(meta: cabc.Mapping[str, str]) -> dict[str, str]:
    """Return what leads from one id to the next."""
    return {name: value for name, value in meta.items() if name in INTERNAL}


def moved_part(
    meta: cabc.Mapping[str, str], marks: cabc.Mapping[str, str]
) -> dict[str, str]:
    """Return the meta that a record has under another id.

    :param marks: What leads from one id to the next there.
    """
    return {**shown_part(meta), **marks}


def tracked_part(meta: cabc.Mapping[str, str]) -> cabc.Mapping[str, str]:
    """Return what :data:`SESSION_TRACK` has put into the meta of a record."""
    return {name: meta[name] for name in meta if name in TRACKED}


def shown_part(meta: cabc.Mapping[str, str]) -> dict[str, str]:
    """Return what an operator may see of the meta of a record."""
    return {name: meta[name] for name in meta if name not in INTERNAL}


def size_of(meta: cabc.Mapping[str, str]) -> int:
    """Return how many bytes the names and values take, in UTF-8."""
    texts = (*meta.keys(), *meta.values())
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def _check(name: object, value: object, meta: cabc.Mapping[str, str]) -> None:
    """Refuse what cannot be kept.

    :param meta: Everything that would be there then.
    """
    for part, thing in (("name", name), ("value", value)):
        if not isinstance(thing, str):
            raise TypeError(
                f"session.meta takes text only, but the {part} for {name!r} is of the"
                f" type {type(thing).__name__!r}. Give str(...) of it, or keep it in"
                " the session itself."
            )
    if name in _RESERVED:
        raise ValueError(
            f"session.meta[{name!r}] is a name that the library uses itself. Choose"
            f" another one, such as {f'my_{name}'!r}."
        )
    if (size := size_of(meta)) > MAX_SIZE:
        raise ValueError(
            f"session.meta would take {size} bytes with {name!r}, and may take"
            f" {MAX_SIZE}. Keep what is long in the session itself."
        )
