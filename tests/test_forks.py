"""Values of one process, and numbers that tell one write from every other."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from flask_serversession.forks import PerProcess
from flask_serversession.forks import unique_number


def test_they_do_not_depend_on_what_an_application_does_with_random() -> None:
    """Whoever seeds it alike in all workers would have two writes look like one."""
    random.seed(1)
    first = unique_number()
    random.seed(1)
    assert unique_number() != first


def test_threads_never_get_the_same() -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = [*pool.map(lambda _: unique_number(), range(10_000))]
    assert len({*numbers}) == 10_000
    assert all(0 <= number < 2**64 for number in numbers)


@pytest.mark.skipif(sys.platform == "win32", reason="There is no fork.")
def test_a_forked_worker_begins_somewhere_else() -> None:
    reading, writing = os.pipe()
    before = unique_number()
    pid = os.fork()
    if pid == 0:
        os.write(writing, unique_number().to_bytes(8, "big"))
        os._exit(0)
    os.waitpid(pid, 0)
    of_child = int.from_bytes(os.read(reading, 8), "big")
    os.close(reading)
    os.close(writing)
    # By chance once in 2**32 runs.
    assert abs(of_child - before) > 2**32


@pytest.mark.skipif(sys.platform == "win32", reason="There is no fork.")
def test_a_worker_begins_somewhere_else_whose_server_calls_no_hook() -> None:
    # uWSGI forks in C. In a process of its own, since that suits no other threads.
    script = """
import ctypes, os, sys
from flask_serversession.forks import unique_number
unique_number()
pid = ctypes.PyDLL(None).fork()
if pid:
    os.waitpid(pid, 0)
sys.stdout.write(f"{unique_number()}\\n")
sys.stdout.flush()
os._exit(0)
"""
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    of_child, of_parent = map(int, output.split())
    assert abs(of_child - of_parent) > 2**32


def test_threads_that_ask_at_the_same_moment_share_a_value() -> None:
    everybody = threading.Barrier(8)

    def make() -> object:
        everybody.wait()  # so that all have found nothing
        return object()

    value = PerProcess(make)
    with ThreadPoolExecutor(8) as pool:
        values = [*pool.map(lambda _: value.get(), range(8))]
    assert {*values} == {value.get()}
    other = object()
    value.set(other)
    assert value.get() is other


# How to fork: Python calls its hook, uWSGI does not.
FORKS = {"hook": "os.fork()", "no hook": "ctypes.PyDLL(None).fork()"}


@pytest.mark.skipif(sys.platform == "win32", reason="There is no fork.")
@pytest.mark.parametrize("how", FORKS)
def test_a_child_makes_a_value_of_its_own_and_drops_its_parents_once(how: str) -> None:
    script = f"""
import ctypes, itertools, os, sys
from flask_serversession.forks import PerProcess
numbers, dropped = itertools.count(1), []
value = PerProcess(lambda: next(numbers), dropped.append)
unused = PerProcess(lambda: 0, dropped.append)
forgotten = PerProcess(lambda: os.getpid())
assert value.get() == value.get() == 1
assert forgotten.get() == os.getpid()
pid = {FORKS[how]}
if pid == 0:
    early = [*dropped]
    seen = value.get(), value.get(), unused.get(), forgotten.get() == os.getpid()
    sys.stdout.write(f"{{early}} {{seen}} {{dropped}}")
    sys.stdout.flush()
    os._exit(0)
os.waitpid(pid, 0)
assert value.get() == 1
assert dropped == []
"""
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    early = "[1]" if how == "hook" else "[]"
    assert output == f"{early} (2, 2, 0, True) [1]"
