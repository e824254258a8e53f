"""What an agent reports, genuine and otherwise, on its way into the ledger. One bad agent must not stop the rest."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from patience import PATIENCE_SECONDS
from tachikoma.client import wire
from tachikoma.config.tasks import supervised
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.signed_messages import OutputDigest, Receipt
from tachikoma.identity.signing import sign
from tachikoma.identity.spiffe import agent_id, service_id
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import Contender, RememberedLife
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.findings import MAX_IN_A_MINUTE, Findings
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.executions.collector import Collector
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.restoration import Restoration
from tachikoma_orchestrator.executions.transitions import Admission, Dispatch, Outcome
from tachikoma_orchestrator.executions.waiters import AwaitedOrder, Completions
from tachikoma_orchestrator.store.subscriber import Subscriber

DOMAIN, AGENT, EXEC = "tachikoma.local", "web-1", "job-7"


class Stand:
    """A collector with a real ledger, and identities to sign as."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        authority = DevelopmentCA(folder / "ca", DOMAIN)
        self.identities: dict[str, FileSvidSource] = {}
        for name in (AGENT, "web-2"):
            authority.issue(agent_id(DOMAIN, name), folder / name)
            self.identities[name] = FileSvidSource(folder / name)
        authority.issue(service_id(DOMAIN, "orchestrator"), folder / "orchestrator")
        self.redis = redis
        self.trail = AuditTrail(redis)
        self.ledger = Ledger(
            redis, self.trail, queue_size=10, approvals_size=10, retention=timedelta(hours=1), durable=False
        )
        self.endings = Completions()
        identity = FileSvidSource(folder / "orchestrator")
        findings = Findings(redis, self.trail)
        registry = Registry(redis, identity)
        self.evidence = Evidence(redis, findings, identity, registry.revocations)
        self.collector = Collector(redis, self.ledger, self.endings, registry, identity, self.evidence, findings)

    async def admit(self) -> None:
        """An execution that waits for its agent's report."""
        await self.redis.set(keys.info(AGENT), "{}")
        request = ExecRequest(id=EXEC, agent_id=AGENT, command=["/bin/true"], requested_by="spiffe://x/y", timeout="5m")
        admission = Admission(
            request, request.command, "digest", "web@1", "", timedelta(minutes=10), timedelta(hours=1), {}
        )
        dispatch = Dispatch("digest", "order", "web@1", b"message")
        assert (await self.ledger.admit(admission, dispatch))[0] is Outcome.ADMITTED

    async def state(self) -> ExecState:
        record = await self.ledger.record(EXEC)
        assert record is not None
        return record.state

    def receipt(self, **values: Any) -> Receipt:
        defaults: dict[str, Any] = {
            "iss": str(agent_id(DOMAIN, AGENT)),
            "iat": int(time.time()),
            "jti": EXEC,
            "order_sha256": "order",
            "state": ExecState.SUCCEEDED,
            "exit_code": 0,
            "signal": 0,
            "error": "",
            "executable": "/bin/true",
            "started_ms": 1_769_860_800_000,
            "ended_ms": 1_769_860_801_000,
            "duration_us": 1_000_000,
            "chunks": 1,
            "stdout": digest(b"out"),
            "stderr": digest(b""),
        }
        # Unchecked: an agent somebody broke into signs what it likes.
        return Receipt.model_construct(**{**defaults, **values})

    def result(self, receipt: Receipt, *, signer: str = AGENT, **changes: Any) -> bytes:
        """The Celery result an agent leaves."""
        token = sign(self.identities[signer].current(), receipt)
        content = {"receipt": token, "stdout": base64.b64encode(b"out").decode(), "stderr": "", **changes}
        return json.dumps({"status": "SUCCESS", "result": content}).encode()


def digest(data: bytes, **values: Any) -> OutputDigest:
    whole = hashlib.sha256(data).hexdigest()
    defaults = {"total_bytes": len(data), "sha256": whole, "truncated": False, "excerpt_sha256": whole}
    return OutputDigest.model_construct(**{**defaults, **values})


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    made = Stand(redis, tmp_path)
    await made.admit()
    return made


async def test_a_genuine_receipt_ends_the_execution_and_tells_who_waits(stand: Stand) -> None:
    with stand.endings.expect(EXEC) as waiting:
        assert await stand.collector.fold(AGENT, EXEC, stand.result(stand.receipt())) is True
        response = (await asyncio.wait_for(waiting, PATIENCE_SECONDS)).response()
    assert (response.state, response.stdout, response.exit_code) == (ExecState.SUCCEEDED, b"out", 0)
    assert await stand.state() is ExecState.SUCCEEDED


async def test_the_same_receipt_twice_is_one_end(stand: Stand) -> None:
    raw = stand.result(stand.receipt())
    assert await stand.collector.fold(AGENT, EXEC, raw) is True
    assert await stand.collector.fold(AGENT, EXEC, raw) is True
    events = [event.event for event in (await stand.trail.read(after="", limit=10, exec_id=EXEC)).events]
    assert events == ["admitted", "dispatched", "started", "succeeded"]


@pytest.mark.parametrize("notice", [True, False])
async def test_the_start_is_recorded_with_its_time_by_notice_or_by_receipt(stand: Stand, notice: bool) -> None:
    at_ms = 1_769_860_800_000
    if notice:
        await stand.ledger.started(AGENT, EXEC, at_ms)
    assert await stand.collector.fold(AGENT, EXEC, stand.result(stand.receipt(started_ms=at_ms)))
    events = (await stand.trail.read(after="", limit=10, exec_id=EXEC)).events
    times = {str(event.event): event.start_time for event in events}
    assert times["started"] == times["succeeded"] == datetime.fromtimestamp(at_ms / 1000, UTC)


async def test_a_result_that_was_reported_is_recorded_again_without_its_agent(stand: Stand) -> None:
    """Redis goes back to a state in which the execution is queued, and its agent is silent."""
    record, result = keys.execution(EXEC), keys.result(AGENT, EXEC)
    older = await stand.redis.hgetall(record)
    assert await stand.collector.fold(AGENT, EXEC, stand.result(stand.receipt())) is True
    reported = await stand.redis.hgetall(record)
    await stand.redis.delete(record, result)
    await stand.redis.hset(record, mapping=older)
    await stand.ledger.write_again(stand.redis)
    assert await stand.state() is ExecState.SUCCEEDED
    again = await stand.redis.hgetall(record)
    for name in (b"receipt", b"exit_code", b"stdout_sha256"):
        assert again[name] == reported[name]
    # What is still there is not written twice, what is gone is left to the order of the agent.
    events = len(await codes(stand))
    await stand.ledger.write_again(stand.redis)
    assert len(await codes(stand)) == events
    for change in (stand.redis.delete(record), stand.redis.set(record, "no record")):
        await change
        await stand.ledger.write_again(stand.redis)
    # The agent's own report of the same is no late one.
    await stand.redis.delete(record)
    await stand.redis.hset(record, mapping=again)
    assert await stand.collector.fold(AGENT, EXEC, stand.result(stand.receipt())) is True
    assert "late_receipt" not in await codes(stand)


class Rebuilding:
    """A restoration that brings a record back, or does not."""

    def __init__(self, stand: Stand, record: dict[bytes, bytes]) -> None:
        self._stand, self._record = stand, record
        self.asked: list[tuple[str, str]] = []

    async def restore(self, agent: str, exec_id: str) -> bool:
        self.asked.append((agent, exec_id))
        if self._record:
            await self._stand.redis.hset(keys.execution(exec_id), mapping=self._record)
        return bool(self._record)


@pytest.mark.parametrize("awaited", [False, True])
async def test_a_receipt_whose_record_was_lost_is_recorded_in_the_one_that_is_rebuilt(
    stand: Stand, awaited: bool
) -> None:
    rebuilding = Rebuilding(stand, await stand.redis.hgetall(keys.execution(EXEC)))
    stand.collector.restore_with(cast("Restoration", rebuilding))
    await stand.redis.delete(keys.execution(EXEC))
    with stand.endings.expect(EXEC) if awaited else nullcontext():
        if awaited:
            stand.endings.note_order(EXEC, AwaitedOrder(AGENT, "order"))
        assert await stand.collector.fold(AGENT, EXEC, stand.result(stand.receipt())) is True
    assert rebuilding.asked == [(AGENT, EXEC)]
    assert await stand.state() is ExecState.SUCCEEDED
    assert not {"record_altered", "receipt_refused"} & set(await codes(stand))


async def test_a_receipt_without_a_record_is_refused_if_none_can_be_rebuilt(stand: Stand) -> None:
    stand.collector.restore_with(cast("Restoration", Rebuilding(stand, {})))
    await stand.redis.delete(keys.execution(EXEC))
    assert await stand.collector.fold(AGENT, EXEC, stand.result(stand.receipt())) is False
    assert await stand.redis.exists(keys.execution(EXEC)) == 0


@pytest.mark.parametrize(
    "value",
    [
        ("SET", "no JSON"), ("SET", "[]"), ("SET", '{"result": 5}'), ("SET", '{"result": {"stdout": "YQ=="}}'),
        ("RPUSH", "x"), ("SADD", "x"), ("ZADD", "1", "x"), ("HSET", "x", "x"), ("XADD", "*", "x", "x"),
    ],
)  # fmt: skip
async def test_a_result_that_became_something_else_keeps_no_caller_waiting(
    stand: Stand, value: tuple[str, ...]
) -> None:
    assert await stand.collector.fold(AGENT, EXEC, stand.result(stand.receipt())) is True
    command, *values = value
    await stand.redis.execute_command(command, keys.result(AGENT, EXEC), *values)
    with stand.endings.expect(EXEC) as waiting:
        await stand.collector.deliver(EXEC)
        response = (await asyncio.wait_for(waiting, PATIENCE_SECONDS)).response()
    assert (response.state, response.exit_code, response.stdout) == (ExecState.SUCCEEDED, 0, b"")
    assert (await codes(stand))[-1] == "output_altered"


async def not_believed(stand: Stand, raw: bytes) -> None:
    assert await stand.collector.fold(AGENT, EXEC, raw) is False
    assert await stand.state() is ExecState.QUEUED


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"\xff", b"null", b"1", b'"x"', b"[]", b"{}", b'{"result": null}', b'{"result": 5}', b'{"result": {}}'),
        b'{"result": {"receipt": null, "stdout": "", "stderr": ""}}',
        b'{"result": {"receipt": 5, "stdout": "", "stderr": ""}}',
        b'{"result": {"receipt": "a.b.c", "stdout": "", "stderr": ""}}',
        b'{"result": {"receipt": "\\ud800", "stdout": "", "stderr": ""}}',
        b'{"result": {"receipt": "", "stdout": "no base64!", "stderr": ""}}',
        b"9" * 10_000,
        b"[" * 100_000,
        b'{"result":' * 100_000,
    ],
    ids=lambda raw: repr(raw[:60]),
)
async def test_garbage_is_not_believed_and_breaks_nothing(stand: Stand, raw: bytes) -> None:
    await not_believed(stand, raw)


@pytest.mark.parametrize(
    "header", [b'"alg"', b'["alg"]', b"[" * 12_000, b'{"alg": "ES256", "crit": 5}'], ids=lambda h: repr(h[:20])
)
async def test_a_receipt_with_a_garbled_header_is_not_believed_and_breaks_nothing(stand: Stand, header: bytes) -> None:
    token = f"{base64.urlsafe_b64encode(header).rstrip(b'=').decode()}.e30.e30"
    content = {"receipt": token, "stdout": "", "stderr": ""}
    await not_believed(stand, json.dumps({"result": content}).encode())


async def test_a_receipt_with_a_certificate_of_an_unknown_version_is_not_believed_and_breaks_nothing(
    stand: Stand,
) -> None:
    der = stand.identities[AGENT].current().chain[0].public_bytes(Encoding.DER)
    strange = base64.b64encode(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05", 1)).decode()
    header = {"alg": "ES256", "typ": "tachikoma-receipt+jws", "x5c": [strange]}
    token = f"{base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b'=').decode()}.e30.e30"
    await not_believed(stand, json.dumps({"result": {"receipt": token, "stdout": "", "stderr": ""}}).encode())


async def test_another_agents_signature_is_not_believed(stand: Stand) -> None:
    await not_believed(stand, stand.result(stand.receipt(), signer="web-2"))
    await not_believed(stand, stand.result(stand.receipt(iss=str(agent_id(DOMAIN, "web-2"))), signer="web-2"))


@pytest.mark.parametrize(
    "values",
    [
        {"jti": "job-8"},
        {"order_sha256": "another"},
        {"state": ExecState.STARTED},
        {"state": ExecState.QUEUED},
        {"stdout": digest(b"other")},
        {"stderr": digest(b"x")},
        {"stdout": digest(b"out", total_bytes=4)},
        {"stdout": digest(b"out", sha256="ab" * 32)},
    ],
    ids=lambda values: str(values)[:60],
)
async def test_a_receipt_that_does_not_fit_is_not_believed(stand: Stand, values: dict[str, Any]) -> None:
    await not_believed(stand, stand.result(stand.receipt(**values)))


@pytest.mark.parametrize(
    "values",
    [
        {"started_ms": 10**18},
        {"started_ms": -(10**18)},
        {"ended_ms": 10**30},
        {"duration_us": 10**30},
        {"duration_us": 10**18},
        {"exit_code": 2**31},
        {"exit_code": -(10**30)},
        {"signal": 2**40},
        {"chunks": -1},
        {"chunks": 2**64},
        {"stdout": digest(b"out", truncated=True, total_bytes=-1)},
        {"stdout": digest(b"out", truncated=True, total_bytes=2**64)},
        {"stdout": digest(b"out", truncated=True, total_bytes=9, sha256="no hexadecimal")},
        {"error": "x" * 1_000_000},
    ],
    ids=lambda values: str(values)[:60],
)
async def test_a_receipt_of_impossible_numbers_leaves_nothing_that_cannot_be_told(
    stand: Stand, values: dict[str, Any]
) -> None:
    """Well signed, by an agent somebody broke into: refused, or told to callers like any other."""
    await stand.collector.fold(AGENT, EXEC, stand.result(stand.receipt(**values)))
    record = await stand.ledger.record(EXEC)
    assert record is not None
    assert wire.status_to_pb(record.status()).id == EXEC
    if record.state.terminal:
        response = (await stand.evidence.final_state(record)).response()
        assert len(wire.response_to_pb(response).SerializeToString()) < 1024 * 1024
    assert [wire.audit_to_pb(event).id for event in (await stand.trail.read(after="", limit=10, exec_id="")).events]


async def codes(stand: Stand) -> list[str]:
    return [event.event for event in (await stand.trail.read(after="", limit=1000, exec_id="")).events]


async def test_a_flood_of_receipts_that_are_refused_does_not_fill_the_record(stand: Stand) -> None:
    for _ in range(3):
        await not_believed(stand, stand.result(stand.receipt(jti="job-8")))
    assert (await codes(stand)).count("receipt_refused") == 1
    for number in range(200):
        await not_believed(stand, stand.result(stand.receipt(jti=f"job-{number + 10}")))
        # Of what is no execution not even one.
        assert await stand.collector.fold(AGENT, f"none-{number}", b"nonsense") is False
    assert 20 <= (await codes(stand)).count("receipt_refused") <= MAX_IN_A_MINUTE


async def test_what_a_flood_kept_off_the_record_is_counted_on_it(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(MAX_IN_A_MINUTE + 5):
        await not_believed(stand, stand.result(stand.receipt(jti=f"job-{number + 10}")))
    now = time.monotonic()
    monkeypatch.setattr("tachikoma_orchestrator.audit.findings.time.monotonic", lambda: now + 61)
    await not_believed(stand, stand.result(stand.receipt(jti="job-9")))
    [event] = (await stand.trail.read(after="", limit=1000, exec_id=EXEC)).events[-1:]
    assert event.event == "receipt_refused"
    assert event.reason.endswith(f"in the name of {AGENT} (and 5 more were left out)")


async def test_a_receipt_of_what_was_cancelled_or_given_up_is_on_the_record_once(stand: Stand) -> None:
    assert await stand.ledger.settle(
        AGENT, EXEC, [ExecState.QUEUED], ExecState.CANCELLED, reason="cancelled", fence=True
    ) == "DONE"  # fmt: skip
    raw = stand.result(stand.receipt())
    for _ in range(3):
        assert await stand.collector.fold(AGENT, EXEC, raw) is True
    assert (await codes(stand))[-2:] == ["cancelled", "late_receipt"]


async def test_an_end_without_a_receipt_says_nothing_of_exit_code_and_output(stand: Stand) -> None:
    await stand.ledger.settle(AGENT, EXEC, [ExecState.QUEUED], ExecState.LOST, reason="its agent is gone", fence=False)
    lies = {"exit_code": "0", "stdout_bytes": "3", "stdout_sha256": "ab" * 32, "signal": "9", "kill": "{}"}
    await stand.redis.hset(keys.execution(EXEC), mapping=lies)
    record = await stand.ledger.record(EXEC)
    assert record is not None
    response = (await stand.evidence.final_state(record)).response()
    assert (response.state, response.exit_code, response.signal, response.kill) == (ExecState.LOST, -1, 0, None)
    assert (response.stdout_summary.total_bytes, response.error) == (0, "its agent is gone")
    assert (await stand.evidence.status(record)).exit_code == -1


# --- certificates that end --------------------------------------------------------------------------------------------


def ended(stand: Stand, folder: Path) -> None:
    """Give the agent a certificate that ended a minute ago."""
    authority = DevelopmentCA(folder / "ca", DOMAIN)
    end = datetime.now(UTC) - timedelta(minutes=1)
    authority.issue(
        agent_id(DOMAIN, AGENT), folder / "ended", not_before=end - timedelta(hours=1), lifetime=timedelta(hours=1)
    )
    stand.identities[AGENT] = FileSvidSource(folder / "ended")


async def test_a_receipt_that_was_not_read_in_time_outlives_its_certificate(stand: Stand, tmp_path: Path) -> None:
    """No orchestrator was there while its agent got another certificate."""
    ended(stand, tmp_path)
    await stand.redis.hset(keys.execution(EXEC), "admitted_ms", int((time.time() - 600) * 1000))
    signed = stand.receipt(iat=int(time.time()) - 300)
    assert await stand.collector.fold(AGENT, EXEC, stand.result(signed))
    assert await stand.state() is ExecState.SUCCEEDED


@pytest.mark.parametrize("ago", [30, 300], ids=["after its end", "before the request"])
async def test_who_has_the_key_of_a_certificate_that_has_ended_forges_no_receipt(
    stand: Stand, tmp_path: Path, ago: int
) -> None:
    ended(stand, tmp_path)
    assert not await stand.collector.fold(AGENT, EXEC, stand.result(stand.receipt(iat=int(time.time()) - ago)))
    assert await stand.state() is ExecState.QUEUED


# --- clocks that are wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [61, 3600, 400 * 86_400, -61, -3600, -400 * 86_400])
async def test_a_receipt_of_an_agent_with_a_unfit_ends_its_execution(stand: Stand, ahead: int) -> None:
    receipt = stand.receipt(iat=int(time.time()) + ahead)
    assert await stand.collector.fold(AGENT, EXEC, stand.result(receipt)) is True
    record = await stand.ledger.record(EXEC)
    assert record is not None
    assert record.state is ExecState.SUCCEEDED
    # Read again from the ledger, as another orchestrator does.
    response = (await stand.evidence.final_state(record)).response()
    assert (response.state, response.exit_code) == (ExecState.SUCCEEDED, 0)


async def test_a_unfit_helps_no_certificate_that_has_ended(stand: Stand, tmp_path: Path) -> None:
    ended(stand, tmp_path)
    for ahead in (0, 3600, -7 * 86_400):
        receipt = stand.receipt(iat=int(time.time()) + ahead)
        assert await stand.collector.fold(AGENT, EXEC, stand.result(receipt)) is False
    assert await stand.state() is ExecState.QUEUED


async def test_a_second_worker_is_shown_and_on_the_record_once(stand: Stand) -> None:
    for run in ("r1", "r2", "r2"):
        notice = Contender(boot="copy", run=run, hostname="clone", holder="web1").model_dump_json()
        await stand.collector._on_notice(keys.events(AGENT), notice.encode())
    [event] = [
        event for event in (await stand.trail.read(after="", limit=99, exec_id="")).events if event.agent_id == AGENT
    ][-1:]
    assert event.event == "agent_contested"
    assert event.reason == (
        "a second worker with its identity waits on host clone (journal copy), while the one on web1 holds its lease"
    )
    assert (await codes(stand)).count("agent_contested") == 1


async def test_a_life_that_an_agent_remembers_is_learned(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[str] = []
    monkeypatch.setattr(stand.collector._registry, "learn_life", learned.append)
    notice = RememberedLife(record="a record").model_dump_json()
    await stand.collector._on_notice(keys.events(AGENT), notice.encode())
    assert learned == ["a record"]


async def test_only_the_process_that_sent_the_order_receives_its_report(stand: Stand) -> None:
    receipt = stand.receipt()
    folded: list[tuple[int, str, str]] = []

    class Listener(Collector):
        lane: int

        async def fold(self, agent: str, exec_id: str, raw: bytes) -> bool:
            folded.append((self.lane, agent, exec_id))
            return await super().fold(agent, exec_id, raw)

    subscribers = []
    for lane in (3, 33):
        listener = Listener.__new__(Listener)
        listener.__dict__ |= stand.collector.__dict__ | {"lane": lane}
        subscribers.append(Subscriber(stand.redis))
        listener.attach(subscribers[-1], lane)
    async with supervised(*(subscriber.run() for subscriber in subscribers)):
        for subscriber in subscribers:
            await asyncio.wait_for(subscriber.connected.wait(), PATIENCE_SECONDS)
        # Not a report: a name that an agent may publish on, without an execution.
        await stand.redis.publish(f"agent.{AGENT}:report:33:", "x")
        await stand.redis.publish(keys.report(AGENT, 33, EXEC), stand.result(receipt))
        while await stand.state() is not ExecState.SUCCEEDED:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert folded == [(33, AGENT, EXEC)]
