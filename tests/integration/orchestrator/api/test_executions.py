"""What a caller is told about an execution whose record Redis has lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from admissions import AGENT, ALICE, BOSS, Stand, peer
from tachikoma.client import wire
from tachikoma.errors import NotFound, Unavailable
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.api import guard
from tachikoma_orchestrator.api.approvals import ApprovalCalls
from tachikoma_orchestrator.api.executions import ExecutionCalls
from tachikoma_orchestrator.api.output import OutputCalls
from tachikoma_orchestrator.executions.waiters import Completions


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return await Stand.make(redis, tmp_path)


class Calls(ExecutionCalls, OutputCalls, ApprovalCalls):
    """The RPCs of executions, on parts in which Redis can lose a record after a step."""

    def __init__(self, stand: Stand, by: Any = ALICE) -> None:
        guard._peer.set(peer(by))
        super().__init__(
            SimpleNamespace(
                redis=stand.redis, ledger=stand.ledger, admitter=stand.admitter, policies=stand.policies,
                trail=stand.trail, completions=Completions(), approvals=stand.approvals, identity=stand.identity,
                evidence=SimpleNamespace(status=lambda record: record),
            )  # type: ignore[arg-type]
        )  # fmt: skip


def loses(redis: Redis, exec_id: str, step: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return a step after which Redis has lost the record of an execution."""

    async def losing(*args: Any, **kwargs: Any) -> Any:
        result = await step(*args, **kwargs)
        await redis.delete(keys.execution(exec_id))
        return result

    return losing


async def test_a_submission_whose_record_is_lost_is_unavailable_and_can_be_repeated(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no unknown execution: its order may be on the queue."""
    request = ExecRequest(agent_id=AGENT, command=("true",))
    calls = Calls(stand)
    with monkeypatch.context() as patched:
        patched.setattr(stand.admitter, "admit", loses(stand.redis, request.id, stand.admitter.admit))
        with pytest.raises(Unavailable, match="call again with the same id") as caught:
            await calls.Submit(wire.request_to_pb(request), None)
    assert caught.value.metadata == {"id": request.id}
    assert (await calls.Submit(wire.request_to_pb(request), None)).id == request.id


async def test_an_approval_whose_record_is_lost_is_unavailable(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    exec_id = await stand.admit("printf")
    calls = Calls(stand, BOSS)
    monkeypatch.setattr(stand.approvals, "reject", loses(stand.redis, exec_id, stand.approvals.reject))
    with pytest.raises(Unavailable, match="during this call; call again"):
        await calls.Reject(pb.RejectRequest(id=exec_id, reason="no"), None)


async def test_a_cancel_whose_record_is_lost_is_unavailable(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    exec_id = await stand.admit("true")
    monkeypatch.setattr(stand.ledger, "settle", loses(stand.redis, exec_id, stand.ledger.settle))
    with pytest.raises(Unavailable, match="during this call; call again"):
        await Calls(stand).Cancel(pb.CancelRequest(id=exec_id), None)


@pytest.mark.parametrize("state", ["QUEUED", "STARTED"])
async def test_a_cancel_of_what_is_lost_meanwhile_is_unavailable_not_already_ended(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """A caller who is told that it has ended would leave it running."""
    exec_id = await stand.admit("true")
    await stand.redis.hset(keys.execution(exec_id), "state", state)
    await stand.redis.hset(keys.execution(exec_id), "history", f"{state} 1")
    monkeypatch.setattr(stand.ledger, "record", loses(stand.redis, exec_id, stand.ledger.record))
    with pytest.raises(Unavailable, match="during this call; call again"):
        await Calls(stand).Cancel(pb.CancelRequest(id=exec_id), None)


@pytest.mark.parametrize("rpc", ["Status", "Cancel", "Attach"])
@pytest.mark.parametrize("owner", ["nobody", "somebody else"])
async def test_an_unknown_execution_is_not_found_but_while_records_are_being_restored(
    stand: Stand, rpc: str, owner: str
) -> None:
    """One of another requester looks the same as one that does not exist, at each time."""
    exec_id = "unknown" if owner == "nobody" else await stand.admit("true", by=BOSS)
    restoring = SimpleNamespace(under_way=True, settled=lambda _: True)
    calls = Calls(stand)

    async def call() -> None:
        if rpc == "Attach":
            async for _ in calls.Attach(pb.AttachRequest(id=exec_id), None):
                raise AssertionError
        else:
            await getattr(calls, rpc)(getattr(pb, f"{rpc}Request")(id=exec_id), None)

    with pytest.raises(NotFound, match="there is no execution"):
        await call()
    stand.admitter.wait_with(restoring)  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="is not known until its agent has shown"):
        await call()
    restoring.under_way = False
    with pytest.raises(NotFound, match="there is no execution"):
        await call()
