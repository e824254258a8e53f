"""kombu's transport asks the queues in turn, and hands messages to the intake."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tachikoma_worker import transport
from tachikoma_worker.transport import LOOK_WAIT_SECONDS, AgentChannel, AgentTransport
from tachikoma_worker.turns import Turns


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


def test_a_message_goes_to_the_intake_and_to_no_consumer() -> None:
    taken: list[Any] = []
    made: Any = AgentTransport.__new__(AgentTransport)
    intake = SimpleNamespace(take=lambda *message: taken.append(message))
    made.client = SimpleNamespace(transport_options={"intake": intake})
    # Celery's consumers; kombu would raise an error for a queue that has none.
    made._callbacks = {}
    made._deliver({"body": "x"}, "agent.web-1")
    assert taken == [({"body": "x"}, "agent.web-1")]
