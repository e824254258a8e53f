"""With beat's credentials: Redis lets it send the submitter hints, and nothing else."""

from __future__ import annotations

import redis as redis_py
from support import AGENT

from rights import dry_run, every_command
from tachikoma.redis import keys
from tachikoma.redis.users import BEAT

OWN = keys.BEAT_LOCK
#: All that beat may do, but for running scripts on its own names.
ALLOWED = {
    *((command, OWN) for command in ("get", "set", "del", "pexpire")),
    *(("lpush", keys.BATCH), ("llen", keys.BATCH)),
}
#: What redis-py and its lock need beside it. Asked as here EVALSHA has no key; the last test asks for its keys.
NO_NAME = {
    *("ping", "unsubscribe", "client|setname", "auth", "hello", "quit", "reset"),
    *("multi", "exec", "script|load", "evalsha"),
}
FOREIGN = [
    *(keys.queue(AGENT), keys.info(AGENT), keys.events(AGENT), keys.control(AGENT), keys.claim(AGENT, "x")),
    *(keys.output(AGENT, "x"), keys.cancel(AGENT, "x"), keys.read(AGENT, "x"), keys.result(AGENT, "x")),
    *(keys.INDEX, keys.OPEN, keys.AGENTS, keys.ONLINE, keys.APPROVALS, keys.APPROVED, keys.AUDIT, keys.AUDIT_SEQ),
    *(keys.AUDIT_SINKS, keys.ENDED, keys.ALL_EVENTS, keys.ALL_INFO, keys.ALL_OURS, keys.ALL_QUEUES),
    *(keys.reports_to(0), keys.report(AGENT, 0, "x")),
    *(keys.execution("x"), keys.parked("x"), keys.agent_index(AGENT), keys.audit_lock("x"), *keys.scope("x")),
    *(
        keys.SCHEDULES,
        keys.schedule("x"),
        keys.schedule_runs("x"),
        keys.schedule_order("x"),
        f"{OWN}x",
        "beat:",
        "orch.batchx",
    ),
    *("celery", "unacked", "_kombu.binding.celery.pidbox", "_kombu.binding.orch.batch", "/0.celery.pidbox", "*", ""),
]


def test_of_all_commands_beat_may_use_a_few_on_its_own_names(admin: redis_py.Redis) -> None:
    allowed = dry_run(admin, BEAT, list(every_command(admin)), [OWN, keys.BATCH])
    assert {(command, name) for command, name in allowed if command not in NO_NAME} == ALLOWED


def test_of_all_commands_beat_may_use_none_on_names_of_others(admin: redis_py.Redis) -> None:
    allowed = dry_run(admin, BEAT, list(every_command(admin)), FOREIGN)
    assert {command for command, _ in allowed} <= NO_NAME


def test_beat_may_run_scripts_on_its_own_names_only(admin: redis_py.Redis) -> None:
    assert admin.execute_command("ACL", "DRYRUN", BEAT, "EVALSHA", "0" * 40, "1", OWN) == "OK"
    for name in (keys.BATCH, keys.queue(AGENT), keys.schedule("x"), keys.AUDIT):
        assert admin.execute_command("ACL", "DRYRUN", BEAT, "EVALSHA", "0" * 40, "1", name) != "OK"
