"""The Celery message of an order, as a stock kombu consumer reads it from a real Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection, Consumer, Queue
from kombu.message import Message

from patience import PATIENCE_SECONDS
from tachikoma.redis import keys
from tachikoma.redis.access import celery_url
from tachikoma.redis.commands import Redis
from tachikoma.redis.keys import EXECUTE_TASK
from tachikoma_orchestrator.admission.celery_message import MessageFactory

ORDER = "eyJhbGciOiJFUzI1NiJ9." + "x" * 2000 + ".signature"
SHOWN = "app --password '***' 'ä€😀'"


def message(exec_id: str = "job-7", order: str = ORDER, shown: str = SHOWN, agent: str = "web-1") -> bytes:
    return MessageFactory().message(agent, exec_id, order, expires_seconds=600, shown=shown)


@contextmanager
def consumer(redis_url: str, agent: str = "web-1") -> Iterator[list[Message]]:
    """The messages that a stock kombu consumer receives with the agent's transport options."""
    received: list[Message] = []
    options = {"ack_emulation": False, "priority_steps": [0], "fanout_prefix": f"/{agent}.", "polling_interval": 1}
    with Connection(celery_url(redis_url), transport_options=options) as connection:
        queue = Queue(keys.queue(agent), routing_key=keys.queue(agent))
        with Consumer(connection, [queue], accept=["json"], callbacks=[lambda _body, item: received.append(item)]):
            connection.drain_events(timeout=PATIENCE_SECONDS)
            yield received


async def test_a_kombu_consumer_understands_the_message(redis: Redis, redis_url: str) -> None:
    before = datetime.now(UTC)
    await redis.lpush(keys.queue("web-1"), message())
    with consumer(redis_url) as received:
        [item] = received
        args, kwargs, embedded = item.payload
        item.ack()
    assert (args, kwargs) == ([ORDER], {})
    assert embedded == {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    assert item.headers["id"] == item.headers["root_id"] == item.properties["correlation_id"] == "web-1.job-7"
    assert item.headers["task"] == EXECUTE_TASK == "tachikoma.execute"
    assert item.headers["argsrepr"] == SHOWN
    assert item.headers["kwargsrepr"] == "{}"
    assert item.headers["origin"] == "tachikoma"
    assert item.headers["ignore_result"] is True
    assert (item.content_type, item.content_encoding) == ("application/json", "utf-8")
    assert item.delivery_info["routing_key"] == "agent.web-1"
    expires = datetime.fromisoformat(item.headers["expires"])
    assert timedelta(seconds=590) < expires - before < timedelta(seconds=660)
    assert item.headers["eta"] is None
    assert await redis.llen(keys.queue("web-1")) == 0


@pytest.mark.parametrize("order", ["", "x" * 7_000_000, 'ä€😀\0\n"\\'], ids=["empty", "7 MB", "odd"])
async def test_any_order_arrives_as_it_was_sent(redis: Redis, redis_url: str, order: str) -> None:
    await redis.lpush(keys.queue("web-1"), message(order=order, shown="x"))
    with consumer(redis_url) as received:
        assert received[0].payload[0] == [order]
        received[0].ack()


async def test_reading_a_message_leaves_no_key_that_agents_share(redis: Redis, redis_url: str) -> None:
    await redis.lpush(keys.queue("web-1"), message())
    with consumer(redis_url) as received:
        received[0].ack()
    left = {key.decode() for key in await redis.keys()}
    assert all(name == "_kombu.binding.agent.web-1" or name.startswith("_kombu.binding_permanent.") for name in left)


async def test_messages_of_one_factory_do_not_mix(redis: Redis, redis_url: str) -> None:
    factory = MessageFactory()
    for number in range(3):
        agent, exec_id, order = f"web-{number % 2}", f"job-{number}", f"order-{number}"
        raw = factory.message(agent, exec_id, order, expires_seconds=600, shown=f"shown-{number}")
        await redis.lpush(keys.queue(agent), raw)
    seen: list[tuple[Any, ...]] = []
    for agent, count in (("web-0", 2), ("web-1", 1)):
        for _ in range(count):
            with consumer(redis_url, agent) as received:
                for item in received:
                    seen.append((agent, item.headers["id"], item.payload[0], item.headers["argsrepr"]))
                    item.ack()
    assert seen == [
        ("web-0", "web-0.job-0", ["order-0"], "shown-0"),
        ("web-0", "web-0.job-2", ["order-2"], "shown-2"),
        ("web-1", "web-1.job-1", ["order-1"], "shown-1"),
    ]


def test_the_message_is_one_line_of_json_with_its_queue() -> None:
    raw = message()
    assert b"\n" not in raw
    envelope = json.loads(raw)
    assert envelope["properties"]["delivery_info"] == {"exchange": "", "routing_key": "agent.web-1"}
    # Text within JSON, not base64 around it: the order is the largest part.
    assert len(raw) < len(ORDER) + 2000
    assert ORDER in envelope["body"]


def test_two_messages_of_the_same_order_differ_only_in_their_delivery_tag() -> None:
    one, two = json.loads(message()), json.loads(message())
    assert one["properties"].pop("delivery_tag") != two["properties"].pop("delivery_tag")
    for envelope in (one, two):
        del envelope["headers"]["expires"]
    assert one == two


FACTORY = MessageFactory()


@given(st.text(max_size=50), st.text(max_size=50), st.floats(min_value=0, max_value=1e6))
def test_a_message_is_the_one_that_celery_makes(order: str, shown: str, seconds: float) -> None:
    made, celery = (
        json.loads(make("web-1", "job-7", order, expires_seconds=seconds, shown=shown))
        for make in (FACTORY.message, FACTORY.of_celery)
    )
    for message in (made, celery):
        # Random, and a time.
        assert len(message["properties"].pop("delivery_tag")) == 36
    ends = [datetime.fromisoformat(message["headers"].pop("expires")) for message in (made, celery)]
    assert timedelta(0) <= ends[1] - ends[0] < timedelta(seconds=PATIENCE_SECONDS)
    assert made == celery
    assert list(made) == list(celery)
    assert list(made["headers"]) == list(celery["headers"])
