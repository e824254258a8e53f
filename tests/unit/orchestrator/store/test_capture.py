"""The kombu channel that keeps a message."""

from __future__ import annotations

import json
from typing import cast

import pytest
from kombu import Connection, Exchange, Producer

from tachikoma_orchestrator.store.capture import CapturingChannel, CapturingTransport


@pytest.fixture
def channel() -> CapturingChannel:
    return cast(CapturingChannel, Connection(transport=CapturingTransport).channel())


@pytest.mark.parametrize("kind", ["direct", "fanout"])
def test_the_last_message_is_kept_as_redis_stores_it(channel: CapturingChannel, kind: str) -> None:
    exchange = Exchange("there", type=kind)(channel)
    exchange.declare()
    producer = Producer(channel, auto_declare=False)
    for number in range(2):
        producer.publish({"n": number}, exchange="there", routing_key="queue", serializer="json")
    message = json.loads(channel.take())
    # The body is plain JSON, not base64.
    assert json.loads(message["body"]) == {"n": 1}
    assert message["properties"]["delivery_info"] == {"exchange": "there", "routing_key": "queue"}


def test_a_message_is_taken_once(channel: CapturingChannel) -> None:
    Producer(channel, auto_declare=False).publish({}, exchange="", routing_key="queue", serializer="json")
    assert channel.take()
    assert channel.captured is None
