"""Which tests belong to which module: none that needs a server, where it can be."""

from __future__ import annotations

import dataclasses

# Names of the backends that need one, in the ids of tests.
_NO_SERVERS = "not (valkey or redis or postgresql or mariadb or memcached)"


@dataclasses.dataclass(frozen=True)
class Module:
    """A row of the table.

    :param tests: Arguments for pytest: files or single tests. Those that notice most,
        and take least, come first.
    :param sample: How many mutants to choose at random; ``None`` for all.
    :param only: What ``pytest -k`` selects of them.
    """

    tests: tuple[str, ...]
    sample: int | None = None
    only: str = _NO_SERVERS


#: By the path of the module, without folder and suffix.
MODULES = {
    "cookie": Module(("test_cookie.py",)),
    "record": Module(("test_record.py",)),
    "merge": Module(("test_merge.py",)),
    "envelope": Module(("test_envelope.py", "test_nonce.py")),
    "config": Module(("test_config.py",)),
    "session": Module(("test_session.py", "test_life_cycle.py", "test_interface.py")),
    "keeper": Module(("test_life_cycle.py", "test_interface.py", "test_flow.py")),
    "interface": Module(("test_interface.py", "test_life_cycle.py", "test_flow.py")),
    "backends/memory": Module(("backends/test_memory.py",)),
    "backends/filesystem": Module(("backends/test_filesystem.py",), sample=200),
    "backends/redis": Module(("backends/test_redis.py",), sample=200, only=""),
    "backends/sqlalchemy": Module(("backends/test_sqlalchemy.py",), sample=200),
}
