"""Numbers that tell one write from every other."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from flask_serversession.nonce import make_nonce


def test_they_do_not_depend_on_what_an_application_does_with_random() -> None:
    """Whoever seeds it alike in all workers would have two writes look like one."""
    random.seed(1)
    first = make_nonce()
    random.seed(1)
    assert make_nonce() != first


def test_threads_never_get_the_same() -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = [*pool.map(lambda _: make_nonce(), range(10_000))]
    assert len({*numbers}) == 10_000
    assert all(0 <= number < 2**64 for number in numbers)


@pytest.mark.skipif(sys.platform == "win32", reason="There is no fork.")
def test_a_forked_worker_begins_somewhere_else() -> None:
    reading, writing = os.pipe()
    before = make_nonce()
    pid = os.fork()
    if pid == 0:
        os.write(writing, make_nonce().to_bytes(8, "big"))
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
from flask_serversession.nonce import make_nonce
make_nonce()
pid = ctypes.PyDLL(None).fork()
if pid:
    os.waitpid(pid, 0)
sys.stdout.write(f"{make_nonce()}\\n")
sys.stdout.flush()
os._exit(0)
"""
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    of_child, of_parent = map(int, output.split())
    assert abs(of_child - of_parent) > 2**32
