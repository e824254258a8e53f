"""Findings: each is recorded once, and a flood of them is limited and counted."""

from __future__ import annotations

import time

import pytest

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode, ExecAuditLog
from tachikoma_orchestrator.audit.findings import MAX_IN_A_MINUTE, MAX_REASON, Bound, Findings
from tachikoma_orchestrator.audit.trail import AuditTrail

REQUESTER = "spiffe://tachikoma.local/user/alice"


@pytest.fixture
def findings(redis: Redis) -> Findings:
    return Findings(redis, AuditTrail(redis))


async def execution(redis: Redis, exec_id: str) -> str:
    await redis.hset(keys.execution(exec_id), "agent", "web-1")
    await redis.hset(keys.execution(exec_id), "requested_by", REQUESTER)
    return exec_id


async def recorded(redis: Redis) -> list[ExecAuditLog]:
    return (await AuditTrail(redis).read(after="", limit=1000)).events


async def test_a_finding_is_recorded_once_with_its_execution(redis: Redis, findings: Findings) -> None:
    exec_id = await execution(redis, "e1")
    for _ in range(3):
        await findings.add(AuditCode.RECORD_ALTERED, exec_id, "the digest differs")
    await findings.add(AuditCode.RECORD_ALTERED, exec_id, "x" * 5000)
    first, second = await recorded(redis)
    assert (first.event, first.id, first.agent_id, first.requested_by) == ("record_altered", "e1", "web-1", REQUESTER)
    assert first.reason == "the digest differs"
    assert second.reason == "x" * MAX_REASON


async def test_a_finding_about_an_execution_that_does_not_exist_is_not_recorded(
    redis: Redis, findings: Findings
) -> None:
    await findings.add(AuditCode.RECEIPT_REFUSED, "nothing", "forged")
    assert await recorded(redis) == []


async def test_a_finding_about_a_record_of_another_type_is_recorded(redis: Redis, findings: Findings) -> None:
    await redis.set(keys.execution("e1"), "x")
    await findings.add(AuditCode.RECORD_ALTERED, "e1", "not a hash")
    [event] = await recorded(redis)
    assert (event.id, event.agent_id) == ("e1", "")


async def test_a_flood_is_limited_and_counted(
    redis: Redis, findings: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    exec_id = await execution(redis, "e1")
    for number in range(MAX_IN_A_MINUTE + 7):
        await findings.add(AuditCode.RECEIPT_REFUSED, exec_id, f"forged {number}")
    assert len(await recorded(redis)) == MAX_IN_A_MINUTE
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    await findings.add(AuditCode.RECEIPT_REFUSED, exec_id, "forged again")
    assert (await recorded(redis))[-1].reason == "forged again (and 7 more were left out)"


async def test_a_finding_about_an_agent_names_the_agent(redis: Redis, findings: Findings) -> None:
    for _ in range(2):
        await findings.add_of_agent(AuditCode.NOTICE_REFUSED, "a" * 100, "revoked")
    [event] = await recorded(redis)
    assert (event.event, event.agent_id, event.authorized) == ("notice_refused", "a" * 64, False)


def test_the_number_left_out_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bound = Bound()
    assert [bound.admits() for _ in range(MAX_IN_A_MINUTE + 2)] == [True] * MAX_IN_A_MINUTE + [False] * 2
    now += 60.1
    assert bound.admits()
    assert bound.left_out() == " (and 2 more were left out)"
    assert bound.left_out() == ""
