"""What becomes of the ledger in Celery's events, heard by Celery's own receiver and state, on a real Redis."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery
from celery.events.state import State

from authority import NoIdentity
from patience import PATIENCE_SECONDS
from tachikoma.config.tasks import cancel_all
from tachikoma.identity.signed_messages import OutputDigest, Receipt
from tachikoma.policy.masking.redaction import redact
from tachikoma.redis import keys
from tachikoma.redis.access import celery_url
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import KillReceipt
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.transitions import Admission, Dispatch
from tachikoma_orchestrator.flower import feed as feed_module
from tachikoma_orchestrator.flower.celery_events import BEGIN
from tachikoma_orchestrator.flower.feed import Feed
from tachikoma_orchestrator.store.subscriber import Subscriber

AGENT = "web-1"
NODE = "web-1@web-1"
ALICE = "spiffe://tachikoma.local/user/alice"
OPEN = [ExecState.QUEUED, ExecState.STARTED, ExecState.PENDING_APPROVAL]
STARTED_MS = 1_769_860_800_123
Until = Callable[[Callable[[], object], str], Awaitable[None]]


class Books:
    """A ledger, and how executions get into it."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.ledger = Ledger(
            redis,
            AuditTrail(redis),
            queue_size=100_000,
            approvals_size=1000,
            retention=timedelta(hours=1),
            durable=False,
        )
        self.registry = Registry(redis, NoIdentity())

    async def heard(self, agent: str = AGENT, *, online: bool = True) -> None:
        said = (
            b'{"boot": "b", "run": "r", "version": "0.1.0", "hostname": "host-1", "running": 1, "slots": 8, '
            b'"load": 0.5, "memory_used": 0.25, "disk_used": 0.75, "labels": {"rack": "r1"}, "warnings": ["no limits"]}'
        )
        if online:
            await self.redis.set(keys.info(agent), said)
        else:
            await self.redis.delete(keys.info(agent))
        await self.registry.heard(agent, said)

    async def admit(self, exec_id: str, *command: str, parked: str = "") -> None:
        request = ExecRequest(
            id=exec_id, agent_id=AGENT, command=command or ("/bin/true",), requested_by=ALICE, timeout="5m"
        )
        admission = Admission(
            request=request, shown=redact(request.command), digest=f"digest of {exec_id}", policy="web@0123456789ab",
            client_ip="192.0.2.7", wait=timedelta(minutes=10), timeout=timedelta(minutes=5), scopes={}, parked=parked,
        )  # fmt: skip
        order = Dispatch(
            digest=admission.digest, order_sha256=f"order of {exec_id}", policy=admission.policy, message=b"message"
        )
        outcome, _ = await self.ledger.admit(admission, None if parked else order)
        assert outcome == "ADMITTED"

    async def start(self, exec_id: str) -> None:
        assert await self.ledger.started(AGENT, exec_id, STARTED_MS)

    async def end(self, exec_id: str, state: ExecState, exit_code: int = 0, **values: Any) -> None:
        def output(size: int) -> OutputDigest:
            return OutputDigest(total_bytes=size, sha256="ab" * 32, truncated=False, excerpt_sha256="ab" * 32)

        if state in (ExecState.CANCELLED, ExecState.TIMED_OUT):
            values["kill"] = KillReceipt(empty=True, whole=True, signals=(15,))
        receipt = Receipt(
            **{
                "iss": f"spiffe://tachikoma.local/agent/{AGENT}", "iat": 1, "jti": exec_id,
                "order_sha256": f"order of {exec_id}", "state": state, "exit_code": exit_code, "signal": 0, "error": "",
                "executable": "/bin/true", "started_ms": STARTED_MS, "ended_ms": STARTED_MS + 2000,
                "duration_us": 1_999_500, "chunks": 2, "stdout": output(7), "stderr": output(3), **values,
            }
        )  # fmt: skip
        assert await self.ledger.complete(AGENT, exec_id, receipt, "token") == "DONE"

    async def settle(self, exec_id: str, state: ExecState, reason: str, **values: Any) -> None:
        outcome = await self.ledger.settle(AGENT, exec_id, OPEN, state, reason=reason, fence=False, **values)
        assert outcome == "DONE"


class Listener:
    """Celery's own receiver in a thread, as `celery events` uses it, and the state Celery makes of it."""

    def __init__(self, redis_url: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.state = State()
        self._app = Celery("listener", broker=celery_url(redis_url), set_as_current=False)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.receiver: Any = None

    def _run(self) -> None:
        with self._app.connection() as connection:
            self.receiver = self._app.events.Receiver(connection, handlers={"*": self._heard})
            self.receiver.capture(limit=None, timeout=None, wakeup=False)

    def _heard(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self.state.event(dict(event))

    def of(self, exec_id: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("uuid") == exec_id]

    def types(self) -> Counter[str]:
        return Counter(event["type"] for event in self.events)

    def ended(self, exec_id: str) -> bool:
        task = self.state.tasks.get(exec_id)
        return task is not None and task.ready


@contextmanager
def listening(redis_url: str) -> Iterator[Listener]:
    listener = Listener(redis_url)
    listener._thread.start()
    try:
        yield listener
    finally:
        listener.receiver.should_stop = True
        listener._thread.join(PATIENCE_SECONDS)
        assert not listener._thread.is_alive()


@pytest.fixture
def books(redis: Redis) -> Books:
    return Books(redis)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for what only spares work."""
    for name, value in {"GATHER_SECONDS": 0.01, "BLOCK_SECONDS": 0.05, "IDLE_SECONDS": 0.05, "RETRY_SECONDS": 0.02,
                        "TAKE_OVER_SECONDS": 0.02, "REPUBLISH_SECONDS": 0.05}.items():  # fmt: skip
        monkeypatch.setattr(feed_module, name, value)


@asynccontextmanager
async def feeding(books: Books, subscriptions: Redis) -> AsyncIterator[Feed]:
    subscriber = Subscriber(subscriptions)
    feed = Feed(books.redis, books.ledger, books.registry, subscriber)
    tasks = [asyncio.create_task(subscriber.run()), asyncio.create_task(feed.run())]
    try:
        yield feed
    finally:
        await cancel_all(tasks)


async def _one_of_each(books: Books) -> None:
    await books.heard()
    for state in ("SUCCEEDED", "FAILED", "TIMED_OUT", "OUT_OF_MEMORY", "CANCELLED", "REJECTED", "EXPIRED", "LOST",
                  "QUEUED", "STARTED"):  # fmt: skip
        await books.admit(state, "/usr/bin/mysql", "-psecret", "a b")
        if state not in ("REJECTED", "EXPIRED", "QUEUED"):
            await books.start(state)
    await books.end("SUCCEEDED", ExecState.SUCCEEDED)
    await books.end("FAILED", ExecState.FAILED, 3)
    await books.end("TIMED_OUT", ExecState.TIMED_OUT, 143, error="killed at its timeout of 5 m", signal=15)
    await books.end("OUT_OF_MEMORY", ExecState.OUT_OF_MEMORY, 137, error="killed: too much", signal=9)
    await books.ledger.request_cancel(AGENT, "CANCELLED", ALICE)
    await books.end("CANCELLED", ExecState.CANCELLED, 143, error="cancelled", signal=15)
    await books.end("REJECTED", ExecState.REJECTED, -1, error="no such user", started_ms=0, duration_us=0)
    await books.settle("EXPIRED", ExecState.EXPIRED, "not started before its queue timeout")
    await books.settle("LOST", ExecState.LOST, "its agent sent no heartbeat for 45 s")
    await books.admit("waiting", parked="a signed request")
    await books.admit("withdrawn", parked="a signed request")
    await books.settle("withdrawn", ExecState.CANCELLED, "withdrawn", by=ALICE)


def _check_one_of_each(state: State) -> None:
    """What Celery's own state is of them."""
    expected = {
        "SUCCEEDED": ("SUCCESS", None), "FAILED": ("FAILURE", "FAILED: exit code 3"),
        "TIMED_OUT": ("FAILURE", "TIMED_OUT: killed at its timeout of 5 m"),
        "OUT_OF_MEMORY": ("FAILURE", "OUT_OF_MEMORY: killed: too much"),
        "CANCELLED": ("REVOKED", f"CANCELLED: by {ALICE}"), "REJECTED": ("FAILURE", "REJECTED: no such user"),
        "EXPIRED": ("FAILURE", "EXPIRED: not started before its queue timeout"),
        "LOST": ("FAILURE", "LOST: its agent sent no heartbeat for 45 s"),
        "QUEUED": ("RECEIVED", None), "STARTED": ("STARTED", None), "waiting": ("PENDING", None),
        "withdrawn": ("REVOKED", f"CANCELLED: by {ALICE}"),
    }  # fmt: skip
    assert {uuid: (task.state, task.exception) for uuid, task in state.tasks.items()} == expected
    for uuid, task in state.tasks.items():
        parked = uuid in ("waiting", "withdrawn")
        assert task.name == ("/bin/true" if parked else "/usr/bin/mysql")
        assert task.args == ("/bin/true" if parked else "/usr/bin/mysql '-p***' 'a b'")
        assert task.kwargs == repr({"task_id": f"{AGENT}.{uuid}", "requested_by": ALICE, "policy": "web@0123456789ab"})
        if uuid != "waiting":
            assert task.worker.hostname == NODE
        ran = uuid in ("SUCCEEDED", "FAILED", "TIMED_OUT", "OUT_OF_MEMORY", "CANCELLED")
        assert task.runtime == (1.9995 if ran else None)
        if ran:
            code = {"FAILED": 3, "TIMED_OUT": 143, "OUT_OF_MEMORY": 137, "CANCELLED": 143}.get(uuid, 0)
            assert task.result == repr({"state": uuid, "exit_code": code, "stdout_bytes": 7, "stderr_bytes": 3})
            assert (task.started, task.timestamp) == (STARTED_MS / 1000, (STARTED_MS + 2000) / 1000)
    assert state.tasks["SUCCEEDED"].received < state.tasks["withdrawn"].revoked


async def test_each_state_is_told_as_celery_has_it(
    redis: Redis, redis_url: str, subscriptions: Redis, books: Books, until: Until
) -> None:
    with listening(redis_url) as heard:
        async with feeding(books, subscriptions):
            await until(lambda: BEGIN in heard.types(), "somebody listens")
            await _one_of_each(books)
            await until(lambda: heard.ended("withdrawn") and "waiting" in heard.state.tasks, "all is told")
    _check_one_of_each(heard.state)
    # Once, and in order.
    assert [event["type"] for event in heard.of("SUCCEEDED")] == ["task-received", "task-started", "task-succeeded"]
    assert [event["type"] for event in heard.of("withdrawn")] == ["task-sent", "task-revoked"]
    assert heard.types()["task-retried"] == heard.types()["task-rejected"] == 0


async def test_whoever_begins_to_listen_later_is_told_the_same(
    redis: Redis, redis_url: str, subscriptions: Redis, books: Books, until: Until
) -> None:
    await _one_of_each(books)
    with listening(redis_url) as heard:
        async with feeding(books, subscriptions):
            await until(lambda: heard.ended("withdrawn"), "all is told")
    _check_one_of_each(heard.state)
    # Those that have not ended come first: they are told however many came after them.
    assert heard.events[0]["type"] == BEGIN
    told = list(dict.fromkeys(event["uuid"] for event in heard.events if "uuid" in event))
    assert set(told[:3]) == {"QUEUED", "STARTED", "waiting"}


async def test_only_the_latest_are_told_anew_and_all_that_have_not_ended(
    redis: Redis, redis_url: str, subscriptions: Redis, books: Books, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "RECENT", 250)
    await books.heard()
    await books.admit("long")
    # Those of one millisecond are in the order of their names.
    for number in range(300):
        await books.admit(f"e{number:03}")
        await books.end(f"e{number:03}", ExecState.SUCCEEDED)
    with listening(redis_url) as heard:
        async with feeding(books, subscriptions):
            await until(lambda: heard.ended("e299"), "the last is told")
    assert list(heard.state.tasks) == ["long", *(f"e{number:03}" for number in range(50, 300))]


async def test_agents_are_told_of_with_how_they_are(
    redis: Redis, redis_url: str, subscriptions: Redis, books: Books, until: Until
) -> None:
    await books.heard()
    await books.heard("gone", online=False)
    await books.admit("one")
    await books.admit("two")
    with listening(redis_url) as heard:
        async with feeding(books, subscriptions):
            await until(lambda: {NODE, "gone@gone"} <= heard.state.workers.keys(), "they are told of")
            await until(lambda: not heard.state.workers["gone@gone"].heartbeats, "it is offline")
            worker = heard.state.workers[NODE]
            assert (worker.alive, worker.active, worker.processed, worker.freq) == (True, 1, 2, 10)
            assert (worker.sw_ident, worker.sw_ver, worker.loadavg) == ("tachikoma", "0.1.0", "0.50")
            assert worker.tachikoma == {
                "agent": AGENT, "host": "host-1", "slots": 8, "queue": "agent.web-1", "queued": 2, "memory_used": 0.25,
                "disk_used": 0.75, "labels": {}, "warnings": ["no limits"],
            }  # fmt: skip
            # At once when that is on the record, not only with the next heartbeats.
            await books.heard(online=False)
            await books.registry.notice_departures()
            await until(lambda: not worker.alive, "it left")
            await books.heard("gone")
            await until(lambda: heard.state.workers["gone@gone"].alive, "it is back")
            # What is told of an execution brings no agent back.
            await books.settle("one", ExecState.LOST, "its agent is gone")
            await until(lambda: heard.ended("one"), "it is told")
            await until(lambda: not worker.alive, "its agent stays away")


async def _calls(redis: Redis, **at_least: int) -> dict[str, int]:
    """Commands since the figures were reset, once there are so many of them."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            stats: dict[str, Any] = await redis.info("commandstats")
            made = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
            if all(made.get(name, 0) >= number for name, number in at_least.items()):
                return made
            await asyncio.sleep(0.005)


async def test_nothing_is_read_while_nobody_listens(
    redis: Redis, redis_url: str, subscriptions: Redis, books: Books, until: Until
) -> None:
    await _one_of_each(books)

    async with feeding(books, subscriptions) as feed:
        await redis.config_resetstat()
        # It asks whether somebody listens.
        made = await _calls(redis, publish=5)
        for name in ("xread", "xrevrange", "zrevrangebyscore", "hgetall", "llen"):
            assert name not in made, made
        assert feed._all_published_at == float("-inf")


async def test_who_says_that_it_listens_is_all_published_at_once_but_not_as_often_as_it_says_so(
    redis: Redis, redis_url: str, subscriptions: Redis, books: Books, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "REPUBLISH_SECONDS", 0.3)
    monkeypatch.setattr(feed_module, "BLOCK_SECONDS", 0.01)
    await books.heard()
    await books.admit("one")
    with listening(redis_url) as heard:
        async with feeding(books, subscriptions):
            await until(lambda: heard.types()[BEGIN] == 1, "it is told")
            begin = asyncio.get_running_loop().time()
            while heard.types()[BEGIN] < 4:
                await redis.publish(keys.EVENTS_WANTED, "1")
                await asyncio.sleep(0.001)
            assert asyncio.get_running_loop().time() - begin > 0.6
            await until(lambda: heard.types()["task-received"] == heard.types()[BEGIN], "all of it each time")


async def test_one_orchestrator_tells_and_another_goes_on_when_it_is_gone(
    redis: Redis, redis_url: str, subscriptions: Redis, books: Books, until: Until
) -> None:
    await books.heard()
    with listening(redis_url) as heard:
        async with feeding(books, subscriptions):
            # Once this is heard, everything was told anew.
            await books.admit("before")
            await until(lambda: heard.of("before"), "the first tells")
            async with feeding(books, subscriptions) as second:
                await books.admit("one")
                await until(lambda: heard.of("one"), "it is told")
                await redis.config_resetstat()
                # The other one tries to take the lock, in vain.
                await _calls(redis, set=5)
                assert len(heard.of("one")) == 1
                assert second._all_published_at == float("-inf")
        async with feeding(books, subscriptions):
            await until(lambda: len(heard.of("one")) == 2, "the next tells it anew")
            await books.admit("two")
            await until(lambda: heard.of("two"), "and goes on")


async def test_a_lock_that_was_lost_stops_it_until_it_has_it_again(
    redis: Redis, redis_url: str, subscriptions: Redis, books: Books, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "LOCK_SECONDS", 0.3)
    await books.heard()
    with listening(redis_url) as heard:
        async with feeding(books, subscriptions):
            await until(lambda: heard.types()[BEGIN] == 1, "it tells")
            await redis.set(keys.audit_lock("events"), "somebody else")
            await redis.config_resetstat()
            # It tries to take it.
            await _calls(redis, set=2)
            await books.admit("one")
            await _calls(redis, set=10)
            assert not heard.of("one")
            await redis.delete(keys.audit_lock("events"))
            await until(lambda: heard.of("one"), "it tells again")


async def test_a_record_that_nobody_of_us_wrote_keeps_nothing_from_being_told(
    redis: Redis, redis_url: str, subscriptions: Redis, books: Books, until: Until
) -> None:
    await books.heard()
    for number, (name, value) in enumerate(
        {"exit_code": "many", "stdout_bytes": "1" * 5000, "command": b"\xff", "history": "SUCCEEDED x",
         "started_ms": "1e400", "ended_ms": "9" * 400, "agent": b"\xff\xfe"}.items()
    ):  # fmt: skip
        exec_id = f"bad-{number}"
        await books.admit(exec_id)
        await books.start(exec_id)
        await books.end(exec_id, ExecState.SUCCEEDED)
        await redis.hset(keys.execution(exec_id), name, value)
    await books.admit("gone")
    await redis.delete(keys.execution("gone"))
    await books.admit("odd", "/bin/echo", "\x1b[2J", "‮", "'\"\\", "x" * 3000)
    await redis.set(keys.queue("web-2"), "no list")
    await books.heard("web-2")
    with listening(redis_url) as heard:
        async with feeding(books, subscriptions):
            await until(lambda: heard.of("odd"), "what is whole is told anew")
            await books.admit("good")
            await redis.xadd(keys.AUDIT, {"event": "started", "id": "bad-0"})
            await redis.xadd(keys.AUDIT, {"event": b"\xff", "id": b"\xff"})
            await redis.xadd(keys.AUDIT, {"nothing": "known"})
            await books.start("good")
            await until(lambda: len(heard.of("good")) == 2, "what is new is told")
    assert not [event for event in heard.events if str(event.get("uuid")).startswith(("bad-", "gone"))]
    [odd] = heard.of("odd")
    assert len(odd["args"]) <= 1000
    assert "web-2@web-2" in heard.state.workers
