"""An execution that was claimed always ends: whatever its input, and whatever fails at whatever step."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from local_agent import AGENT, LocalAgent
from patience import PATIENCE_SECONDS
from tachikoma.config.tasks import cancel_all
from tachikoma.identity.signed_messages import Receipt, WorkOrder
from tachikoma.policy.watch import PolicyWatch
from tachikoma.redis import keys
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker.cgroups.hierarchy import NoCgroup, NoHierarchy
from tachikoma_worker.confinement.spawner import Spawner
from tachikoma_worker.execution import execution as execution_module
from tachikoma_worker.execution import receipt as receipt_module
from tachikoma_worker.execution import running as running_module
from tachikoma_worker.execution.execution import Execution
from tachikoma_worker.execution.journal import Journal
from tachikoma_worker.execution.receipt import FAITHFUL_ATTEMPTS, Output
from tachikoma_worker.execution.running import RunningCommand
from tachikoma_worker.execution.verdict import Stop
from tachikoma_worker.output.output_log import OutputLog
from tachikoma_worker.output.pump import Pump
from tachikoma_worker.output.records import CLIPPED, MAX_TEXT_CHARS
from tachikoma_worker.output.spool import Spool


class Planted(Exception):
    """An error that no code expects."""


def fail(*_: Any, **__: Any) -> Any:
    raise Planted("planted")


async def fail_later(*_: Any, **__: Any) -> Any:
    raise Planted("planted")


async def end_of(agent: LocalAgent, order: WorkOrder, work: Any = None) -> Receipt:
    """Run an order, or other work on it, to its receipt."""
    await asyncio.wait_for(work or agent.execution(order).run(), PATIENCE_SECONDS)
    await agent.background.wait(PATIENCE_SECONDS)
    receipt = await agent.receipt(order.jti)
    assert receipt is not None, "no receipt"
    return receipt


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not released does not."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def assert_nothing_left(agent: LocalAgent, order: WorkOrder) -> None:
    """Its command does not run, its spool is gone, and the journal has it as finished."""
    assert not [item for item in await agent.context.spawner.held() if item.name == order.jti and runs(item.pid)]
    assert list(agent.context.spools.iterdir()) == []
    await agent.context.journal.flush()
    assert agent.context.journal.unfinished() == []


# --- the ordinary course ----------------------------------------------------------------------------------------------


async def test_a_command_runs_and_its_receipt_is_signed_and_delivered(agent: LocalAgent) -> None:
    order = agent.order("/bin/sh", "-c", "echo out; echo err >&2; exit 3")
    receipt = await end_of(agent, order)
    assert (receipt.state, receipt.exit_code, receipt.error) == (ExecState.FAILED, 3, "")
    assert (receipt.stdout.total_bytes, receipt.stderr.total_bytes, receipt.chunks) == (4, 4, 2)
    assert receipt.executable == "/bin/sh"
    assert 0 < receipt.started_ms <= receipt.ended_ms
    await assert_nothing_left(agent, order)


async def test_a_second_delivery_of_an_order_starts_nothing(agent: LocalAgent, tmp_path: Path) -> None:
    order = agent.order("/bin/sh", "-c", f"echo >> {tmp_path}/runs")
    execution = agent.execution(order)
    first = await end_of(agent, order, execution.run())
    again = Execution.of_order(agent.context, order.jti, execution._token)
    assert await end_of(agent, order, again.run()) == first
    assert (tmp_path / "runs").read_text() == "\n"


async def test_another_order_of_a_claimed_id_starts_nothing_and_is_answered(agent: LocalAgent, tmp_path: Path) -> None:
    order = agent.order("/bin/sh", "-c", f"echo >> {tmp_path}/runs")
    first = await end_of(agent, order)
    second = agent.execution(order)
    receipt = await end_of(agent, order, second.run())
    assert (receipt.state, receipt.order_sha256) == (ExecState.LOST, second.order_sha256)
    assert receipt.order_sha256 != first.order_sha256
    assert "another order of this id" in receipt.error
    assert (tmp_path / "runs").read_text() == "\n"


async def test_an_output_log_of_another_type_does_not_keep_a_command_running(agent: LocalAgent, tmp_path: Path) -> None:
    order = agent.order("/bin/sh", "-c", f"echo one; while ! [ -e {tmp_path}/go ]; do sleep 0.01; done; echo two")
    work = asyncio.ensure_future(end_of(agent, order))
    while not await agent.redis.xrange(keys.output(AGENT, order.jti)):  # noqa: ASYNC110 (nothing announces it)
        await asyncio.sleep(0.01)
    await agent.redis.delete(keys.output(AGENT, order.jti))
    await agent.redis.set(keys.output(AGENT, order.jti), "no stream")
    (tmp_path / "go").touch()
    receipt = await work
    assert (receipt.state, receipt.stdout.total_bytes) == (ExecState.SUCCEEDED, 8)
    assert len(await agent.redis.xrange(keys.output(AGENT, order.jti))) == 1


async def test_a_fenced_execution_gets_no_receipt_and_is_finished(agent: LocalAgent) -> None:
    order = agent.order("/bin/true")
    await agent.redis.set(keys.claim(AGENT, order.jti), "fenced")
    await agent.execution(order).run()
    assert await agent.receipt(order.jti) is None
    await assert_nothing_left(agent, order)


async def test_a_forged_order_gets_no_receipt_and_no_claim(agent: LocalAgent) -> None:
    order = agent.order("/bin/true")
    forged = Execution.of_order(agent.context, order.jti, "no.signed.order")
    with capture_logs() as logs:
        await forged.run()
    assert [entry["event"] for entry in logs] == ["order.refused"]
    assert await agent.redis.get(keys.claim(AGENT, order.jti)) is None
    assert agent.context.journal.unfinished() == []


async def test_an_order_for_an_earlier_journal_is_lost(agent: LocalAgent) -> None:
    receipt = await end_of(agent, agent.order("/bin/true", order={"journal": "another"}))
    assert (receipt.state, receipt.started_ms) == (ExecState.LOST, 0)
    assert "lost its journal" in receipt.error
    assert receipt.stdout.sha256 == ""


@pytest.mark.parametrize(
    ("stop", "state", "error"),
    [
        (Stop.CANCELLED, ExecState.CANCELLED, "cancelled"),
        (Stop.SHUTDOWN, ExecState.FAILED, "killed: the agent was shut down"),
    ],
)
async def test_a_running_command_is_stopped(
    agent: LocalAgent, tmp_path: Path, until: Any, stop: Stop, state: ExecState, error: str
) -> None:
    order = agent.order("/bin/sh", "-c", f"touch {tmp_path}/runs; exec sleep 600")
    execution = agent.execution(order)
    running = asyncio.create_task(execution.run())
    await until((tmp_path / "runs").exists, "it runs")
    execution.stop(stop)
    receipt = await end_of(agent, order, running)
    assert (receipt.state, receipt.error) == (state, error)
    assert receipt.kill is not None
    assert receipt.kill.empty


async def test_a_command_is_killed_at_its_timeout(agent: LocalAgent) -> None:
    receipt = await end_of(agent, agent.order("/bin/sleep", "600", timeout=0.1))
    assert (receipt.state, receipt.error) == (ExecState.TIMED_OUT, "killed at its timeout of 0.1 s")


async def test_a_cancel_beside_the_claim_prevents_the_start(agent: LocalAgent) -> None:
    order = agent.order("/bin/true")
    await agent.redis.set(keys.cancel(AGENT, order.jti), agent.cancel(order))
    receipt = await end_of(agent, order)
    assert (receipt.state, receipt.error) == (ExecState.CANCELLED, "cancelled before it started")


# --- inputs that once broke the bounds of a receipt -------------------------------------------------------------------

LONG = "a" * 9000


def script(tmp_path: Path, first_line: bytes) -> str:
    path = tmp_path / "script"
    path.write_bytes(first_line + b"\necho ran\n")
    path.chmod(0o755)
    return str(path)


def odd_interpreter(tmp_path: Path) -> bytes:
    """An interpreter whose name is no UTF-8."""
    path = os.fsencode(tmp_path) + b"/sh-\xff\xfe"
    os.symlink(b"/bin/sh", path)
    return path


INPUTS: dict[str, Callable[[LocalAgent, Path], WorkOrder]] = {
    "path of 9,000 characters": lambda agent, _: agent.order(f"/{LONG}"),
    "bare name of 8,500 characters": lambda agent, _: agent.order("b" * 8500, executables=["/bin/" + "b" * 8500]),
    "directory of 3,000 control characters": lambda agent, _: agent.order("/bin/true", work_dir="/" + "\x01" * 3000),
    "directory of 4,000 backslashes": lambda agent, _: agent.order("/bin/true", work_dir="/" + "\\" * 4000),
    "argument that policy denies": lambda agent, _: agent.order(
        "/bin/true", "\x02" * 3000, grant={"denied": ["true " + "\x02" * 3000]}
    ),
    "variable of 9,000 characters": lambda agent, _: agent.order("/bin/true", environment={f"LD_{LONG}": "x"}),
    "path of many-byte characters": lambda agent, _: agent.order("/" + "\U0001f600" * 9000),
    "missing interpreter that is no UTF-8": lambda agent, tmp: agent.order(script(tmp, b"#!/nowhere/\xff\xfe")),
    "labels of another agent": lambda agent, _: agent.order("/bin/true", order={"labels": {LONG: LONG}}),
    "capabilities beyond the agent's": lambda agent, _: agent.order(
        "/bin/true", user="root", grant={"capabilities": 2**64 - 1}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
async def test_an_input_whose_error_is_too_long_or_no_text_is_refused_with_a_receipt(
    agent: LocalAgent, tmp_path: Path, name: str
) -> None:
    order = INPUTS[name](agent, tmp_path)
    receipt = await end_of(agent, order)
    assert receipt.state in (ExecState.REJECTED, ExecState.FAILED)
    assert receipt.error
    assert len(receipt.error) <= MAX_TEXT_CHARS
    await assert_nothing_left(agent, order)


async def test_a_clipped_error_says_that_it_is_clipped(agent: LocalAgent) -> None:
    receipt = await end_of(agent, agent.order(f"/{LONG}"))
    assert (receipt.state, receipt.exit_code) == (ExecState.FAILED, 127)
    assert receipt.error.startswith("/aaa")
    assert receipt.error.endswith(CLIPPED)


async def test_an_interpreter_whose_name_is_no_utf8_runs(agent: LocalAgent, tmp_path: Path) -> None:
    order = agent.order(script(tmp_path, b"#!" + odd_interpreter(tmp_path)))
    receipt = await end_of(agent, order)
    assert (receipt.state, receipt.stdout.total_bytes) == (ExecState.SUCCEEDED, 4)
    assert receipt.executable.endswith(r"sh-\udcff\udcfe")


async def test_a_refusal_by_the_agents_own_policy_may_be_of_any_length(agent: LocalAgent, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    text = "policies:\n  - name: own\n    subjects: ['**']\n    agents: ['**']\n    allowedCommands: [/bin/true]\n"
    path.write_text(text)
    object.__setattr__(agent.context, "local_policy", PolicyWatch(path))
    receipt = await end_of(agent, agent.order(f"/{LONG}"))
    assert receipt.state is ExecState.REJECTED
    assert receipt.error.startswith("the agent's own policy does not allow it")


# --- an unexpected exception at each step -----------------------------------------------------------------------------

#: What to break before and during a run, and how.
STEPS: dict[str, tuple[Any, str, Any]] = {
    "claim": (execution_module, "claim", fail_later),
    "prepare": (execution_module, "prepare", fail),
    "facts": (execution_module, "facts_of", fail),
    "output log": (Execution, "_output_log", fail),
    "create the spool": (Spool, "create", fail),
    "start": (execution_module, "start", fail_later),
    "adopt the process": (Spawner, "_adopt", fail),
    "attend": (RunningCommand, "_attend", fail_later),
    "pump": (Pump, "run", fail_later),
    "take output": (Spool, "take", fail),
    "read the spool": (Spool, "chunks", fail),
    "append to the log": (OutputLog, "append", fail_later),
    "drain": (RunningCommand, "_drain", fail_later),
    "judge": (running_module, "judge", fail),
    "store the ending": (Spool, "finish", fail),
}


@pytest.mark.parametrize("step", STEPS)
async def test_an_exception_at_any_step_of_a_run_makes_a_lost_ending(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    target, name, replacement = STEPS[step]
    monkeypatch.setattr(target, name, replacement)
    order = agent.order("/bin/sh", "-c", "echo out; exec sleep 600")
    if step in ("drain", "judge", "store the ending"):
        order = agent.order("/bin/sh", "-c", "echo out")
    with capture_logs() as logs:
        receipt = await end_of(agent, order)
    assert (receipt.state, receipt.error) == (ExecState.LOST, "the agent failed: Planted: planted")
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["execution.failed"]
    await assert_nothing_left(agent, order)


async def test_usage_that_cannot_be_read_costs_only_the_usage(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NoCgroup, "usage", fail)
    receipt = await end_of(agent, agent.order("/bin/true"))
    assert receipt.state is ExecState.SUCCEEDED
    assert receipt.usage.peak_memory is None


@pytest.mark.parametrize("step", ["_transaction", "_sync"])
@pytest.mark.parametrize("error", [OSError("disk full"), OSError("x" * 20_000)])
async def test_a_journal_that_cannot_be_written_rejects_for_good(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str, error: OSError
) -> None:
    def refuse(*_: Any) -> list[bool]:
        raise error

    order = agent.order("/bin/sh", "-c", f"touch {tmp_path}/ran")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, step, refuse)
        receipt = await end_of(agent, order)
    assert receipt.state is ExecState.REJECTED
    assert receipt.error.startswith("the agent's journal cannot be written: ")
    await agent.execution(order).run()
    assert not (tmp_path / "ran").exists()


async def test_an_exception_that_has_no_text_makes_an_ending(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    async def raise_it(*_: Any) -> None:
        raise Unprintable

    monkeypatch.setattr(RunningCommand, "_attend", raise_it)
    monkeypatch.setattr(execution_module.log, "error", lambda *_, **__: None)
    receipt = await end_of(agent, agent.order("/bin/true"))
    assert (receipt.state, receipt.error) == (ExecState.LOST, "the agent failed: Unprintable")


# --- an unexpected exception while the receipt is delivered -----------------------------------------------------------


def failing(function: Any, times: int) -> Any:
    """The function, which fails at its first calls."""
    calls = []

    def run(*args: Any, **values: Any) -> Any:
        calls.append(1)
        if len(calls) <= times:
            raise Planted("planted")
        return function(*args, **values)

    return run


@pytest.mark.parametrize("name", ["make_report", "sign", "_store_first", "_publish", "_key", "_retention_seconds"])
async def test_an_exception_in_an_attempt_to_deliver_is_followed_by_another_attempt(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(receipt_module, name, failing(getattr(receipt_module, name), 1))
    order = agent.order("/bin/true")
    assert (await end_of(agent, order)).state is ExecState.SUCCEEDED
    await assert_nothing_left(agent, order)


@pytest.mark.parametrize("name", ["make_report", "sign", "_key", "_retention_seconds"])
async def test_an_ending_that_cannot_be_reported_becomes_one_that_says_less(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(receipt_module, name, failing(getattr(receipt_module, name), FAITHFUL_ATTEMPTS))
    order = agent.order("/bin/true")
    receipt = await end_of(agent, order)
    assert receipt.state is ExecState.LOST
    assert receipt.error == "the agent failed to report SUCCEEDED: Planted: planted"
    await assert_nothing_left(agent, order)


async def test_output_that_cannot_be_described_is_unknown(agent: LocalAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Output, "of", fail)
    receipt = await end_of(agent, agent.order("/bin/echo", "x"))
    assert (receipt.state, receipt.stdout.truncated, receipt.stdout.sha256) == (ExecState.SUCCEEDED, True, "")


async def test_a_spool_that_cannot_be_removed_delays_nothing(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "denied")

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "remove", refuse)
        receipt = await end_of(agent, agent.order("/bin/true"))
    assert receipt.state is ExecState.SUCCEEDED


async def test_a_result_of_another_type_is_replaced(agent: LocalAgent) -> None:
    order = agent.order("/bin/true")
    await agent.redis.hset(keys.result(AGENT, order.jti), "not", "a result")
    assert (await end_of(agent, order)).state is ExecState.SUCCEEDED


# --- an unexpected exception in a take-over ---------------------------------------------------------------------------


async def left_behind(agent: LocalAgent, order: WorkOrder, until: Any) -> Spool:
    """Start an order, and leave it as a killed worker does. Returns its spool as the next worker opens it."""
    running = asyncio.create_task(agent.execution(order).run())
    path = agent.context.spools / order.jti
    await until(lambda: path.exists() and b"out\n" in path.read_bytes(), "it has written")
    await cancel_all([running])
    await agent.background.wait(PATIENCE_SECONDS)
    # The connection of the next worker is a new one.
    agent.context.spawner._processes.clear()
    return Spool.open(agent.context.spools, order.jti, max_bytes=2**20)


async def take_over(agent: LocalAgent, order: WorkOrder, spool: Spool) -> Receipt:
    """Resume an order as a restarted worker does."""
    held = {item.name: item for item in await agent.context.spawner.held()}
    execution = Execution.of_earlier_worker(agent.context, order.jti, spool.start.order_sha256)
    return await end_of(agent, order, execution.resume(spool, held.get(order.jti)))


async def test_a_command_that_runs_is_taken_over(agent: LocalAgent, tmp_path: Path, until: Any) -> None:
    script = f"echo out; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo more; exit 5"
    order = agent.order("/bin/sh", "-c", script)
    spool = await left_behind(agent, order, until)
    (tmp_path / "go").touch()
    receipt = await take_over(agent, order, spool)
    assert (receipt.state, receipt.exit_code, receipt.stdout.total_bytes) == (ExecState.FAILED, 5, len("out\nmore\n"))
    await assert_nothing_left(agent, order)


#: What to break in a take-over, and how.
TAKE_OVER: dict[str, tuple[Any, str, Any]] = {
    "output log": (Execution, "_output_log", fail),
    "take": (Spawner, "take", fail_later),
    "adopt the process": (Spawner, "_adopt", fail),
    "continue": (Execution, "_continue", fail_later),
    "attend": (RunningCommand, "_attend", fail_later),
    "pump": (Pump, "run", fail_later),
    "append to the log": (OutputLog, "append", fail_later),
}


@pytest.mark.parametrize("step", TAKE_OVER)
async def test_an_exception_at_any_step_of_a_take_over_kills_and_makes_a_lost_ending(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch, until: Any, step: str
) -> None:
    order = agent.order("/bin/sh", "-c", "echo out; exec sleep 600")
    spool = await left_behind(agent, order, until)
    [held] = await agent.context.spawner.held()
    target, name, replacement = TAKE_OVER[step]
    with monkeypatch.context() as patch:
        patch.setattr(target, name, replacement)
        receipt = await take_over(agent, order, spool)
    assert (receipt.state, receipt.error) == (ExecState.LOST, "the agent failed: Planted: planted")
    await until(lambda: not runs(held.pid), "it is killed")
    await assert_nothing_left(agent, order)


@pytest.mark.parametrize("error", [OSError(2, "gone"), PermissionError(13, "denied"), Planted("planted")])
async def test_a_cgroup_that_cannot_be_opened_costs_nothing(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, until: Any, error: Exception
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    order = agent.order("/bin/sh", "-c", f"echo out; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; exit 5")
    spool = await left_behind(agent, order, until)
    (tmp_path / "go").touch()
    monkeypatch.setattr(NoHierarchy, "open", refuse)
    receipt = await take_over(agent, order, spool)
    assert (receipt.state, receipt.exit_code) == (ExecState.FAILED, 5)


async def test_an_ending_that_an_earlier_worker_stored_is_delivered_without_command_and_cgroup(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    """Redis was unavailable at the command's end, and the cgroup was removed before the worker was restarted."""
    order = agent.order("/bin/echo", "out")
    blocked = asyncio.Event()

    async def unavailable(*_: Any, **__: Any) -> None:
        blocked.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(execution_module, "deliver", unavailable)
        running = asyncio.create_task(agent.execution(order).run())
        await asyncio.wait_for(blocked.wait(), PATIENCE_SECONDS)
        await cancel_all([running])
    await agent.background.wait(PATIENCE_SECONDS)
    spool = Spool.open(agent.context.spools, order.jti, max_bytes=2**20)
    assert spool.end is not None
    monkeypatch.setattr(NoHierarchy, "open", fail)
    receipt = await take_over(agent, order, spool)
    assert (receipt.state, receipt.stdout.total_bytes) == (ExecState.SUCCEEDED, 4)
    await assert_nothing_left(agent, order)


async def test_a_command_that_neither_worker_nor_spawner_survived_is_lost(agent: LocalAgent, until: Any) -> None:
    order = agent.order("/bin/sh", "-c", "echo out; exec sleep 600")
    spool = await left_behind(agent, order, until)
    execution = Execution.of_earlier_worker(agent.context, order.jti, spool.start.order_sha256)
    receipt = await end_of(agent, order, execution.resume(spool, None))
    assert (receipt.state, receipt.stdout.total_bytes) == (ExecState.LOST, 4)
    assert receipt.error.startswith("its end is not known")


async def test_a_cancel_that_came_meanwhile_is_found(agent: LocalAgent, until: Any) -> None:
    order = agent.order("/bin/sh", "-c", "echo out; exec sleep 600")
    spool = await left_behind(agent, order, until)
    await agent.redis.set(keys.cancel(AGENT, order.jti), agent.cancel(order))
    assert (await take_over(agent, order, spool)).state is ExecState.CANCELLED
