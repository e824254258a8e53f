"""Approvals on a real Redis: what an approver sees, may do, and what an approval is bound to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from admissions import AGENT, ALICE, BOSS, OTHER, Stand, peer
from tachikoma.errors import (
    AgentOffline,
    AgentRevoked,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.isolation import Isolation
from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.admission.approvals import MAX_REASON, checked_reason


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return await Stand.make(redis, tmp_path, queue_size=3)


async def state(stand: Stand, exec_id: str) -> ExecState:
    record = await stand.ledger.record(exec_id)
    assert record is not None
    return record.state


async def digest(stand: Stand, exec_id: str) -> str:
    return (await stand.approvals.describe(exec_id, peer(BOSS))).digest


# --- shown ------------------------------------------------------------------------------------------------------------


async def test_an_approver_sees_the_whole_request_and_what_policy_grants_it(stand: Stand) -> None:
    exec_id = await stand.admit("printf", "--password", "hunter2", timeout="90s")
    shown = await stand.approvals.describe(exec_id, peer(BOSS))
    # The record is redacted; an approver answers for what really runs.
    assert shown.request.command == ("printf", "--password", "hunter2")
    assert shown.request.requested_by == str(ALICE)
    assert shown.policy.startswith("careful@")
    assert shown.limits == ResourceLimits(pids=50)
    assert shown.request.isolation is Isolation.PRIVATE
    assert (shown.status.id, shown.status.state) == (exec_id, ExecState.PENDING_APPROVAL)


async def test_a_list_holds_what_its_caller_requested_or_may_approve(stand: Stand) -> None:
    mine = await stand.admit("printf", "mine")
    others = await stand.admit("printf", "others", by=OTHER)

    async def listed(caller: object, *, everybody: bool = False) -> set[str]:
        found = await stand.approvals.pending(peer(caller), everybody=everybody)  # type: ignore[arg-type]
        return {status.id for status in found}

    assert await listed(BOSS) == {mine, others}
    assert await listed(ALICE) == {mine, others}
    assert await listed(OTHER) == {others}
    assert await listed(OTHER, everybody=True) == {mine, others}


# --- approved ---------------------------------------------------------------------------------------------------------


async def test_an_approved_request_becomes_an_order_that_names_its_approver(stand: Stand) -> None:
    exec_id = await stand.admit("printf", "x")
    seen = await digest(stand, exec_id)
    await stand.approvals.approve(exec_id, seen, "fine", peer(BOSS))
    order = await stand.order()
    assert (order.jti, order.sub, order.approved_by) == (exec_id, str(ALICE), str(BOSS))
    assert order.request.command == ("printf", "x")
    assert await state(stand, exec_id) is ExecState.QUEUED
    requested, approved, dispatched = await stand.events(exec_id)
    assert [requested.event, approved.event, dispatched.event] == ["approval_requested", "approved", "dispatched"]
    assert (approved.actor, approved.reason, approved.evidence_sha256) == (str(BOSS), "fine", seen)


async def test_of_many_concurrent_approvals_one_succeeds(stand: Stand) -> None:
    exec_id = await stand.admit("printf", "x")
    seen = await digest(stand, exec_id)
    attempts = (stand.approvals.approve(exec_id, seen, "fine", peer(BOSS)) for _ in range(8))
    answers = await asyncio.gather(*attempts, return_exceptions=True)
    assert answers.count(None) == 1
    assert all(isinstance(answer, FailedPrecondition | NotFound) for answer in answers if answer is not None)
    assert await stand.queued() == 1
    assert await stand.codes(exec_id) == ["approval_requested", "approved", "dispatched"]


async def test_an_approval_is_for_what_was_seen(stand: Stand) -> None:
    one, two = await stand.admit("printf", "one"), await stand.admit("printf", "two")
    seen = await digest(stand, one)
    for wrong in ("", "0" * 64):
        with pytest.raises(FailedPrecondition, match="what would run is not what was approved"):
            await stand.approvals.approve(one, wrong, "fine", peer(BOSS))
    with pytest.raises(FailedPrecondition, match="belongs to another execution"):
        await stand.approvals.approve(two, seen, "fine", peer(BOSS))
    stand.change_policy("pids: 50", "pids: 60")
    with pytest.raises(FailedPrecondition, match="policy changed"):
        await stand.approvals.approve(one, seen, "fine", peer(BOSS))
    assert await stand.queued() == 0
    await stand.approvals.approve(one, await digest(stand, one), "fine", peer(BOSS))
    assert (await stand.order()).grant.limits == ResourceLimits(pids=60)


async def test_an_order_that_cannot_be_queued_leaves_the_execution_waiting(stand: Stand) -> None:
    exec_id = await stand.admit("printf", "x")
    seen = await digest(stand, exec_id)
    await stand.redis.delete(keys.info(AGENT))
    with pytest.raises(AgentOffline):
        await stand.approvals.approve(exec_id, seen, "fine", peer(BOSS))
    await stand.heard()
    for _ in range(3):
        await stand.admit()
    with pytest.raises(ResourceExhausted, match="is full"):
        await stand.approvals.approve(exec_id, seen, "fine", peer(BOSS))
    entry = '{"active":true,"at_ms":1,"details":{"by":"x","reason":"stolen"}}'
    await stand.redis.hset(keys.REVOKED, AGENT, entry)
    with pytest.raises(AgentRevoked):
        await stand.approvals.approve(exec_id, seen, "fine", peer(BOSS))
    assert await state(stand, exec_id) is ExecState.PENDING_APPROVAL
    await stand.redis.delete(keys.REVOKED, keys.queue(AGENT))
    await stand.approvals.approve(exec_id, seen, "fine", peer(BOSS))
    assert await state(stand, exec_id) is ExecState.QUEUED


# --- refused ----------------------------------------------------------------------------------------------------------


async def test_a_requester_cannot_approve_its_own_request_although_policy_names_it(stand: Stand) -> None:
    exec_id = await stand.admit("printf", "x", by=ALICE)
    seen = await digest(stand, exec_id)
    with pytest.raises(PermissionDenied, match="requesters cannot approve their own requests"):
        await stand.approvals.approve(exec_id, seen, "trust me", peer(ALICE))
    event = (await stand.events(exec_id))[-1]
    assert (event.event, event.actor, event.authorized) == ("approval_refused", str(ALICE), False)
    # Nor if the record names another requester.
    await stand.redis.hset(keys.execution(exec_id), "requested_by", str(OTHER))
    with pytest.raises(PermissionDenied, match="requesters cannot approve their own requests"):
        await stand.approvals.approve(exec_id, seen, "trust me", peer(ALICE))
    assert await stand.queued() == 0


async def test_a_caller_without_the_right_learns_nothing_and_is_audited(stand: Stand) -> None:
    exec_id = await stand.admit("printf", "x")
    seen = await digest(stand, exec_id)
    attempts = [
        stand.approvals.describe(exec_id, peer(OTHER)),
        stand.approvals.approve(exec_id, seen, "x", peer(OTHER)),
        stand.approvals.reject(exec_id, "x", peer(OTHER)),
    ]
    for attempt in attempts:
        with pytest.raises(NotFound) as refused:
            await attempt
        assert str(refused.value) == f"no execution '{exec_id}' waits for your approval"
    assert await stand.codes(exec_id) == ["approval_requested", *["approval_refused"] * 3]
    with pytest.raises(NotFound, match="no execution 'no-such-id' waits for your approval"):
        await stand.approvals.describe("no-such-id", peer(OTHER))
    for nothing in ("", await stand.admit()):
        with pytest.raises(NotFound):
            await stand.approvals.describe(nothing, peer(BOSS))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('allowedCommands: ["/usr/bin/true ..."]', "deniedCommands: [printf]", "policy no longer allows it: .*denies"),
        ("/usr/bin/true ...", "/usr/bin/printf ...", "policy no longer requires an approval"),
        ("user/boss", "user/chief", "policy now names other approvers"),
    ],
)
async def test_policy_decides_again_but_a_rejection_is_always_possible(
    stand: Stand, old: str, new: str, why: str
) -> None:
    exec_id = await stand.admit("printf", "x")
    seen = await digest(stand, exec_id)
    stand.change_policy(old, new)
    with pytest.raises(FailedPrecondition, match=why):
        await stand.approvals.approve(exec_id, seen, "fine", peer(BOSS))
    await stand.approvals.reject(exec_id, "no", peer(BOSS))
    assert await state(stand, exec_id) is ExecState.REJECTED


async def test_a_stored_request_that_was_replaced_is_found_and_runs_nowhere(stand: Stand) -> None:
    exec_id, other = await stand.admit("printf", "x"), await stand.admit("printf", "other")
    genuine = await stand.redis.get(keys.parked(exec_id))
    assert genuine is not None
    forgeries: list[bytes | None] = [await stand.redis.get(keys.parked(other)), b"nonsense", genuine[:-8], b"\xff"]
    for forged in forgeries:
        assert forged is not None
        await stand.redis.set(keys.parked(exec_id), forged)
        with pytest.raises(FailedPrecondition, match="cannot be verified"):
            await stand.approvals.approve(exec_id, "x", "fine", peer(BOSS))
    codes = await stand.codes(exec_id)
    assert codes[0] == "approval_requested"
    assert set(codes[1:]) == {"record_altered"}
    assert await stand.queued() == 0
    await stand.redis.set(keys.parked(exec_id), genuine)
    await stand.approvals.approve(exec_id, await digest(stand, exec_id), "fine", peer(BOSS))


# --- rejected ---------------------------------------------------------------------------------------------------------


async def test_a_rejected_execution_never_runs(stand: Stand) -> None:
    exec_id = await stand.admit("printf", "x")
    seen = await digest(stand, exec_id)
    await stand.approvals.reject(exec_id, "not today", peer(BOSS))
    record = await stand.ledger.record(exec_id)
    assert record is not None
    assert (record.state, record.error) == (ExecState.REJECTED, f"rejected by {BOSS}: not today")
    with pytest.raises(NotFound):
        await stand.approvals.approve(exec_id, seen, "fine", peer(BOSS))
    event = (await stand.events(exec_id))[-1]
    assert (event.event, event.actor) == ("rejected", str(BOSS))
    assert await stand.queued() == 0


async def test_approval_and_rejection_need_a_reason(stand: Stand) -> None:
    exec_id = await stand.admit("printf", "x")
    for reason in ("", " \n", "x" * (MAX_REASON + 1)):
        with pytest.raises(InvalidRequest, match="reason"):
            await stand.approvals.approve(exec_id, await digest(stand, exec_id), reason, peer(BOSS))
        with pytest.raises(InvalidRequest, match="reason"):
            await stand.approvals.reject(exec_id, reason, peer(BOSS))
    assert await state(stand, exec_id) is ExecState.PENDING_APPROVAL


def test_a_reason_is_kept_as_it_is() -> None:
    assert checked_reason(" fine, see CHG-17\n") == " fine, see CHG-17\n"
    assert checked_reason("x" * MAX_REASON) == "x" * MAX_REASON
