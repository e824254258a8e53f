"""Approvals of whole batches: what they are bound to, the callers that may give them, and what a forger can do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from admissions import ALICE, BOSS, OTHER, peer
from batches import BatchStand
from tachikoma.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied, ResourceExhausted
from tachikoma.identity.spiffe import user_id
from tachikoma.redis import keys
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.batches import BatchRequest, BatchState, TargetState
from tachikoma_orchestrator.batches import starter
from tachikoma_orchestrator.batches.approvals import BatchApprovals

Make = Callable[..., Awaitable[BatchStand]]
COMMANDS = 'allowedCommands: ["/usr/bin/true ..."]\n'
CHIEF = user_id("tachikoma.local", "chief")


@pytest.fixture
async def stand(make: Make) -> BatchStand:
    """Three agents, under a policy that requires an approval above two targets."""
    made = await make(3, drivers=2)
    made.stand.change_policy(COMMANDS, COMMANDS + f"    requireApprovalAbove: 2\n    approvers: [{BOSS}, {ALICE}]\n")
    return made


def approvals_of(stand: BatchStand) -> BatchApprovals:
    return stand.rooms[0].approvals


async def approve(stand: BatchStand, batch: str) -> None:
    digest = (await approvals_of(stand).describe(batch, peer(BOSS))).digest
    await approvals_of(stand).approve(batch, digest, "change 4711", peer(BOSS))


async def codes(stand: BatchStand, batch: str) -> list[str]:
    found = (await stand.stand.trail.read(after="", limit=1000, exec_id="")).events
    return [event.event for event in found if event.batch == batch]


async def test_a_larger_batch_starts_nothing_until_it_is_approved_as_a_whole(stand: BatchStand) -> None:
    batch = await stand.submit()
    await stand.step(batch)
    status = await stand.status(batch)
    assert (status.state, status.totals) == (BatchState.PENDING_APPROVAL, {TargetState.PENDING: 3})
    assert [(need.policy, need.targets, need.above) for need in status.needs] == [("free", 3, 2)]
    assert await stand.running(batch) == []
    shown = await approvals_of(stand).describe(batch, peer(BOSS))
    assert (shown.targets, shown.request.command) == (("web-1", "web-2", "web-3"), ("true",))
    await approvals_of(stand).approve(batch, shown.digest, "change 4711", peer(BOSS))
    await stand.step(batch)
    for agent in await stand.running(batch):
        order = await stand.end(agent)
        assert (order.approved_by, order.batch) == (str(BOSS), batch)
        record = await stand.stand.ledger.record(order.jti)
        assert record is not None
        assert (record.approved_by, record.approval_reason) == (str(BOSS), "change 4711")
    status = await stand.status(batch)
    assert (status.state, status.totals) == (BatchState.DONE, {TargetState.SUCCEEDED: 3})
    assert (status.approved_by, status.approval_reason) == (str(BOSS), "change 4711")
    events = [event for event in (await stand.stand.trail.read(after="", limit=99, exec_id="")).events if event.batch]
    approved = next(event for event in events if event.event == "batch_approved")
    assert (approved.actor, approved.reason, approved.evidence_sha256) == (str(BOSS), "change 4711", shown.digest)


async def test_a_smaller_batch_starts_at_once(stand: BatchStand) -> None:
    batch = await stand.submit(targets=("web-[1-2]",))
    await stand.step(batch)
    assert await stand.running(batch) == ["web-1", "web-2"]


async def test_a_command_that_always_needs_an_approval_waits_as_a_batch_too(stand: BatchStand) -> None:
    batch = await stand.submit(targets=("web-1",), command=("printf", "x"))
    assert (await stand.status(batch)).state is BatchState.PENDING_APPROVAL
    await approve(stand, batch)
    await stand.step(batch)
    assert (await stand.end("web-1")).approved_by == str(BOSS)


async def test_a_rejected_batch_never_runs(stand: BatchStand) -> None:
    batch = await stand.submit()
    await approvals_of(stand).reject(batch, "too many at once", peer(BOSS))
    await stand.step(batch)
    status = await stand.status(batch)
    assert (status.state, status.totals) == (BatchState.REJECTED, {TargetState.NOT_STARTED: 3})
    assert status.reason == f"rejected by {BOSS}: too many at once"
    assert status.end_time is not None
    assert stand.sent == {}
    assert await codes(stand, batch) == ["batch_submitted", "batch_rejected", "batch_ended"]
    with pytest.raises(NotFound):
        await approve(stand, batch)


async def test_a_batch_that_is_not_approved_in_time_expires(stand: BatchStand) -> None:
    batch = await stand.submit()
    digest = (await approvals_of(stand).describe(batch, peer(BOSS))).digest
    await stand.redis.hset(keys.batch(batch)[0], "deadline_ms", "1")
    with pytest.raises(FailedPrecondition, match="no longer waits for an approval"):
        await approvals_of(stand).approve(batch, digest, "late", peer(BOSS))
    await stand.step(batch)
    status = await stand.status(batch)
    assert (status.state, status.reason) == (BatchState.EXPIRED, "it was not approved in time")


async def test_the_deadline_counts_from_the_approval(stand: BatchStand) -> None:
    batch = await stand.submit(deadline=7200)
    waits = (await stand.status(batch)).deadline
    await approve(stand, batch)
    starts = (await stand.status(batch)).deadline
    assert waits is not None
    assert starts is not None
    assert (starts - waits).total_seconds() > 3000


async def test_a_cancelled_batch_cannot_be_approved(stand: BatchStand) -> None:
    batch = await stand.submit()
    digest = (await approvals_of(stand).describe(batch, peer(BOSS))).digest
    assert await stand.store.halt(batch, BatchState.CANCELLED, AuditCode.BATCH_CANCELLED, "", by=str(ALICE))
    with pytest.raises(NotFound):
        await approvals_of(stand).approve(batch, digest, "why not", peer(BOSS))


async def test_requesters_and_strangers_cannot_approve_and_the_attempt_is_audited(stand: BatchStand) -> None:
    batch = await stand.submit()
    with pytest.raises(PermissionDenied, match="requesters cannot approve their own requests"):
        await approvals_of(stand).describe(batch, peer(ALICE))
    for call in (
        approvals_of(stand).describe(batch, peer(OTHER)),
        approvals_of(stand).approve(batch, "0" * 64, "me", peer(OTHER)),
        approvals_of(stand).reject(batch, "me", peer(OTHER)),
    ):
        with pytest.raises(NotFound, match="waits for your approval"):
            await call
    assert (await codes(stand, batch)).count("approval_refused") == 4
    assert (await stand.status(batch)).state is BatchState.PENDING_APPROVAL


async def test_each_caller_sees_the_batches_that_concern_it(stand: BatchStand) -> None:
    batch = await stand.submit()
    seen = {
        caller: [status.id for status in await approvals_of(stand).pending(peer(caller), everybody=False)]
        for caller in (ALICE, BOSS, OTHER)
    }
    assert seen == {ALICE: [batch], BOSS: [batch], OTHER: []}
    assert [status.id for status in await approvals_of(stand).pending(peer(OTHER), everybody=True)] == [batch]


async def test_an_approver_must_be_one_for_each_policy(stand: BatchStand) -> None:
    stand.stand.change_policy(
        "  - name: careful\n",
        f'  - {{name: databases, subjects: ["**"], agents: ["db-*"], allowedCommands: ["/usr/bin/true"], '
        f"requireApproval: true, approvers: [{BOSS}, {CHIEF}]}}\n  - name: careful\n",
    )
    request = BatchRequest(targets=("web-[1-3]", "db-1"), command=("true",))
    batch = (await stand.rooms[0].submission.submit(request, peer(OTHER))).id
    for half in (ALICE, CHIEF):
        with pytest.raises(NotFound):
            await approvals_of(stand).describe(batch, peer(half))
    assert [need.policy for need in (await approvals_of(stand).describe(batch, peer(BOSS))).needs] == [
        "databases", "free",
    ]  # fmt: skip


@pytest.mark.parametrize("change", ["policy", "labels"])
async def test_an_approval_is_valid_for_what_was_shown_only(stand: BatchStand, change: str) -> None:
    await stand.bind("web-1", "web-2", "web-3", rack="r1")
    batch = await stand.submit(command=("true", "{label:rack}"))
    shown = await approvals_of(stand).describe(batch, peer(BOSS))
    if change == "policy":
        stand.stand.change_policy("maxTimeout: 5m", "maxTimeout: 6m")
    else:
        await stand.bind("web-2", rack="r2")
    with pytest.raises(FailedPrecondition, match="what would run is not what was approved"):
        await approvals_of(stand).approve(batch, shown.digest, "yes", peer(BOSS))
    with pytest.raises(InvalidRequest, match="a reason is required"):
        await approvals_of(stand).approve(batch, shown.digest, " ", peer(BOSS))


async def test_a_target_whose_labels_change_after_the_approval_is_denied(stand: BatchStand) -> None:
    await stand.bind("web-1", "web-2", "web-3", rack="r1")
    batch = await stand.submit(command=("true", "{label:rack}"))
    await approve(stand, batch)
    await stand.bind("web-2", rack="r2")
    await stand.step(batch)
    assert await stand.running(batch) == ["web-1", "web-3"]
    result = (await stand.results(batch))["web-2"]
    assert result.state is TargetState.DENIED
    assert "what would run is not what was approved" in result.error


async def test_policy_that_requires_no_approval_any_more_is_reported(stand: BatchStand) -> None:
    batch = await stand.submit()
    stand.stand.change_policy("requireApprovalAbove: 2", "requireApprovalAbove: 20")
    with pytest.raises(FailedPrecondition, match="no longer requires an approval"):
        await approvals_of(stand).describe(batch, peer(BOSS))
    # The approvers of the request may reject it whatever changed.
    await approvals_of(stand).reject(batch, "old", peer(BOSS))


@pytest.mark.parametrize("approval", ["", "forged", "of another batch"])
async def test_write_access_to_redis_approves_nothing(stand: BatchStand, approval: str) -> None:
    other, batch = await stand.submit(), await stand.submit()
    await approve(stand, other)
    token = await stand.store.approval(other) if approval == "of another batch" else approval
    forged = {"state": "RUNNING", **({"approval": token} if token else {})}
    await stand.redis.hset(keys.batch(batch)[0], mapping=forged)
    await stand.step(batch)
    status = await stand.status(batch)
    assert (status.state, status.reason) == (BatchState.STOPPED, "its signed approval cannot be verified")
    assert await stand.running(batch) == []


async def test_two_approvers_at_once_approve_once(stand: BatchStand) -> None:
    request = BatchRequest(targets=("web-*",), command=("true",))
    batch = (await stand.rooms[0].submission.submit(request, peer(OTHER))).id
    digest = (await approvals_of(stand).describe(batch, peer(BOSS))).digest
    outcomes = await asyncio.gather(
        approvals_of(stand).approve(batch, digest, "one", peer(BOSS)),
        stand.rooms[1].approvals.approve(batch, digest, "two", peer(ALICE)),
        stand.rooms[1].approvals.reject(batch, "three", peer(ALICE)),
        return_exceptions=True,
    )
    assert [isinstance(outcome, (FailedPrecondition, NotFound)) for outcome in outcomes].count(True) == 2
    found = await codes(stand, batch)
    assert found.count("batch_approved") + found.count("batch_rejected") == 1


async def test_single_requests_and_small_batches_together_stay_below_the_number(stand: BatchStand) -> None:
    batch = await stand.submit(targets=("web-1",))
    await stand.step(batch)
    await stand.stand.admit("true", by=BOSS)
    with pytest.raises(ResourceExhausted):
        await stand.stand.admit("true", by=OTHER)
    other = await stand.submit(targets=("web-3",))
    await stand.step(other)
    assert await stand.running(other) == []
    # An approved batch has an approver that looked at it: it does not count.
    large = await stand.submit()
    await approve(stand, large)
    await stand.step(large)
    assert await stand.running(large) == ["web-1", "web-2", "web-3"]


async def test_fifty_batches_of_two_requesters_never_exceed_the_number_without_an_approval(
    stand: BatchStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of one or two targets need no approval, those of three do; some of these are approved.

    Two drivers at once, each of which drives six batches at once.
    """
    monkeypatch.setattr(starter, "RETRY_SECONDS", (0.0, 0.0))
    chance, batches, approved = random.Random(3), [], set()
    for number in range(50):
        size = chance.randint(1, 3)
        request = BatchRequest(targets=(f"web-[1-{size}]",), command=("true",))
        batches.append((await stand.rooms[0].submission.submit(request, peer(OTHER if number % 2 else ALICE))).id)
        if size == 3 and chance.random() < 0.5:
            await approve(stand, batches[-1])
            approved.add(batches[-1])
    most = 0
    for _ in range(60):
        await stand.step_at_once(chance.sample(batches, 6))
        running = {batch: len(await stand.running(batch)) for batch in batches}
        unapproved = sum(number for batch, number in running.items() if batch not in approved)
        assert unapproved <= 2
        assert unapproved == await stand.redis.execute_command("SCARD", keys.scope("unapproved:free")[1])
        most = max(most, unapproved)
        for agent in ("web-1", "web-2", "web-3"):
            if await stand.redis.execute_command("LLEN", keys.queue(agent)):
                await stand.end(agent)
    assert most == 2
    for batch in batches:
        status = await stand.status(batch)
        if status.needs and batch not in approved:
            assert (status.state, status.totals) == (BatchState.PENDING_APPROVAL, {TargetState.PENDING: 3})


async def test_an_approval_and_a_rejection_that_redis_lost_are_made_again(stand: BatchStand) -> None:
    approved, rejected = await stand.submit(), await stand.submit()
    before = {batch: await stand.redis.hgetall(keys.batch(batch)[0]) for batch in (approved, rejected)}
    await approve(stand, approved)
    await approvals_of(stand).reject(rejected, "too many at once", peer(BOSS))
    for batch, fields in before.items():
        await stand.redis.delete(keys.batch(batch)[0])
        for name, value in fields.items():
            await stand.redis.hset(keys.batch(batch)[0], name, value)
        assert (await stand.status(batch)).state is BatchState.PENDING_APPROVAL
    await stand.rooms[0].store.reported.write_again(stand.redis)
    assert (await stand.status(approved)).state is BatchState.RUNNING
    assert (await stand.status(rejected)).state is BatchState.REJECTED
