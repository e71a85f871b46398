"""Recognizes, by name, serializers that run code found in what they read."""

from __future__ import annotations

import functools
import types
import typing as t

from ..errors import ConfigurationError
from .wording import described

# The documentation of each warns against reading untrusted data with it.
_MODULES = frozenset({"cloudpickle", "dill", "marshal", "pickle", "shelve"})


def refuse_code_runner(serializer: object) -> None:
    """Refuse a value of :data:`SESSION_SERIALIZER` that runs what it reads.

    Such values are recognized by the names of modules. A function of the application's
    own that calls ``pickle.loads`` goes unnoticed.

    :raises ConfigurationError: if it is such a module, its name, something that it
        defines, or an object whose ``dumps`` or ``loads`` it defines.
    """
    parts = (
        serializer,
        getattr(serializer, "dumps", None),
        getattr(serializer, "loads", None),
    )
    for part in parts:
        if (name := code_runner_of(part)) is not None:
            raise ConfigurationError(
                f"'SESSION_SERIALIZER' is {_shown(serializer)}; {name!r} is"
                " refused, because whoever can write to the store could run code in"
                " the application with it. Use 'msgpack' or 'json', and make plain"
                " data of other objects before you store them.",
                "SESSION_SERIALIZER",
            )


def code_runner_of(value: object) -> str | None:
    """Return the name of the module that runs what it reads, if a value is from one.

    :param value: A module, its name, or a function, class or object that it defines;
        also a ``functools.partial`` of such a function, and an object whose class
        inherits from such a class.
    """
    if isinstance(value, functools.partial):
        value = t.cast("functools.partial[object]", value).func
    if isinstance(value, str):
        return _name_in([value])
    if isinstance(value, types.ModuleType):
        return _name_in([value.__name__])
    module: object = getattr(value, "__module__", None)
    # All but one of cachelib's use pickle, and their module does not tell.
    if module == "cachelib.serializers" and isinstance(
        value, (types.FunctionType, types.MethodType)
    ):
        return None if value.__qualname__.startswith("JSONSerializer.") else "pickle"
    kind: type = value if isinstance(value, type) else type(value)
    found = _name_in([module, *(base.__module__ for base in kind.__mro__)])
    if found is None and isinstance(
        value, (types.MethodType, types.BuiltinFunctionType)
    ):
        return code_runner_of(value.__self__)
    return found


def _name_in(modules: list[object]) -> str | None:
    for module in modules:
        if isinstance(module, str):
            # "_pickle" is the C version of "pickle"; "dill._dill" is part of "dill".
            name = module.partition(".")[0].lstrip("_")
            if name in _MODULES:
                return name
    return None


def _shown(serializer: object) -> str:
    return repr(serializer) if isinstance(serializer, str) else described(serializer)
