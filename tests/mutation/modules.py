"""Which tests belong to which module: none that needs a server, where it can be."""

from __future__ import annotations

import dataclasses

# Names of backends, in the ids of tests.
_NO_SERVERS = "not (valkey or redis or postgresql or mariadb or memcached)"
_MEMORY = f"{_NO_SERVERS} and not (filesystem or sqlite or cachelib)"


_WHOLE = ("test_flow.py", "test_life_cycle.py")


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


#: By the path of the module, without suffix, or of a folder of modules.
MODULES = {
    "cookie": Module(("test_cookie.py",), sample=100),
    "record": Module(("test_record.py",), sample=100),
    "merge": Module(("test_merge.py",)),
    "payload": Module(
        ("test_payload.py", "test_encryption.py", "test_forks.py"), sample=100
    ),
    "encryption": Module(("test_encryption.py", "test_payload.py")),
    "forks": Module(("test_forks.py",)),
    "config": Module(
        (
            *("test_config.py", "test_config_checks.py", "test_code_runners.py"),
            "test_moving.py::test_a_former_configuration_that_makes_no_sense_is_refused",
            "test_docs.py::test_every_key_is_documented_and_no_other",
            "test_docs.py::test_the_documented_default_is_the_codes",
        ),
        only="",
        sample=100,
    ),
    "config_checks": Module(("test_config_checks.py", "test_config.py"), only=""),
    "ids": Module(("test_cookie.py", "test_record.py")),
    "sessions": Module(
        (
            *("test_sessions.py", "test_authenticated.py", "test_passive.py"),
            *("test_logouts.py", *_WHOLE, "test_lazy.py", "test_contexts.py"),
            *("test_interface.py", "test_meta.py", "test_unsaved.py"),
        ),
        sample=100,
    ),
    "plan": Module(("test_plan.py",), sample=100),
    "unit": Module(("test_unit.py",)),
    "core": Module(("test_core.py",)),
    "loading": Module(("test_loader.py",)),
    "conflicts": Module(("test_conflict_steps.py",)),
    "atomic": Module(
        (
            "test_atomic.py",
            "test_security.py::test_what_a_session_is_made_of_shows_neither_its_id_nor_its_content",
        )
    ),
    "activity": Module(("test_activity.py",)),
    "user_limit": Module(
        (
            "test_user_limit.py",
            "test_operator.py::test_the_oldest_sessions_beyond_the_limit_are_ended",
            "test_operator.py::test_the_current_session_is_never_the_one_to_end",
            "test_operator.py::test_a_lower_limit_ends_several_at_the_next_log_in",
            "test_operator.py::test_a_session_counts_once_in_the_middle_of_its_rotation",
            "test_operator.py::test_two_who_log_in_at_once_do_not_end_each_other",
        )
    ),
    "ended": Module(("test_ended.py",)),
    "unsaved": Module(("test_unsaved.py",)),
    "moment": Module(("test_moment.py",)),
    "lifecycle": Module(
        (
            *("test_settling.py", "test_interface.py", *_WHOLE, "test_signals.py"),
            *("test_conflicts.py", "test_logouts.py", "test_passive.py"),
            "test_takeover.py::test_an_old_cookie_brings_back_nothing_that_was_ended",
            "test_user_limit.py::test_only_who_logs_in_is_counted",
            "test_users.py",
            "test_flask_socketio.py::test_an_event_that_only_reads_costs_one_load",
            "test_flask_socketio.py::test_a_session_does_not_begin_in_an_event",
            "test_flask_socketio.py::test_a_log_out_in_an_event_ends_the_session",
        ),
        sample=200,
    ),
    "rotation": Module(("test_rotation.py",)),
    "interface": Module(
        (
            *("test_interface_parts.py", "test_interface.py", "test_hooks.py", *_WHOLE),
            "test_faults.py::test_the_applications_own_error_page_is_shown",
            "test_faults.py::test_a_failure_that_an_after_request_function_meets_is_a_503_too",
            "test_faults.py::test_a_failure_that_another_error_page_meets_is_a_503_too",
            "test_faults.py::test_nothing_of_the_views_answer_is_in_the_error",
            "test_faults.py::test_a_stream_is_closed_that_is_not_sent",
            "test_faults.py::test_a_session_transaction_raises_when_its_store_fails",
            "test_faults.py::test_a_session_transaction_raises_what_was_swallowed_in_it",
            "test_flask_socketio.py::test_an_event_that_only_reads_costs_one_load",
            "test_flask_socketio.py::test_a_session_does_not_begin_in_an_event",
            "test_flask_socketio.py::test_a_log_out_in_an_event_ends_the_session",
        ),
        sample=200,
    ),
    "logouts": Module(("test_logouts.py",)),
    "attempts": Module(("test_attempts.py", "test_settling.py")),
    "ending": Module(
        (
            *("test_ending.py", "test_logouts.py", "test_unsettled.py"),
            "test_sessions.py",
        ),
        sample=100,
    ),
    "leftovers": Module(("test_leftovers.py", "test_unsettled.py")),
    "outside": Module(("test_outside.py",), sample=100),
    "users": Module(("test_users.py",)),
    "meta": Module(("test_meta.py",)),
    "opened": Module(("test_opened.py", "test_passive.py")),
    "hiding": Module(("test_hiding.py",)),
    "breaker": Module(("test_breaker.py",), only=f"{_MEMORY} and not five_waits"),
    "trial": Module(
        ("test_trial.py", "test_cli.py"),
        only=f"{_MEMORY} and (test_trial or check_names_what or check_tries"
        " or check_finds or only_pretends or check_waits or check_has)",
        sample=100,
    ),
    "serializers/lazy": Module(("test_lazy.py", "test_serializers.py")),
    "serializers/comparing": Module(("test_comparing.py",)),
    "backends/memory": Module(
        ("backends/test_memory.py", "test_interruptions.py"), sample=100
    ),
    "backends/filesystem": Module(
        ("backends/test_filesystem_parts.py", "backends/test_filesystem.py"),
        sample=200,
        # These take seconds.
        only="not (thousands or several_processes or race_for or only_one_process"
        " or listing_a_user_reads or without_a_marker or lets_others_write"
        " or no_descriptor or sweep_is_bounded"
        " or loads_during_touches or a_crash_before or races_with or that_race_with"
        " or at_the_same_moment or add_up or one_of_many)",
    ),
    "backends/sqlalchemy": Module(
        (
            "backends/test_sqlalchemy_problems.py",
            "backends/test_sqlalchemy_statements.py",
            *("backends/test_sqlalchemy_engines.py", "backends/test_sqlalchemy.py"),
        ),
        sample=200,
        # What these need is started for each mutant anew.
        only=f"{_NO_SERVERS} and not (pgbouncer or stale_connection"
        " or what_that_user_has or uses_the_indexes or not_committed_yet"
        " or collation or needs_quotes or the_characters_of_a_user)",
    ),
    # There is no Redis without a server.
    "backends/redis": Module(
        ("backends/test_redis_parts.py", "backends/test_redis.py"),
        sample=200,
        only="not (TestOnRedis or TestOnCluster or TestWithValkeyPy"
        " or [redis] or [redis- or what_that_user_has or all_day"
        " or whatever_happens or interruption or until_it_expires"
        " or record_expired or moves_the_expiry or expired_record"
        " or tombstone_expires or follows_expiry or all_live_records"
        " or longer_life or for_as_long or waited_for or switch_over"
        " or was_killed or fail_over or not_the_next or every_node"
        " or shard_of_a_cluster or too_old or interrupted_before"
        " or replica or permissions)",
    ),
}
