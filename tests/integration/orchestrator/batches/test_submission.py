"""Requests of batches: resolved, frozen, repeated, previewed and retried."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from admissions import OTHER, peer
from batches import BatchStand
from tachikoma.errors import AlreadyExists, InvalidRequest, NotFound, ResourceExhausted
from tachikoma.redis import keys
from tachikoma.vocabulary.batches import BatchRequest, TargetState
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.batches import store

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


async def test_a_preview_tells_the_targets_apart_and_starts_nothing(make: Make) -> None:
    stand = await make(3)
    await stand.redis.delete(keys.info("web-2"))
    await stand.stand.registry.drain("web-3", by="x", reason="y")
    request = BatchRequest(targets=("web-[1-3],db-1",), command=("true",))
    await stand.stand.heard("db-1")
    preview = await stand.rooms[0].submission.preview(request, peer())
    found = {target.agent_id: (target.state, target.reason) for target in preview.targets}
    assert found["web-1"] == (TargetState.PENDING, "")
    assert found["web-2"] == (TargetState.UNREACHABLE, "offline")
    assert found["web-3"] == (TargetState.UNREACHABLE, "draining")
    assert found["db-1"][0] is TargetState.DENIED
    assert await stand.store.newest(10) == []
    submitted = await stand.rooms[0].submission.submit(request, peer())
    assert submitted.digest == preview.digest


async def test_a_retry_runs_exactly_where_the_earlier_batch_did_not_succeed(make: Make) -> None:
    stand = await make(5)
    await stand.redis.delete(keys.info("web-5"))
    batch = await stand.submit(command=("true", "{agent}"), parallel="3", stop_after="2", user="")
    await stand.step(batch)
    await stand.end("web-1")
    await stand.end("web-2", ExecState.FAILED, exit_code=3)
    await stand.step(batch)
    await stand.end("web-3", ExecState.FAILED, exit_code=3)
    again = await stand.submit(targets=(), command=(), retry_of=batch)
    for _ in range(2):
        await stand.step(again)
    status = await stand.status(again)
    assert status.total == 4
    assert status.command == ("true", "{agent}")
    assert await stand.running(again) == ["web-2", "web-3", "web-4"]
    only = await stand.submit(targets=(), command=("true",), retry_of=batch, retry_states=(TargetState.FAILED,))
    assert (await stand.status(only)).total == 2


async def test_another_requesters_batch_cannot_be_retried(make: Make) -> None:
    stand = await make(1)
    batch = await stand.submit()
    with pytest.raises(NotFound):
        await stand.rooms[0].submission.submit(BatchRequest(retry_of=batch), peer(OTHER))
    with pytest.raises(NotFound):
        await stand.submit(targets=(), command=(), retry_of="never")
    with pytest.raises(InvalidRequest, match="no target of the batch"):
        await stand.submit(targets=(), command=(), retry_of=batch, retry_states=(TargetState.LOST,))
