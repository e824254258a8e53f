"""Delivery of receipts on a real Redis: stored once, published whenever it is asked for, never overwritten."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from local_agent import AGENT, LocalAgent
from patience import PATIENCE_SECONDS
from tachikoma.redis import keys
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker.execution.receipt import EarlierReceipt, Output, deliver
from tachikoma_worker.output.records import Ending

ID = "job-7"
KEY = keys.result(AGENT, ID)


async def send(agent: LocalAgent, state: ExecState, earlier: EarlierReceipt, *, order: str = "ab") -> None:
    output = Output.unknown()
    await asyncio.wait_for(
        deliver(agent.context, ID, order, Ending(state=state, error="why"), output, earlier), PATIENCE_SECONDS
    )


async def published(agent: LocalAgent, work: Any) -> list[bytes]:
    """What is published for the execution while some work is done."""
    subscription = agent.redis.pubsub()
    await subscription.subscribe(KEY)
    assert await subscription.get_message(timeout=PATIENCE_SECONDS)
    await work
    found = []
    # What was published before it is received before its answer.
    await subscription.ping()
    while (message := await subscription.get_message(timeout=PATIENCE_SECONDS))["type"] != "pong":
        found.append(message["data"])
    await subscription.aclose()
    return found


@pytest.mark.parametrize("earlier", list(EarlierReceipt))
async def test_a_receipt_is_stored_and_published(agent: LocalAgent, earlier: EarlierReceipt) -> None:
    [message] = await published(agent, send(agent, ExecState.FAILED, earlier))
    raw = await agent.redis.get(KEY)
    assert raw == message
    meta = json.loads(message)
    assert (meta["status"], meta["task_id"]) == ("SUCCESS", keys.task_id(AGENT, ID))
    result = meta["result"]
    assert (result["id"], result["agentId"], result["state"], result["error"]) == (ID, AGENT, "FAILED", "why")
    receipt = await agent.receipt(ID)
    assert receipt is not None
    assert (receipt.state, receipt.order_sha256) == (ExecState.FAILED, "ab")


async def test_output_travels_beside_its_digests(agent: LocalAgent) -> None:
    output = Output(3, Output.unknown().stdout_digest, Output.unknown().stderr_digest, b"\xff\0out", b"err")
    await deliver(agent.context, ID, "ab", Ending(state=ExecState.SUCCEEDED), output, EarlierReceipt.IMPOSSIBLE)
    result = json.loads(await agent.redis.get(KEY) or b"")["result"]
    assert (base64.b64decode(result["stdout"]), base64.b64decode(result["stderr"])) == (b"\xff\0out", b"err")
    receipt = await agent.receipt(ID)
    assert receipt is not None
    assert receipt.chunks == 3


@pytest.mark.parametrize("earlier", list(EarlierReceipt))
async def test_a_receipt_that_is_stored_is_published_again_and_not_replaced(
    agent: LocalAgent, earlier: EarlierReceipt
) -> None:
    await send(agent, ExecState.SUCCEEDED, EarlierReceipt.IMPOSSIBLE)
    first = await agent.redis.get(KEY)
    messages = await published(agent, send(agent, ExecState.LOST, earlier))
    assert messages[-1] == first
    assert await agent.redis.get(KEY) == first


@pytest.mark.parametrize(
    "value", [b"", b"nonsense", b"{}", b'{"result": {"receipt": "a.b.c"}}', b'{"result": 7}', b"["]
)
async def test_a_value_that_is_no_receipt_is_replaced(agent: LocalAgent, value: bytes) -> None:
    await agent.redis.set(KEY, value)
    await send(agent, ExecState.FAILED, EarlierReceipt.POSSIBLE)
    receipt = await agent.receipt(ID)
    assert receipt is not None
    assert receipt.state is ExecState.FAILED


async def test_a_receipt_of_another_order_is_replaced(agent: LocalAgent) -> None:
    await send(agent, ExecState.SUCCEEDED, EarlierReceipt.IMPOSSIBLE, order="another")
    await send(agent, ExecState.FAILED, EarlierReceipt.POSSIBLE)
    receipt = await agent.receipt(ID)
    assert receipt is not None
    assert (receipt.state, receipt.order_sha256) == (ExecState.FAILED, "ab")


async def test_an_attempt_whose_answer_was_lost_is_repeated_and_nothing_changes(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = agent.context.redis.pipeline
    executed: list[int] = []

    def pipeline(*, transaction: bool) -> Any:
        made = other(transaction=transaction)
        execute = made.execute

        async def lose(*args: Any, **values: Any) -> Any:
            answers = await execute(*args, **values)
            executed.append(1)
            if len(executed) == 1:
                raise ConnectionError("lost")
            return answers

        made.execute = lose
        return made

    monkeypatch.setattr(agent.context.redis, "pipeline", pipeline)
    with capture_logs() as logs:
        messages = await published(agent, send(agent, ExecState.SUCCEEDED, EarlierReceipt.IMPOSSIBLE))
    assert [entry["event"] for entry in logs] == ["receipt.waiting"]
    assert len(messages) == 2
    assert len(set(messages)) == 1


async def test_an_identity_that_changes_while_redis_is_unavailable_signs_the_receipt(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch, authority: Any
) -> None:
    old, new = agent.context.identity.current(), authority.svid(str(agent.context.identity.current().spiffe_id))
    now = [old]
    other = agent.context.redis.pipeline

    def pipeline(*, transaction: bool) -> Any:
        if now[0] is old:
            now[0] = new
            raise ConnectionError("unavailable")
        return other(transaction=transaction)

    monkeypatch.setattr(agent.context.identity, "current", lambda: now[0])
    monkeypatch.setattr(agent.context.redis, "pipeline", pipeline)
    await send(agent, ExecState.SUCCEEDED, EarlierReceipt.IMPOSSIBLE)
    receipt = await agent.receipt(ID)
    assert receipt is not None


async def test_result_and_output_last_as_long_as_configured(agent: LocalAgent) -> None:
    await agent.context.redis.pipeline(transaction=False).xadd(keys.output(AGENT, ID), {"f": b"x"}, id="1-1").execute()
    await send(agent, ExecState.SUCCEEDED, EarlierReceipt.IMPOSSIBLE)
    retention = agent.context.settings.output_retention.total_seconds()
    for key in (KEY, keys.output(AGENT, ID)):
        assert retention - 60 <= await agent.redis.ttl(key) <= retention  # type: ignore[attr-defined]


async def test_a_delivered_execution_is_finished_in_the_journal(agent: LocalAgent) -> None:
    await agent.context.journal.claim(ID, "ab")
    await send(agent, ExecState.SUCCEEDED, EarlierReceipt.IMPOSSIBLE)
    await agent.context.journal.flush()
    assert agent.context.journal.unfinished() == []


@pytest.mark.parametrize("reply", [0, 17, 63, None])
async def test_a_receipt_is_published_for_the_orchestrator_that_sent_the_order(
    agent: LocalAgent, reply: int | None
) -> None:
    subscription = agent.redis.pubsub()
    await subscription.psubscribe(keys.report(AGENT, "*", "*"))
    assert await subscription.get_message(timeout=PATIENCE_SECONDS)
    for earlier in EarlierReceipt:
        ending = Ending(state=ExecState.FAILED, error="why")
        await deliver(agent.context, ID, "ab", ending, Output.unknown(), earlier, reply=reply)
        if reply is not None:
            message = await subscription.get_message(timeout=PATIENCE_SECONDS)
            assert message["channel"].decode() == keys.report(AGENT, reply, ID)
            assert message["data"] == await agent.redis.get(KEY)
    assert await subscription.get_message(timeout=0.05) is None
    await subscription.aclose()
