from __future__ import annotations

import functools
import io
import json
import marshal
import multiprocessing.reduction
import pickle
import shelve
import sys
import types
import typing as t

import cachelib.serializers
import pytest
from flask import Flask

from flask_serversession import ConfigurationError
from flask_serversession import ServerSession
from flask_serversession.serializers import CustomSerializer
from flask_serversession.serializers import serializer_for


def functions(dumps: t.Any, loads: t.Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(dumps=dumps, loads=loads)


def module(name: str) -> types.ModuleType:
    """Make what looks like a package that the tests do not install."""
    made = types.ModuleType(name)
    source = (
        "def dumps(data): return b''\ndef loads(data): return {}\nclass Pickler: ..."
    )
    exec(source, vars(made))
    return made


class Reader(pickle.Unpickler):
    """A class of the application's own, on top of pickle."""

    def loads(self, data: bytes) -> t.Any:
        return self.load()


class Borrowed:
    dumps = staticmethod(pickle.dumps)
    loads = staticmethod(pickle.loads)


class OwnFunctions:
    def dumps(self, data: t.Any) -> bytes:
        return json.dumps(data).encode()

    def loads(self, data: bytes) -> t.Any:
        return json.loads(data)


DILL = module("dill._dill")
CLOUDPICKLE = module("cloudpickle.cloudpickle")
ReExported = types.ModuleType("shop.serializer")
vars(ReExported).update(dumps=pickle.dumps, loads=pickle.loads)

CODE_RUNNERS: dict[str, tuple[object, str, str]] = {
    "pickle": (pickle, "the module pickle", "pickle"),
    "in C": (sys.modules["_pickle"], "the module _pickle", "pickle"),
    "marshal": (marshal, "the module marshal", "marshal"),
    "shelve": (shelve, "the module shelve", "shelve"),
    "dill": (DILL, "the module dill._dill", "dill"),
    "cloudpickle": (CLOUDPICKLE, "the module cloudpickle.cloudpickle", "cloudpickle"),
    "a name": ("pickle", "'pickle'", "pickle"),
    "a dotted name": (
        "cloudpickle.cloudpickle",
        "'cloudpickle.cloudpickle'",
        "cloudpickle",
    ),
    "a class": (pickle._Pickler, "the class pickle._Pickler", "pickle"),  # type: ignore[attr-defined]
    "a class in C": (pickle.Pickler, "the class _pickle.Pickler", "pickle"),
    "a class of dill": (DILL.Pickler, "the class dill._dill.Pickler", "dill"),
    "a subclass": (Reader, f"the class {__name__}.Reader", "pickle"),
    "a subclass elsewhere": (
        multiprocessing.reduction.ForkingPickler,
        "the class multiprocessing.reduction.ForkingPickler",
        "pickle",
    ),
    "an object": (shelve.Shelf({}), "a shelve.Shelf", "shelve"),
    "functions": (
        functions(pickle.dumps, pickle.loads),
        "a types.SimpleNamespace",
        "pickle",
    ),
    "functions in Python": (
        functions(pickle._dumps, pickle._loads),  # type: ignore[attr-defined]
        "a types.SimpleNamespace",
        "pickle",
    ),
    "one function": (
        functions(OwnFunctions().dumps, marshal.loads),
        "a types.SimpleNamespace",
        "marshal",
    ),
    "the other function": (
        functions(CLOUDPICKLE.dumps, OwnFunctions().loads),
        "a types.SimpleNamespace",
        "cloudpickle",
    ),
    "partial functions": (
        functions(
            functools.partial(pickle.dumps, protocol=4),
            functools.partial(pickle.loads, encoding="utf-8"),
        ),
        "a types.SimpleNamespace",
        "pickle",
    ),
    "a method": (
        functions(OwnFunctions().dumps, pickle.Unpickler(io.BytesIO()).load),
        "a types.SimpleNamespace",
        "pickle",
    ),
    "a method of a subclass": (
        functions(OwnFunctions().dumps, Reader(io.BytesIO()).loads),
        "a types.SimpleNamespace",
        "pickle",
    ),
    "functions of a class": (Borrowed(), f"a {__name__}.Borrowed", "pickle"),
    "functions of a module": (ReExported, "the module shop.serializer", "pickle"),
    "a serializer of a cache": (
        cachelib.serializers.SimpleSerializer(),
        "a cachelib.serializers.SimpleSerializer",
        "pickle",
    ),
}
# What leads to them through no more than a name is fine.
OTHERS: dict[str, object] = {
    "msgpack": "msgpack",
    "json": "json",
    "the module json": json,
    "an object": OwnFunctions(),
    "functions": functions(OwnFunctions().dumps, OwnFunctions().loads),
    "a module that is only called alike": module("pickles"),
}
if hasattr(cachelib.serializers, "JSONSerializer"):  # newer versions have it
    OTHERS["a serializer of a cache"] = cachelib.serializers.JSONSerializer()


@pytest.mark.parametrize("name", CODE_RUNNERS)
def test_a_serializer_that_runs_what_it_reads_is_refused(name: str) -> None:
    value, given, refused = CODE_RUNNERS[name]
    app = Flask("site")
    app.config.update(SECRET_KEY="a secret", SESSION_SERIALIZER=value)
    with pytest.raises(ConfigurationError) as caught:
        ServerSession(app)
    assert caught.value.option == "SESSION_SERIALIZER"
    assert str(caught.value) == (
        f"'SESSION_SERIALIZER' is {given}; '{refused}' is refused, because whoever can"
        " write to the store could run code in the application with it. Use 'msgpack'"
        " or 'json', and make plain data of other objects before you store them."
    )


def test_it_is_one_of_all_problems() -> None:
    app = Flask("site")
    app.config.update(
        SECRET_KEY="a secret", SESSION_SERIALIZER=pickle, SESSION_BACKEND="nowhere"
    )
    with pytest.raises(ConfigurationError) as caught:
        ServerSession(app)
    first, *lines = str(caught.value).splitlines()
    assert first == "2 settings are wrong:"
    assert [line.split("'")[1] for line in lines] == [
        "SESSION_SERIALIZER",
        "SESSION_BACKEND",
    ]


@pytest.mark.parametrize("name", CODE_RUNNERS)
@pytest.mark.parametrize("take", [serializer_for, CustomSerializer])
def test_nor_is_it_taken_where_it_is_handed_in(
    take: t.Callable[[t.Any], object], name: str
) -> None:
    with pytest.raises(ConfigurationError, match="is refused"):
        take(CODE_RUNNERS[name][0])


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_serializer_is_taken(name: str) -> None:
    app = Flask("site")
    app.config.update(SECRET_KEY="a secret", SESSION_SERIALIZER=OTHERS[name])
    ServerSession(app)
