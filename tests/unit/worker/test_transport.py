"""Of a message, only its order and its task id reach Celery."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.redis.keys import EXECUTE_TASK
from tachikoma_worker import transport
from tachikoma_worker.transport import LOOK_WAIT_SECONDS, AgentChannel, plain
from tachikoma_worker.turns import Turns

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def message(body: Any = None, **headers: Any) -> dict[str, Any]:
    return {
        "body": json.dumps([["order"], {}, {}] if body is None else body),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": EXECUTE_TASK, "id": "web-1.job-7", **headers},
        "properties": {"reply_to": "x", "delivery_info": {"routing_key": "agent.web-2"}},
    }


def test_order_and_task_id_are_passed_on() -> None:
    found = plain(message(), "agent.web-1")
    assert json.loads(found["body"]) == [["order"], {}, {}]
    assert found["headers"]["id"] == "web-1.job-7"
    assert found["properties"]["delivery_info"] == {"exchange": "", "routing_key": "agent.web-1"}


def test_everything_else_in_a_message_is_left_out() -> None:
    hostile = message(
        [["order"], {"x": 1}, {"chord": {}, "callbacks": [{"task": "evil"}]}],
        eta="2030-01-01", compression="zlib", group="g", retries=3, timelimit=[1, 1], expires="x",
    )  # fmt: skip
    found = plain(hostile, "agent.web-1")
    assert set(found["headers"]) == {"task", "id", "lang", "ignore_result"}
    assert json.loads(found["body"]) == [["order"], {}, {}]
    assert "reply_to" not in found["properties"]


def test_each_message_has_a_tag_of_its_own() -> None:
    tags = {plain(message(), "q")["properties"]["delivery_tag"] for _ in range(20)}
    assert len(tags) == 20


@pytest.mark.parametrize(
    "wrong",
    [
        message(task="other"),
        {**message(), "content-type": "application/x-python-serialize"},
        message([["a", "b"], {}, {}]),
        message([[1], {}, {}]),
        message([["\xe9"], {}, {}]),
        message([["order"], {}]),
        message(id=None),
        message(id=["x"]),
        {**message(), "body": "["},
        {"body": ""},
        {**message(), "headers": None},
    ],
)
def test_a_message_that_the_orchestrator_does_not_make_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        plain(wrong, "agent.web-1")


@given(JSON, st.dictionaries(st.sampled_from(["task", "id", "eta", "x"]), JSON, max_size=4))
def test_no_body_and_no_header_gets_anything_else_through(body: Any, headers: dict[str, Any]) -> None:
    try:
        found = plain(message(body, **headers), "q")
    except (ValueError, TypeError, KeyError):
        return
    (order,), arguments, options = json.loads(found["body"])
    assert isinstance(order, str)
    assert arguments == options == {}
    assert found["headers"]["task"] == EXECUTE_TASK


class Wire:
    """A connection that records what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def send_command(self, *command: Any) -> None:
        self.sent.append(command)


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> AgentChannel:
    """A channel of an agent with 16 slots and two queues, without a server."""
    made: Any = AgentChannel.__new__(AgentChannel)
    monkeypatch.setattr(AgentChannel, "active_queues", ["busy", "other"])
    made._queue_cycle = SimpleNamespace(consume=lambda count: ["busy", "other"][:count])
    made.__dict__["client"] = SimpleNamespace(connection=Wire())
    made.priority_steps, made.global_keyprefix, made.brpop_timeout = [0], "", 5
    made.turns = Turns(16)
    return cast(AgentChannel, made)


def sent(channel: AgentChannel) -> list[tuple[Any, ...]]:
    return cast("list[tuple[Any, ...]]", channel.client.connection.sent)


def test_all_queues_are_asked_while_slots_are_free(channel: AgentChannel) -> None:
    channel._brpop_start()
    assert sent(channel) == [("BRPOP", "busy", "other", 5)]


def test_the_reserved_slot_is_looked_for_now_and_then_without_a_wait(
    channel: AgentChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert channel.turns is not None
    woken: list[float] = []
    channel.turns.use(SimpleNamespace(call_later=lambda seconds, _: woken.append(seconds)))
    now = 1000.0
    monkeypatch.setattr(transport, "monotonic", lambda: now)
    for _ in range(15):
        channel.turns.begin("busy")
    for _ in range(3):
        channel._brpop_start()
    assert sent(channel) == [("BRPOP", "other", LOOK_WAIT_SECONDS)]
    # The hub sleeps until then, and not for longer.
    assert woken == [transport.WAKE_SECONDS]
    now += transport.WAKE_SECONDS
    channel._brpop_start()
    assert len(sent(channel)) == 2
    # As soon as a slot is free that is not reserved, all are asked again.
    channel.turns.end("busy")
    channel._brpop_start()
    assert sent(channel)[-1] == ("BRPOP", "busy", "other", 5)


def test_no_queue_is_asked_while_no_slot_is_free(channel: AgentChannel) -> None:
    assert channel.turns is not None
    for _ in range(16):
        channel.turns.begin("busy")
    channel._brpop_start()
    assert sent(channel) == []
