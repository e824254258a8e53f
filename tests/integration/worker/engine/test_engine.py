"""The engine: parts that end the worker when they fail, executions that never do, and what an earlier run left."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from authority import Authority
from local_agent import AGENT, DOMAIN, REQUESTER
from patience import PATIENCE_SECONDS
from tachikoma.client.membership.renewal import Renewal
from tachikoma.errors import ConfigurationError
from tachikoma.identity.signed_messages import CancelOrder, Receipt, WorkOrder
from tachikoma.identity.signing import sign
from tachikoma.identity.spiffe import agent_id, service_id
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import Heartbeat
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker.cgroups import hierarchy
from tachikoma_worker.engine import engine as module
from tachikoma_worker.engine.control import Control
from tachikoma_worker.engine.engine import Engine
from tachikoma_worker.engine.lease import Lease
from tachikoma_worker.engine.takeover import sweep
from tachikoma_worker.execution.journal import Journal
from tachikoma_worker.execution.verdict import Stop
from tachikoma_worker.output.spool import Spool
from tachikoma_worker.settings import WorkerSettings

Until = Callable[[Callable[[], object], str], Any]


class World:
    """An agent's folder with one engine after another, and the orchestrator that signs its orders."""

    def __init__(self, folder: Path, redis: Redis, redis_url: str, authority: Authority) -> None:
        self.folder = folder
        self.redis = redis
        self.redis_url = redis_url
        self.orchestrator = authority.svid(str(service_id(DOMAIN, "orchestrator")))
        self.opened: list[Engine] = []
        self.engines: list[Engine] = []
        #: How often an engine asked for the end of its worker.
        self.ended: list[None] = []

    def settings(self, **values: Any) -> WorkerSettings:
        defaults = {
            "agent_id": AGENT, "redis_url": self.redis_url, "identity": self.folder / "identity", "data": self.folder,
            "stop_grace": 0.1, "kill_grace": 1, "cgroup_name": f"tachikoma-test-{self.folder.name}",
        }  # fmt: skip
        return WorkerSettings(**{**defaults, **values})

    def open(self, **values: Any) -> Engine:
        engine = Engine.open(self.settings(**values))
        self.opened.append(engine)
        self.engines.append(engine)
        return engine

    def start(self, **values: Any) -> Engine:
        engine = self.open(**values)
        engine.start()
        return engine

    async def stop(self, engine: Engine) -> None:
        self.engines.remove(engine)
        await asyncio.wait_for(asyncio.to_thread(engine.stop), PATIENCE_SECONDS)

    def order(self, *command: str, boot: str, **request: Any) -> WorkOrder:
        asked = ExecRequest(agent_id=AGENT, command=command, **{"timeout": 60, **request})
        now = int(time.time())
        grant = Grant(executables=[GrantedExecutable(path=command[0])], interpreters=True)
        return WorkOrder(
            iss=str(self.orchestrator.spiffe_id), iat=now, aud=str(agent_id(DOMAIN, AGENT)), sub=REQUESTER,
            exp=now + 600, jti=asked.id, policy="p@0", journal=boot, grant=grant, request=asked, host_access=True,
        )  # fmt: skip

    def submit(self, engine: Engine, *command: str) -> tuple[WorkOrder, threading.Event]:
        order = self.order(*command, boot=engine._context.journal.boot)
        done = threading.Event()
        engine.submit(order.jti, sign(self.orchestrator, order), done.set)
        return order, done

    async def receipt(self, exec_id: str) -> Receipt:
        """The receipt of an execution, once it is there; the orchestrator verifies it."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (raw := await self.redis.get(keys.result(AGENT, exec_id))) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        payload = json.loads(raw)["result"]["receipt"].split(".")[1]
        return Receipt.model_validate_json(base64.urlsafe_b64decode(payload + "=="))


@pytest_asyncio.fixture
async def world(
    redis: Redis, redis_url: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="tk-"))
    authority.write(folder / "identity", str(agent_id(DOMAIN, AGENT)))
    made = World(folder, redis, redis_url, authority)
    monkeypatch.setattr(module, "end_worker", lambda: made.ended.append(None))
    threads = set(threading.enumerate())
    yield made
    for engine in list(made.engines):
        await made.stop(engine)
    # Commands and cgroups that a test left to a next worker.
    await sweep(made.settings())
    for engine in made.opened:
        program = engine._context.spawner._started
        if program is not None:
            program.wait(PATIENCE_SECONDS)
    shutil.rmtree(folder)
    assert {thread for thread in threading.enumerate() if thread.name in ("engine", "lease")} <= threads


# --- start and stop ---------------------------------------------------------------------------------------------------


async def test_constructing_an_engine_starts_nothing(world: World) -> None:
    opened = world.open()
    before = ({thread.name for thread in threading.enumerate()}, len(psutil.Process().children()))
    engine = Engine(opened._context, opened.access, opened._cleaning, None, ())
    assert ({thread.name for thread in threading.enumerate()}, len(psutil.Process().children())) == before
    assert await world.redis.get(keys.info(AGENT)) is None
    engine.stop()
    # Nothing was started that a stop could end, but what was opened is closed.
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened._context.journal.unfinished()
    program = opened._context.spawner._started
    assert program is not None
    program.kill()
    program.wait()


async def test_an_engine_runs_orders_while_it_holds_its_lease(world: World, until: Until) -> None:
    engine = world.start(labels={})
    order, done = world.submit(engine, "/bin/true")
    assert (await world.receipt(order.jti)).state is ExecState.SUCCEEDED
    assert await asyncio.to_thread(done.wait, PATIENCE_SECONDS)
    beat = Heartbeat.model_validate_json(await world.redis.get(keys.info(AGENT)) or b"")
    assert (beat.boot, beat.run) == (engine._context.journal.boot, engine._this_run.run)
    assert beat.trust is not None
    await world.stop(engine)
    assert await world.redis.get(keys.info(AGENT)) is None
    engine.stop()
    assert world.ended == []


async def test_a_stop_kills_what_outlasts_its_grace_and_reports_it(world: World, until: Until) -> None:
    engine = world.start()
    order, done = world.submit(engine, "/bin/sleep", "600")
    await until(lambda: engine._running, "it runs")
    await until(lambda: (world.folder / "spool" / order.jti).exists(), "it was started")
    await world.stop(engine)
    receipt = await world.receipt(order.jti)
    assert (receipt.state, receipt.error) in (
        (ExecState.FAILED, "killed: the agent was shut down"),
        (ExecState.REJECTED, "not started: the agent is shutting down"),
    )
    assert done.is_set()


async def test_an_order_that_arrives_while_the_engine_drains_is_run(world: World, until: Until) -> None:
    engine = world.start(stop_grace=PATIENCE_SECONDS)
    first, _ = world.submit(engine, "/bin/sleep", "600")
    await until(lambda: (world.folder / "spool" / first.jti).exists(), "it was started")
    stopping = asyncio.create_task(world.stop(engine))
    await until(engine._stop_requested.is_set, "the stop was requested")
    second, done = world.submit(engine, "/bin/true")
    assert (await world.receipt(second.jti)).state is ExecState.SUCCEEDED
    assert await asyncio.to_thread(done.wait, PATIENCE_SECONDS)
    assert engine._loop is not None
    engine._loop.call_soon_threadsafe(engine._running[first.jti].stop, Stop.CANCELLED)
    await stopping
    assert (await world.receipt(first.jti)).state is ExecState.CANCELLED


async def test_an_order_that_arrives_after_the_drain_is_left_unclaimed(
    world: World, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = world.start()
    await until(lambda: engine._early_orders is None, "orders are taken")
    closing, release = threading.Event(), threading.Event()
    stop_lease = engine._lease.stop

    def slow() -> None:
        closing.set()
        release.wait(PATIENCE_SECONDS)
        stop_lease()

    monkeypatch.setattr(engine._lease, "stop", slow)
    stopping = asyncio.create_task(world.stop(engine))
    assert await asyncio.to_thread(closing.wait, PATIENCE_SECONDS)
    order, done = world.submit(engine, "/bin/true")
    assert await asyncio.to_thread(done.wait, PATIENCE_SECONDS)
    release.set()
    await stopping
    assert await world.redis.get(keys.claim(AGENT, order.jti)) is None
    assert await world.redis.get(keys.result(AGENT, order.jti)) is None


async def test_an_order_that_is_delivered_while_it_runs_is_done_at_once(world: World, until: Until) -> None:
    engine = world.start()
    order, first = world.submit(engine, "/bin/sleep", "600")
    await until(lambda: order.jti in engine._running, "it runs")
    second = threading.Event()
    engine.submit(order.jti, sign(world.orchestrator, order), second.set)
    assert await asyncio.to_thread(second.wait, PATIENCE_SECONDS)
    assert not first.is_set()
    assert len(engine._running) == 1


async def test_a_cancel_on_the_control_channel_ends_a_command(world: World, until: Until) -> None:
    engine = world.start()
    order, _ = world.submit(engine, "/bin/sleep", "600")
    await until(lambda: order.jti in engine._running, "it runs")
    claims = {"iat": int(time.time()), "aud": order.aud, "sub": REQUESTER, "jti": order.jti}
    token = sign(world.orchestrator, CancelOrder(iss=str(world.orchestrator.spiffe_id), **claims))
    # As the orchestrator does: kept in its key for a worker that does not listen now, and published.
    await world.redis.set(keys.cancel(AGENT, order.jti), token)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await world.redis.publish(keys.control(AGENT), f"{order.jti} {token}"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await world.receipt(order.jti)).state is ExecState.CANCELLED


async def test_an_identity_of_another_agent_is_refused(world: World) -> None:
    with pytest.raises(ConfigurationError, match=r"is spiffe://tachikoma.local/agent/web-1, not .*web-2"):
        world.open(agent_id="web-2")


# --- parts that fail --------------------------------------------------------------------------------------------------


async def fail(*_: Any) -> None:
    raise RuntimeError("planted")


@pytest.mark.parametrize(
    ("target", "name", "part"),
    [
        (Control, "_receive", "control"),
        (Engine, "_watch_policy", "policy"),
        (Engine, "_take_over", "takeover"),
        (Lease, "_renew_until_stopped", "lease"),
        (Engine, "_watch_spawner", "spawner"),
    ],
)
async def test_a_part_that_fails_ends_the_worker_with_its_reason_in_the_log(
    world: World, monkeypatch: pytest.MonkeyPatch, until: Until, target: Any, name: str, part: str
) -> None:
    monkeypatch.setattr(target, name, fail)
    with capture_logs() as logs:
        engine = world.start()
        await until(lambda: world.ended, "it asks for the end of its worker")
        # It waits for the worker to stop it, and then closes as always.
        assert engine._thread is not None
        assert engine._thread.is_alive()
        await world.stop(engine)
    assert [entry["event"] for entry in logs if entry["log_level"] == "critical"] == [f"{part}.failed"]
    assert not engine._thread.is_alive()
    assert len(world.ended) == 1


async def test_a_renewal_that_fails_ends_the_worker(
    world: World, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    engine = world.open()
    engine._renewal = Renewal(world.folder, None, engine._context.identity)  # type: ignore[arg-type]
    monkeypatch.setattr(Renewal, "run", fail)
    with capture_logs() as logs:
        engine.start()
        await until(lambda: world.ended, "it asks for the end of its worker")
        await world.stop(engine)
    assert [entry["event"] for entry in logs if entry["log_level"] == "critical"] == ["renewal.failed"]


async def test_running_commands_are_reported_although_a_part_failed(
    world: World, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    now = threading.Event()

    async def fail_later(_: Engine) -> None:
        await asyncio.to_thread(now.wait, PATIENCE_SECONDS)
        raise RuntimeError("planted")

    monkeypatch.setattr(Engine, "_watch_policy", fail_later)
    engine = world.start()
    order, _ = world.submit(engine, "/bin/sleep", "600")
    await until(lambda: (world.folder / "spool" / order.jti).exists(), "it was started")
    now.set()
    await until(lambda: world.ended, "it asks for the end of its worker")
    await world.stop(engine)
    assert (await world.receipt(order.jti)).state in (ExecState.FAILED, ExecState.REJECTED)


async def test_a_spawner_that_dies_ends_the_worker_and_its_commands_are_lost(
    world: World, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    # The command survives its spawner, so its cgroups stay for the next start.
    monkeypatch.setattr(hierarchy, "REMOVE_SECONDS", 0.05)
    engine = world.start()
    order, _ = world.submit(engine, "/bin/sleep", "600")
    await until(lambda: engine._context.spawner._processes, "it runs")
    program = engine._context.spawner._started
    assert program is not None
    program.kill()
    receipt = await world.receipt(order.jti)
    assert receipt.state is ExecState.LOST
    assert "the spawner is gone" in receipt.error
    await until(lambda: world.ended, "it asks for the end of its worker")


async def test_an_execution_that_fails_ends_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    engine = world.start()
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(module.Execution, "run", fail)
        _, done = world.submit(engine, "/bin/true")
        assert await asyncio.to_thread(done.wait, PATIENCE_SECONDS)
        await until(lambda: logs, "it is logged")
    assert [entry["event"] for entry in logs] == ["execution.failed"]
    order, _ = world.submit(engine, "/bin/true")
    assert (await world.receipt(order.jti)).state is ExecState.SUCCEEDED
    assert world.ended == []


# --- what an earlier run left -----------------------------------------------------------------------------------------


async def claimed(world: World, *ids: str) -> None:
    """Executions that an earlier run of the worker claimed and did not finish."""
    journal = Journal(world.folder)
    for exec_id in ids:
        await journal.claim(exec_id, "ab" * 32)
    journal.close()


@pytest.mark.parametrize("content", [None, b"", b"nonsense", bytes(1000)], ids=["none", "empty", "no spool", "zeros"])
async def test_an_execution_without_a_usable_spool_is_reported_as_lost(world: World, content: bytes | None) -> None:
    await claimed(world, "job-7")
    (world.folder / "spool").mkdir()
    path = world.folder / "spool" / "job-7"
    if content is not None:
        path.write_bytes(content)
    engine = world.start()
    receipt = await world.receipt("job-7")
    assert receipt.state is ExecState.LOST
    assert receipt.error == "the agent's worker was killed before the command's end was known"
    await world.stop(engine)
    assert not path.exists()
    journal = Journal(world.folder)
    assert journal.unfinished() == []
    journal.close()


async def test_a_spool_whose_reading_fails_keeps_no_other_execution_from_its_ending(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await claimed(world, "job-1", "job-2", "job-3")
    other = Spool.open

    def broken(folder: Path, exec_id: str, **values: Any) -> Spool:
        if exec_id == "job-2":
            raise RuntimeError("planted")
        return other(folder, exec_id, **values)

    monkeypatch.setattr(Spool, "open", broken)
    world.start()
    for exec_id in ("job-1", "job-2", "job-3"):
        assert (await world.receipt(exec_id)).state is ExecState.LOST


async def test_an_order_that_comes_before_the_take_over_is_run_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    other = Engine._take_over

    async def late(engine: Engine, unfinished: Any) -> None:
        await asyncio.to_thread(go.wait, PATIENCE_SECONDS)
        await other(engine, unfinished)

    monkeypatch.setattr(Engine, "_take_over", late)
    engine = world.start()
    order, done = world.submit(engine, "/bin/true")
    # Time in which it could run, which it must not.
    await asyncio.sleep(0.05)
    assert not done.is_set()
    go.set()
    assert (await world.receipt(order.jti)).state is ExecState.SUCCEEDED


async def test_a_command_of_the_worker_before_is_taken_over(world: World, until: Until, tmp_path: Path) -> None:
    first = world.start(leave_running=True)
    script = f"echo out; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; exit 5"
    order, _ = world.submit(first, "/bin/sh", "-c", script)
    spool = world.folder / "spool" / order.jti
    await until(lambda: spool.exists() and b"out\n" in spool.read_bytes(), "it has written")
    await world.stop(first)
    assert await world.redis.get(keys.result(AGENT, order.jti)) is None
    second = world.start()
    await until(lambda: order.jti in second._running, "it is taken over")
    (tmp_path / "go").touch()
    receipt = await world.receipt(order.jti)
    assert (receipt.state, receipt.exit_code, receipt.stdout.total_bytes) == (ExecState.FAILED, 5, 4)


async def test_a_spool_of_a_finished_execution_is_removed(world: World) -> None:
    (world.folder / "spool").mkdir()
    (world.folder / "spool" / "old").write_bytes(b"x")
    world.start()
    assert not (world.folder / "spool" / "old").exists()


# --- the agent's own policy -------------------------------------------------------------------------------------------


async def test_the_agents_own_policy_is_read_again_when_its_file_changes(
    world: World, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    monkeypatch.setattr(module, "POLICY_SECONDS", 0.01)
    path = world.folder / "policy.yaml"
    text = "policies:\n  - name: own\n    subjects: ['**']\n    agents: ['**']\n    allowedCommands: [{}]\n"
    path.write_text(text.format("/bin/false"))
    engine = world.start(local_policy=path)
    order, _ = world.submit(engine, "/bin/true")
    assert (await world.receipt(order.jti)).state is ExecState.REJECTED
    with capture_logs() as logs:
        path.write_text(text.format("/bin/true"))
        await until(lambda: [entry for entry in logs if entry["event"] == "policy.changed"], "it was read")
        path.write_text("nonsense: [")
        await until(lambda: [entry for entry in logs if entry["event"] == "policy.kept"], "the mistake is reported")
    order, _ = world.submit(engine, "/bin/true")
    assert (await world.receipt(order.jti)).state is ExecState.SUCCEEDED
