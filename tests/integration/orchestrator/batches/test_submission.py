"""Requests of batches: resolved, frozen, repeated, previewed and retried."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from admissions import OTHER, peer
from batches import BatchStand
from tachikoma.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound, ResourceExhausted
from tachikoma.redis import keys
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.batches import BatchRequest, BatchState, TargetState
from tachikoma.vocabulary.identifiers import new_id
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.revoking import Revoker
from tachikoma_orchestrator.batches import store
from tachikoma_orchestrator.executions.revocation import ExecutionsOfMembers

Make = Callable[..., Awaitable[BatchStand]]


async def test_the_list_is_frozen_when_the_batch_is_submitted(make: Make) -> None:
    stand = await make(2)
    await stand.bind("web-1", "web-2", rack="r1")
    batch = await stand.submit(targets=("rack=r1",))
    await stand.stand.heard("web-3")
    await stand.bind("web-3", rack="r1")
    for _ in range(2):
        await stand.step(batch)
    assert await stand.running(batch) == ["web-1", "web-2"]
    assert (await stand.status(batch)).total == 2


async def test_a_repetition_is_the_same_batch_although_the_agents_changed(make: Make) -> None:
    stand = await make(2)
    request = BatchRequest(targets=("web-*",), command=("true",))
    first = await stand.rooms[0].submission.submit(request, peer())
    await stand.stand.heard("web-3")
    again = await stand.rooms[0].submission.submit(request, peer())
    assert (again.id, again.total, again.digest) == (first.id, 2, first.digest)


@pytest.mark.parametrize("other", ["command", "requester"])
async def test_an_id_belongs_to_one_batch(make: Make, other: str) -> None:
    stand = await make(1)
    request = BatchRequest(targets=("web-*",), command=("true",))
    await stand.rooms[0].submission.submit(request, peer())
    changed = request.model_copy(update={"command": ("true", "x")}) if other == "command" else request
    with pytest.raises(AlreadyExists, match="was used for another batch"):
        await stand.rooms[0].submission.submit(changed, peer(OTHER) if other == "requester" else peer())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("mail-*",), "no agent matches"),
        (("role=x",), "no agent has the labels"),
        (("web-1!web-1",), "no agent at all"),
    ],
)
async def test_targets_that_are_nobody_are_refused(make: Make, targets: tuple[str, ...], message: str) -> None:
    stand = await make(1)
    with pytest.raises(InvalidRequest, match=message):
        await stand.submit(targets=targets)


async def test_open_batches_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = await make(1)
    monkeypatch.setattr(store, "MAX_OPEN", 1)
    await stand.submit()
    with pytest.raises(ResourceExhausted):
        await stand.submit()


async def test_one_requester_cannot_fill_the_places_of_all(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = await make(1)
    monkeypatch.setattr(store, "MAX_OPEN_OF_REQUESTER", 2)
    first, _ = await stand.submit(), await stand.submit()
    with pytest.raises(ResourceExhausted, match="of your batches have not ended") as refused:
        await stand.submit()
    assert refused.value.retry_after_seconds
    request = BatchRequest(targets=("web-*",), command=("true",))
    for _ in range(2):
        await stand.rooms[0].submission.submit(request.model_copy(update={"id": new_id()}), peer(OTHER))
    await stand.store.halt(first, BatchState.CANCELLED, AuditCode.BATCH_CANCELLED, "", by=str(peer()))
    await stand.submit()
    # A batch of another requester that an attacker replaced holds back nobody.
    await stand.redis.sadd(keys.BATCHES_OPEN, "odd")
    await stand.redis.set(keys.batch("odd")[0], "x")
    monkeypatch.setattr(store, "MAX_OPEN_OF_REQUESTER", 3)
    await stand.submit()


async def revoke(stand: BatchStand, agent: str) -> None:
    identity, registry = stand.stand.identity, stand.stand.registry
    executions = ExecutionsOfMembers(stand.redis, stand.stand.ledger, identity)
    await Revoker(stand.redis, identity, registry.revocations, executions, None).revoke(agent, "stolen", peer(OTHER))


async def test_a_preview_tells_the_targets_apart_and_starts_nothing(make: Make) -> None:
    stand = await make(4)
    await stand.redis.delete(keys.info("web-2"))
    await stand.stand.registry.drain("web-3", by="x", reason="y")
    await revoke(stand, "web-4")
    request = BatchRequest(targets=("web-[1-4],web-9,db-1",), command=("true",))
    await stand.stand.heard("db-1")
    preview = await stand.rooms[0].submission.preview(request, peer())
    found = {target.agent_id: (target.state, target.reason) for target in preview.targets}
    assert found["web-1"] == (TargetState.PENDING, "")
    assert found["web-2"] == (TargetState.UNREACHABLE, "offline")
    assert found["web-3"] == (TargetState.UNREACHABLE, "draining")
    assert found["web-4"] == (TargetState.UNREACHABLE, "revoked")
    assert found["web-9"] == (TargetState.UNREACHABLE, "unknown")
    assert found["db-1"][0] is TargetState.DENIED
    assert await stand.store.newest(10) == []
    submitted = await stand.rooms[0].submission.submit(request, peer())
    assert submitted.digest == preview.digest


async def test_a_retry_runs_exactly_where_the_earlier_batch_did_not_succeed(make: Make) -> None:
    stand = await make(6)
    await stand.redis.delete(keys.info("web-6"))
    batch = await stand.submit(command=("true", "{agent}"), parallel="3", stop_after="2", user="")
    await stand.step(batch)
    await stand.end("web-1")
    await stand.end("web-2", ExecState.FAILED, exit_code=3)
    await stand.step(batch)
    await stand.end("web-3", ExecState.FAILED, exit_code=3)
    await stand.end("web-4")
    await stand.end("web-5", ExecState.TIMED_OUT, exit_code=-1)
    assert (await stand.status(batch)).totals[TargetState.NOT_STARTED] == 1
    again = await stand.submit(targets=(), command=(), retry_of=batch)
    for _ in range(2):
        await stand.step(again)
    status = await stand.status(again)
    assert status.total == 4
    assert status.command == ("true", "{agent}")
    assert await stand.running(again) == ["web-2", "web-3", "web-5"]
    only = await stand.submit(targets=(), command=("true",), retry_of=batch, retry_states=(TargetState.FAILED,))
    assert (await stand.status(only)).total == 2


@pytest.mark.parametrize("states", [(), (TargetState.FAILED,), (TargetState.RUNNING,), (TargetState.NOT_STARTED,)])
async def test_a_batch_that_has_not_ended_is_not_retried(make: Make, states: tuple[TargetState, ...]) -> None:
    """Neither while its targets may still start, nor after its stop while one of them runs."""
    stand = await make(4)
    batch = await stand.submit(parallel="2", stop_after="1")
    again = BatchRequest(retry_of=batch, retry_states=states)
    for call in (stand.rooms[0].submission.submit, stand.rooms[0].submission.preview):
        with pytest.raises(FailedPrecondition, match="0 of its targets run, and 4 may still start; wait, or cancel it"):
            await call(again, peer())
    await stand.step(batch)
    with pytest.raises(FailedPrecondition, match="2 of its targets run, and 2 may still start"):
        await stand.rooms[0].submission.submit(again, peer())
    await stand.end("web-1", ExecState.FAILED, exit_code=3)
    assert (await stand.status(batch)).state is BatchState.STOPPED
    with pytest.raises(FailedPrecondition, match="1 of its targets run, and 0 may still start"):
        await stand.rooms[0].submission.submit(again, peer())
    await stand.end("web-2")
    if states == (TargetState.RUNNING,):
        with pytest.raises(InvalidRequest, match="no target of the batch"):
            await stand.rooms[0].submission.submit(again, peer())
        return
    preview = await stand.rooms[0].submission.preview(again, peer())
    wanted = {(): ["web-1", "web-3", "web-4"], (TargetState.FAILED,): ["web-1"]}.get(states, ["web-3", "web-4"])
    assert [target.agent_id for target in preview.targets] == wanted


async def test_a_target_that_runs_although_its_batch_ended_is_not_run_again(make: Make) -> None:
    """Redis lost the start of a target, so its record is restored after the batch has ended without it."""
    stand = await make(2)
    batch = await stand.submit(parallel="1", stop_after="1")
    await stand.step(batch)
    await stand.end("web-1", ExecState.FAILED, exit_code=3)
    _, pending, running, _ = keys.batch(batch)
    await stand.redis.zrem(pending, "web-2")
    await stand.redis.sadd(running, "web-2")
    assert (await stand.status(batch)).ended
    with pytest.raises(FailedPrecondition, match="1 of its targets run"):
        await stand.submit(targets=(), command=(), retry_of=batch)


async def test_another_requesters_batch_cannot_be_retried(make: Make) -> None:
    stand = await make(1)
    batch = await stand.submit()
    with pytest.raises(NotFound):
        await stand.rooms[0].submission.submit(BatchRequest(retry_of=batch), peer(OTHER))
    with pytest.raises(NotFound):
        await stand.submit(targets=(), command=(), retry_of="never")
    await stand.step(batch)
    await stand.end("web-1")
    with pytest.raises(InvalidRequest, match="no target of the batch"):
        await stand.submit(targets=(), command=(), retry_of=batch, retry_states=(TargetState.LOST,))
