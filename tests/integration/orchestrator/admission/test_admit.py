"""Admission on a real Redis: what becomes an order, and what is refused, with its audit event."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

from admissions import AGENT, ALICE, BOSS, ORCHESTRATOR, OTHER, Stand, peer
from tachikoma.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    PermissionDenied,
    RecordAltered,
    ResourceExhausted,
    TachikomaError,
    Unavailable,
)
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.clock import now_ms
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.admission.refusals import REFUSALS, refusal
from tachikoma_orchestrator.audit.refusals import RefusalBudget
from tachikoma_orchestrator.executions.transitions import Outcome


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return await Stand.make(redis, tmp_path)


def request(*command: str, **values: Any) -> ExecRequest:
    return ExecRequest(**{"agent_id": AGENT, "command": command or ("true",), **values})


@pytest.mark.parametrize("command", ["SET", "RPUSH", "SADD"])
async def test_an_id_whose_value_is_no_record_is_reported_as_altered(stand: Stand, command: str) -> None:
    wanted = request("true", id="job-7")
    await stand.redis.execute_command(command, keys.execution("job-7"), "x")
    with pytest.raises(RecordAltered, match="job-7"):
        await stand.admitter.admit(wanted, peer())
    await stand.redis.delete(keys.execution("job-7"))
    assert await stand.admitter.admit(wanted, peer())


async def test_a_refusal_of_an_unfit_agent_says_why_although_the_next_heartbeat_is_right(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = iter(["its clock is 300 s ahead of the orchestrator's"])
    monkeypatch.setattr(stand.registry.observations, "obstacle", lambda agent: next(reasons, ""))
    with pytest.raises(FailedPrecondition, match="takes no executions: its clock is 300 s ahead"):
        await stand.admitter.admit(request("true"), peer())


async def test_an_index_of_another_type_is_no_fault_of_the_record(stand: Stand) -> None:
    await stand.redis.set(keys.INDEX, "x")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await stand.admitter.admit(request("true"), peer())


# --- admitted ---------------------------------------------------------------------------------------------------------


async def test_an_allowed_request_becomes_one_signed_order_and_its_events(stand: Stand) -> None:
    exec_id = await stand.admit("true", "x")
    order = await stand.order()
    assert (order.jti, order.iss, order.sub) == (exec_id, str(ORCHESTRATOR), str(ALICE))
    assert (order.aud, order.approved_by, order.client_ip) == ("spiffe://tachikoma.local/agent/web-1", "", "192.0.2.7")
    assert order.policy.startswith("free@")
    assert order.request.command == ("true", "x")
    # The timeout that policy grants, since the request names none.
    assert order.request.timeout == timedelta(minutes=5)
    assert await stand.queued() == 0
    record = await stand.ledger.record(exec_id)
    assert record is not None
    assert (record.state, record.agent, record.requested_by) == (ExecState.QUEUED, AGENT, str(ALICE))
    assert await stand.codes(exec_id) == ["admitted", "dispatched"]


async def test_the_requester_is_the_caller_whether_the_request_says_so_or_not(stand: Stand) -> None:
    for named in ("", str(ALICE)):
        await stand.admit(requested_by=named)
        assert (await stand.order()).sub == str(ALICE)


async def test_a_repetition_is_not_new_and_puts_nothing_on_the_queue(stand: Stand) -> None:
    wanted = request()
    assert await stand.admitter.admit(wanted, peer())
    assert not await stand.admitter.admit(wanted, peer())
    # A change of policy does not make another request of it.
    stand.change_policy("maxTimeout: 5m", "maxTimeout: 6m")
    assert not await stand.admitter.admit(wanted, peer())
    assert await stand.queued() == 1
    assert await stand.codes(wanted.id) == ["admitted", "dispatched"]


async def test_a_request_that_needs_an_approval_waits_without_an_order(stand: Stand) -> None:
    exec_id = await stand.admit("printf", "x")
    record = await stand.ledger.record(exec_id)
    assert record is not None
    assert record.state is ExecState.PENDING_APPROVAL
    assert await stand.queued() == 0
    assert await stand.codes(exec_id) == ["approval_requested"]


async def test_secrets_of_a_command_are_only_in_its_order(stand: Stand) -> None:
    exec_id = await stand.admit("true", "--password", "hunter2")
    assert (await stand.order()).request.command == ("true", "--password", "hunter2")
    for name in await stand.redis.execute_command("KEYS", "orch:exec:*"):
        assert b"hunter2" not in b"".join((await stand.redis.hgetall(name)).values())
    assert all("hunter2" not in event.to_json() for event in await stand.events(exec_id))


# --- denied by the admitter -------------------------------------------------------------------------------------------


async def test_a_request_in_the_name_of_another_is_denied_and_audited_under_the_callers_name(stand: Stand) -> None:
    wanted = request(requested_by=str(OTHER))
    with pytest.raises(PermissionDenied, match="but comes from spiffe"):
        await stand.admitter.admit(wanted, peer())
    [event] = await stand.events(wanted.id)
    assert (event.event, event.requested_by, event.rule, event.authorized) == (
        "denied", str(ALICE), "requestedBy", False
    )  # fmt: skip


async def test_a_request_that_no_policy_allows_is_denied(stand: Stand) -> None:
    wanted = request("reboot")
    with pytest.raises(PermissionDenied, match="not allowed: ") as denied:
        await stand.admitter.admit(wanted, peer())
    [event] = await stand.events(wanted.id)
    assert (event.event, event.client_ip, event.rule) == ("denied", "192.0.2.7", denied.value.metadata["rule"])
    assert await stand.ledger.record(wanted.id) is None
    assert await stand.queued() == 0


@pytest.mark.parametrize(
    ("fields", "session", "why"),
    [({"interactive": True}, False, "use ExecuteInteractive"), ({"tty": True}, True, "set `interactive` too")],
)
async def test_a_mistake_about_sessions_is_refused_although_policy_allows_it(
    stand: Stand, fields: dict[str, bool], session: bool, why: str
) -> None:
    wanted = request(**fields)
    with pytest.raises(InvalidRequest, match=why):
        await stand.admitter.admit(wanted, peer(), session=session)
    (event,) = await stand.events(wanted.id)
    # Policy granted it; something else is the reason.
    assert (event.event, event.authorized, event.policy_applied[:5]) == (AuditCode.REFUSED, True, "free@")
    assert await stand.ledger.record(wanted.id) is None


async def test_nothing_is_admitted_while_it_cannot_be_audited(stand: Stand) -> None:
    stand.trail.closed_reason = "the disk of the log is full"
    with pytest.raises(Unavailable, match="the disk of the log is full"):
        await stand.admitter.admit(request(), peer())
    assert await stand.queued() == 0


# --- refused by the script --------------------------------------------------------------------------------------------


async def _unknown(stand: Stand) -> ExecRequest:
    return request(agent_id="web-9")


async def _offline(stand: Stand) -> ExecRequest:
    await stand.redis.delete(keys.info(AGENT))
    return request()


async def _draining(stand: Stand) -> ExecRequest:
    await stand.registry.drain(AGENT, by=str(OTHER), reason="new disk")
    return request()


async def _revoked(stand: Stand) -> ExecRequest:
    entry = '{"active":true,"at_ms":1,"details":{"by":"x","reason":"stolen"}}'
    await stand.redis.hset(keys.REVOKED, AGENT, entry)
    return request()


async def _clock(stand: Stand) -> ExecRequest:
    await stand.heard(sent_ms=now_ms() + 125_400)
    return request()


async def _conflict(stand: Stand) -> ExecRequest:
    return request("true", "other", id=await stand.admit())


async def _full(stand: Stand) -> ExecRequest:
    for _ in range(100):
        await stand.redis.execute_command("LPUSH", keys.queue(AGENT), "order")
    return request()


async def _approvals(stand: Stand) -> ExecRequest:
    for _ in range(2):
        await stand.admit("printf", "x")
    return request("printf", "x")


async def _limited(stand: Stand, limit: str) -> ExecRequest:
    stand.change_policy("maxTimeout: 5m", f"rateLimit: {{{limit}: 1}}")
    await stand.admit()
    return request()


#: How a request comes to each refused outcome.
WAYS: dict[Outcome, Callable[[Stand], Awaitable[ExecRequest]]] = {
    Outcome.UNKNOWN: _unknown,
    Outcome.OFFLINE: _offline,
    Outcome.DRAINING: _draining,
    Outcome.REVOKED: _revoked,
    Outcome.UNFIT: _clock,
    Outcome.CONFLICT: _conflict,
    Outcome.FULL: _full,
    Outcome.APPROVALS: _approvals,
    Outcome.RATE: lambda stand: _limited(stand, "requestsPerMinute"),
    Outcome.CONCURRENT: lambda stand: _limited(stand, "concurrentLimit"),
    Outcome.WAITING: lambda stand: _limited(stand, "queueSize"),
}


def test_every_row_of_the_table_is_tried() -> None:
    assert set(WAYS) == set(REFUSALS)


@pytest.mark.parametrize("outcome", WAYS)
async def test_a_refusal_is_the_error_and_the_event_of_its_row(stand: Stand, outcome: Outcome) -> None:
    wanted = await WAYS[outcome](stand)
    before = await stand.queued()
    detail = stand.admitter.unfit(wanted)
    expected = refusal(outcome, wanted, detail=detail)
    with pytest.raises(type(expected)) as refused:
        await stand.admitter.admit(wanted, peer())
    assert str(refused.value) == str(expected)
    assert refused.value.metadata == expected.metadata
    event = (await stand.events(wanted.id))[-1]
    reason = f"UNFIT: {detail}" if outcome is Outcome.UNFIT else outcome
    assert (event.event, event.reason) == (REFUSALS[outcome].audit_code, reason)
    assert (event.requested_by, event.agent_id) == (str(ALICE), wanted.agent_id)
    assert await stand.queued() == before


@pytest.mark.parametrize(
    ("ahead_ms", "words"),
    [
        (61_000, "its clock is 61 s ahead of the orchestrator's"),
        (-61_500, "its clock is 6[12] s behind the orchestrator's"),
        (86_400_000, "its clock is 86400 s ahead"),
        (-3_600_000, "its clock is 360[0-2] s behind"),
    ],
)
async def test_a_unfit_is_refused_with_the_difference_in_words(stand: Stand, ahead_ms: int, words: str) -> None:
    await stand.heard(sent_ms=now_ms() + ahead_ms)
    wanted = request()
    with pytest.raises(FailedPrecondition, match=f"agent 'web-1' takes no executions: {words}"):
        await stand.admitter.admit(wanted, peer())
    [event] = await stand.events(wanted.id)
    assert event.event == "refused"
    assert re.match(f"UNFIT: {words}", event.reason)
    # A repetition of what was admitted before is no new request.
    await stand.heard(run="r2", sent_ms=now_ms())
    assert await stand.admitter.admit(wanted, peer())
    await stand.heard(run="r3", sent_ms=now_ms() + ahead_ms)
    assert not await stand.admitter.admit(wanted, peer())


async def test_an_agent_of_other_formats_is_refused_with_both_versions(stand: Stand) -> None:
    await stand.heard(version="9.1", formats={"order": 2})
    wanted = request()
    with pytest.raises(FailedPrecondition, match=r"its worker is version 9\.1, with order format 2 instead of 1"):
        await stand.admitter.admit(wanted, peer())
    [event] = await stand.events(wanted.id)
    assert event.reason.startswith("UNFIT: its worker is version 9.1")
    await stand.heard(formats={"order": 1})
    assert await stand.admitter.admit(wanted, peer())


@pytest.mark.parametrize("ahead_ms", [0, 55_000, -55_000])
async def test_a_clock_within_the_bound_is_no_obstacle(stand: Stand, ahead_ms: int) -> None:
    await stand.heard(sent_ms=now_ms() + ahead_ms)
    assert await stand.admitter.admit(request(), peer())


async def test_an_approval_of_an_execution_for_a_unfit_is_refused(stand: Stand) -> None:
    exec_id = await stand.admit("printf", "x")
    digest = (await stand.approvals.describe(exec_id, peer(BOSS))).digest
    await stand.heard(sent_ms=now_ms() - 300_000)
    with pytest.raises(FailedPrecondition, match="its clock is 300 s behind"):
        await stand.approvals.approve(exec_id, digest, "fine", peer(BOSS))
    assert await stand.queued() == 0


async def test_a_rate_says_when_a_repetition_may_succeed(stand: Stand) -> None:
    wanted = await _limited(stand, "requestsPerMinute")
    with pytest.raises(ResourceExhausted) as refused:
        await stand.admitter.admit(wanted, peer())
    assert refused.value.retry_after_seconds is not None
    # The one accepted request leaves the minute first.
    assert 1 < refused.value.retry_after_seconds <= 60.001


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_a_limit_of_a_policy_counts_for_each_requester_alone(stand: Stand) -> None:
    wanted = await _limited(stand, "concurrentLimit")
    with pytest.raises(ResourceExhausted):
        await stand.admitter.admit(wanted, peer())
    await stand.admit(by=OTHER)


async def test_a_limit_of_the_orchestrator_counts_for_all_requesters_of_an_agent(redis: Redis, tmp_path: Path) -> None:
    stand = await Stand.make(redis, tmp_path, rate_limit=RateLimitConfig(concurrent_limit=1))
    await stand.heard("web-2")
    await stand.admit()
    with pytest.raises(ResourceExhausted, match="have not ended"):
        await stand.admit(by=OTHER)
    await stand.admit(agent_id="web-2")


async def test_a_repetition_is_not_limited(stand: Stand) -> None:
    stand.change_policy("maxTimeout: 5m", "rateLimit: {requestsPerMinute: 1}")
    wanted = request()
    assert await stand.admitter.admit(wanted, peer())
    assert not await stand.admitter.admit(wanted, peer())


async def test_an_id_of_another_requester_is_a_conflict(stand: Stand) -> None:
    wanted = request()
    await stand.admitter.admit(wanted, peer())
    with pytest.raises(AlreadyExists):
        await stand.admitter.admit(wanted, peer(OTHER))


# --- refusals in numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["denied", "offline", "conflict", "unknown", "limited"])
async def test_refusals_beyond_the_budget_are_counted_in_one_event(redis: Redis, tmp_path: Path, kind: str) -> None:
    stand = await Stand.make(redis, tmp_path, queue_size=1 if kind == "limited" else 100)
    stand.trail.refusals = RefusalBudget(5)
    used = await stand.admit("true")
    if kind == "offline":
        await redis.delete(keys.info(AGENT))
    requests: dict[str, dict[str, Any]] = {
        "denied": {"command": ("/usr/bin/id",)},
        "conflict": {"command": ("true", "other"), "id": used},
        "unknown": {"command": ("true",), "agent_id": "web-9"},
    }
    size = await redis.execute_command("XLEN", keys.AUDIT)
    for _ in range(40):
        wanted = request(**{"command": ("true",), **requests.get(kind, {})})
        with pytest.raises(TachikomaError):
            await stand.admitter.admit(wanted, peer())
    assert await redis.execute_command("XLEN", keys.AUDIT) == size + 5
    await stand.trail.count_refusals()
    (event,) = (await stand.trail.read(after="", limit=1)).events
    assert (event.event, event.requested_by, event.authorized) == (AuditCode.REFUSALS_COUNTED, str(ALICE), False)
    assert event.reason.startswith(f"35 refusals of {ALICE} have no event of their own: 35 ")
    # Nothing more to report, and others have their own budget.
    await stand.trail.count_refusals()
    assert await redis.execute_command("XLEN", keys.AUDIT) == size + 6
    assert stand.trail.refusals.admits(str(OTHER))


async def test_accepted_requests_take_nothing_from_the_budget(redis: Redis, tmp_path: Path) -> None:
    stand = await Stand.make(redis, tmp_path)
    stand.trail.refusals = RefusalBudget(1)
    for _ in range(3):
        await stand.admit("true")
    assert stand.trail.refusals.admits(str(ALICE))


@pytest.mark.parametrize("hours", [-100_000, -1, 0, 100_000])
async def test_the_ledger_keeps_the_callers_time_beside_its_own(stand: Stand, hours: int) -> None:
    at = datetime.now(UTC).replace(microsecond=5000) + timedelta(hours=hours)
    exec_id = await stand.admit("true", request_time=at)
    record = await stand.ledger.record(exec_id)
    assert record is not None
    status = record.status()
    assert status.caller_time == at
    assert abs(status.request_time - datetime.now(UTC)) < timedelta(hours=1)
