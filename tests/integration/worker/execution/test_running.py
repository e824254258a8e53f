"""A running command from its start to its ending, with the real spawner."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from local_agent import AGENT, LocalAgent
from patience import PATIENCE_SECONDS
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker.confinement.prepare import Prepared, prepare
from tachikoma_worker.confinement.process import Process
from tachikoma_worker.confinement.start import start
from tachikoma_worker.execution.running import RunningCommand
from tachikoma_worker.execution.verdict import Stop
from tachikoma_worker.output.output_log import OutputLog
from tachikoma_worker.output.pump import Pump
from tachikoma_worker.output.records import Facts
from tachikoma_worker.output.spool import Spool, host_boot


class Running:
    """A command that runs, and what belongs to it."""

    def __init__(self, agent: LocalAgent, prepared: Prepared, **facts: Any) -> None:
        self.agent = agent
        self.prepared = prepared
        self.stop: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
        values = {
            "host": host_boot(), "order_sha256": "ab", "executable": "/bin/sh", "started_ms": 1,
            "began_ns": time.monotonic_ns(), "timeout": 60, "kill_grace": 1,
        }  # fmt: skip
        self.spool = Spool.create(
            agent.context.spools, prepared.order.jti, Facts(**{**values, **facts}), max_bytes=2**20
        )
        self.output = OutputLog(agent.context.redis, AGENT, prepared.order.jti, log_bytes=2**20, excerpt_bytes=1000)

    async def finish(self) -> Any:
        self.process = await start(self.prepared, self.agent.context.spawner)
        command = RunningCommand(
            self.prepared.order.jti, self.process, self.prepared.cgroup, self.spool, self.output, self.stop
        )
        try:
            return await asyncio.wait_for(command.finish(), PATIENCE_SECONDS)
        finally:
            await self.process.close()
            self.prepared.discard()
            self.spool.remove()


def running(agent: LocalAgent, script: str, **facts: Any) -> Running:
    context = agent.context
    order = agent.order("/bin/sh", "-c", script)
    return Running(
        agent, prepare(order, context.settings, context.spawner.uid, context.cgroups, context.enclosures), **facts
    )


async def test_an_ending_is_stored_before_the_spawner_forgets_the_command(agent: LocalAgent) -> None:
    command = running(agent, "echo out; exit 3")
    ending = await command.finish()
    assert (ending.state, ending.exit_code) == (ExecState.FAILED, 3)
    assert command.spool.end == ending
    assert command.output.excerpts[1].content() == b"out\n"


async def test_the_timeout_counts_from_the_start_also_after_a_restart(agent: LocalAgent) -> None:
    began_ns = time.monotonic_ns() - 3_600_000_000_000
    ending = await running(agent, "exec sleep 600", began_ns=began_ns, timeout=3600).finish()
    assert (ending.state, ending.duration_us >= 3_600_000_000) == (ExecState.TIMED_OUT, True)


async def test_a_command_that_ignores_its_end_is_killed_after_the_grace(
    agent: LocalAgent, tmp_path: Path, until: Any
) -> None:
    ignores = tmp_path / "ignores"
    command = running(agent, f"trap '' TERM; touch {ignores}; while :; do sleep 1; done", kill_grace=0.05)
    finishing = asyncio.create_task(command.finish())
    await until(ignores.exists, "it ignores its end")
    command.stop.set_result(Stop.CANCELLED)
    ending = await finishing
    assert (ending.state, ending.signal) == (ExecState.CANCELLED, 9)
    assert ending.kill.signals == (15, 9)


async def test_the_reason_of_an_end_is_on_disk_before_the_command_is_killed(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    kill = Process.kill

    async def look_and_kill(process: Process, grace: float) -> list[int]:
        found.append(Spool.open(agent.context.spools, command.spool._path.name, max_bytes=2**20).stopped)
        return await kill(process, grace)

    monkeypatch.setattr(Process, "kill", look_and_kill)
    command = running(agent, "exec sleep 600", timeout=0.01)
    assert (await command.finish()).state is ExecState.TIMED_OUT
    assert found == [Stop.TIMED_OUT.number]


@pytest.mark.parametrize("script", ["exec sleep 600", "kill -TERM $$"], ids=["runs", "killed"])
async def test_an_end_that_an_earlier_worker_began_has_its_reason(agent: LocalAgent, script: str) -> None:
    """It was killed after it had noted the reason: before it sent the signal, or before it stored the ending."""
    command = running(agent, script)
    command.spool.note_stop(Stop.CANCELLED.number)
    ending = await command.finish()
    assert (ending.state, ending.signal, ending.error) == (ExecState.CANCELLED, 15, "cancelled")


async def test_a_child_that_holds_the_pipes_does_not_hold_the_ending(agent: LocalAgent) -> None:
    ending = await running(agent, "sleep 600 & echo out").finish()
    assert ending.state is ExecState.SUCCEEDED


async def test_a_command_whose_output_cannot_be_taken_is_killed_at_once(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when its time is over: until then it would wait in its write."""

    async def fail(_: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(Pump, "run", fail)
    command = running(agent, "exec sleep 600")
    with pytest.raises(RuntimeError, match="planted"):
        await command.finish()
    assert command.process.exited.done()
    assert not psutil.pid_exists(command.process.pid)
