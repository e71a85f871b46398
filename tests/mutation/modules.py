"""Which tests belong to which module: none that needs a server, where it can be."""

from __future__ import annotations

import dataclasses

# Names of backends, in the ids of tests.
_NO_SERVERS = "not (valkey or redis or postgresql or mariadb or memcached)"
_MEMORY = f"{_NO_SERVERS} and not (filesystem or sqlite or cachelib)"


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
    only: str = _MEMORY


#: By the path of the module, without folder and suffix.
MODULES = {
    "cookie": Module(("test_cookie.py",)),
    "record": Module(("test_record.py",)),
    "merge": Module(("test_merge.py",)),
    "envelope": Module(("test_envelope.py", "test_nonce.py")),
    "config": Module(
        (
            "test_config.py",
            "test_docs.py::test_every_key_is_documented_and_no_other",
            "test_docs.py::test_the_documented_default_is_the_codes",
        ),
        only="",
    ),
    "session": Module(
        (
            "test_session.py",
            "test_interface.py",
            "test_flow.py",
            "test_life_cycle.py",
            "test_signals.py",
        )
    ),
    "keeper": Module(("test_interface.py", "test_flow.py", "test_life_cycle.py")),
    "interface": Module(("test_interface.py", "test_flow.py", "test_life_cycle.py")),
    "backends/memory": Module(("backends/test_memory.py", "test_interruptions.py")),
    "backends/filesystem": Module(
        ("backends/test_filesystem.py",),
        sample=200,
        # These take seconds.
        only="not (thousands or several_processes or race_for or only_one_process"
        " or listing_a_user_reads or without_a_marker or lets_others_write)",
    ),
    "backends/sqlalchemy": Module(
        ("backends/test_sqlalchemy.py",),
        sample=200,
        only=f"{_NO_SERVERS} and not (pgbouncer or stale_connection"
        " or what_that_user_has or uses_the_indexes)",
    ),
    # There is no Redis without a server.
    "backends/redis": Module(
        ("backends/test_redis.py",),
        sample=200,
        only="valkey and not (withvalkey or what_that_user_has or all_day"
        " or whatever_happens or interruption)",
    ),
}
