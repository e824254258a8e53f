"""What can be continued of an earlier run, and what is killed and removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from local_agent import LocalAgent
from tachikoma_worker.cgroups.hierarchy import NoHierarchy
from tachikoma_worker.confinement.prepare import prepare
from tachikoma_worker.confinement.protocol import Exit, Held, SpawnerGone
from tachikoma_worker.confinement.spawner import Spawner
from tachikoma_worker.confinement.start import start
from tachikoma_worker.engine.takeover import GivenUp, Resumable, find_spool, lost_reason, sweep_execution
from tachikoma_worker.execution.journal import Unfinished
from tachikoma_worker.output.records import Facts
from tachikoma_worker.output.spool import Spool, host_boot

JOB = Unfinished("job-7", "ab")
RUNNING, ENDED = Held("job-7", 7, None), Held("job-7", 7, Exit(0, 0, 0.0))


def write_spool(agent: LocalAgent, **facts: Any) -> Path:
    values = {
        "host": host_boot(), "order_sha256": "ab", "executable": "/bin/true", "started_ms": 1, "began_ns": 1,
        "timeout": 60, "kill_grace": 1,
    }  # fmt: skip
    Spool.create(agent.context.spools, JOB.exec_id, Facts(**{**values, **facts}), max_bytes=2**20).close()
    return agent.context.spools / JOB.exec_id


async def test_an_execution_with_its_spool_is_continued(agent: LocalAgent) -> None:
    write_spool(agent)
    for held in ({}, {"job-7": RUNNING}):
        found = find_spool(agent.context, JOB, held)
        assert isinstance(found, Resumable)
        assert found.held == held.get("job-7")
        found.spool.close()


@pytest.mark.parametrize(
    ("facts", "reason"),
    [({"order_sha256": "other"}, "its spool is of another order"), ({"host": "earlier"}, "host was started again")],
)
async def test_a_spool_of_something_else_is_given_up(agent: LocalAgent, facts: dict[str, str], reason: str) -> None:
    write_spool(agent, **facts)
    found = find_spool(agent.context, JOB, {})
    assert isinstance(found, GivenUp)
    assert reason in found.reason


@pytest.mark.parametrize(("held", "killed"), [({}, False), ({"job-7": ENDED}, False), ({"job-7": RUNNING}, True)])
async def test_the_reason_says_whether_the_command_was_killed(
    agent: LocalAgent, held: dict[str, Held], killed: bool
) -> None:
    found = find_spool(agent.context, JOB, held)
    assert isinstance(found, GivenUp)
    assert lost_reason(found).endswith("the command was still running and was killed") is killed


async def test_a_spool_that_cannot_be_read_at_all_is_given_up(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(Spool, "open", fail)
    found = find_spool(agent.context, JOB, {})
    assert isinstance(found, GivenUp)
    assert found.reason == "RuntimeError: planted"


async def test_a_command_that_no_worker_continues_is_killed_and_released(agent: LocalAgent) -> None:
    context = agent.context
    prepared = prepare(
        agent.order("/bin/sleep", "600"), context.settings, context.spawner.uid, context.cgroups, context.enclosures
    )
    process = await start(prepared, context.spawner)
    process.leave()
    prepared.discard()
    context.spawner._processes.clear()
    [held] = await context.spawner.held()
    await sweep_execution(context.spawner, context.cgroups, held.name, held)
    assert await context.spawner.held() == []
    assert not psutil.pid_exists(held.pid)


@pytest.mark.parametrize("error", [OSError(13, "denied"), SpawnerGone("gone"), RuntimeError("planted")])
async def test_a_leftover_that_cannot_be_removed_keeps_none_of_the_others(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(NoHierarchy, "open", fail)
    with capture_logs() as logs:
        await sweep_execution(agent.context.spawner, agent.context.cgroups, "job-7", None)
    assert [entry["event"] for entry in logs] == ["leftover.not_removed"]


async def test_survivors_of_a_sweep_are_named(agent: LocalAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    async def survivors(*_: Any) -> list[int]:
        return [7, 8]

    monkeypatch.setattr(Spawner, "sweep", survivors)
    with capture_logs() as logs:
        await sweep_execution(agent.context.spawner, agent.context.cgroups, "job-7", None)
    assert [(entry["event"], entry["pids"]) for entry in logs] == [("leftover.not_removed", [7, 8])]
