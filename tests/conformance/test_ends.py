"""The life of an engine: its lease and heartbeat, and what a stop does to commands and orders."""

from __future__ import annotations

import json
import platform

import pytest
from border import AGENT, Border
from support import wait_until
from traces import Traces

from tachikoma.redis import keys
from tachikoma.streams.heartbeat import LEASE_SECONDS, Heartbeat
from tachikoma.vocabulary.formats import FORMATS
from tachikoma.vocabulary.states import ExecState

pytestmark = pytest.mark.long


def test_the_heartbeat_describes_the_agent_and_is_its_lease(border: Border, traces: Traces) -> None:
    order = border.order(*traces.command(waits=True))

    def listed() -> Heartbeat | None:
        beat = border.heartbeat()
        return beat if beat is not None and order.jti in (beat.executions or ()) else None

    def published() -> list[Heartbeat]:
        return [Heartbeat.model_validate_json(raw) for raw in events.messages() if b'"heartbeat"' in raw]

    with border.listening(keys.events(AGENT)) as events:
        border.put_order(order)
        border.wait_until(lambda: traces.starts, "it runs")
        # A new life is reported at once; otherwise the test would wait for the next heartbeat.
        border.record_life(border.life + 1)
        border.settle()
        beat = border.wait_until(listed, "a heartbeat lists the execution")
        border.wait_until(lambda: beat in published(), "the heartbeat is published too")
    assert beat is not None
    assert 0 < border.redis.ttl(keys.info(AGENT)) <= LEASE_SECONDS
    assert beat.hostname == platform.node()
    assert beat.formats == FORMATS
    assert 1 <= beat.running <= beat.slots
    assert beat.trust is not None
    assert beat.trust.spiffe_id == order.aud
    assert beat.life
    traces.go()
    border.wait_for(order.jti)


def test_a_second_engine_of_an_agent_takes_no_orders(border: Border, traces: Traces) -> None:
    journal = border.journal()
    # On this host too, by mistake: its folder is its own, and its cgroups are those of the first.
    other = border.make_engine("other", DATA=str(border.data.with_name("other")))

    def contends(raw: bytes) -> bool:
        notice = json.loads(raw)
        return bool(notice["type"] == "contender" and notice["boot"] != journal)

    with border.listening(keys.events(AGENT)) as events:
        other.start()
        try:
            border.wait_until(lambda: any(map(contends, events.messages())), "the second engine contends")
            orders = [border.order(*traces.command()) for _ in range(8)]
            for order in orders:
                border.put_order(order)
            for order in orders:
                border.wait_for(order.jti)
                assert border.claim(order.jti) == journal
        finally:
            other.stop()
    assert border.journal() == journal
    assert traces.starts == len(orders)
    # The end of the second one took nothing from the first.
    last = border.order(*traces.command())
    border.put_order(last)
    border.wait_for(last.jti)
    assert traces.starts == len(orders) + 1


def test_a_stop_ends_commands_and_takes_no_more_orders(border: Border, traces: Traces) -> None:
    order, late = border.order(*traces.command(waits=True)), border.order("/bin/echo", "late")
    border.put_order(order)
    border.wait_until(lambda: traces.starts, "it runs")
    border.engine.terminate()
    wait_for_end(border)
    found = border.delivered(order.jti)
    assert found is not None
    assert found.receipt.state is ExecState.FAILED
    assert found.receipt.kill is not None
    assert found.receipt.kill.empty
    assert found.receipt.error
    assert not traces.runs
    border.put_order(late)
    border.start_engine()
    assert border.wait_for(late.jti).content("stdout") == b"late\n"


def test_an_order_that_meets_a_stop_is_answered_or_never_starts(border: Border, traces: Traces) -> None:
    first, order = border.order(*traces.command(waits=True)), border.order(*traces.command())
    border.put_order(first)
    border.wait_until(lambda: traces.starts, "it runs")
    border.engine.terminate()
    border.put_order(order)
    wait_for_end(border)
    border.start_engine()
    border.settle()
    # It was taken before the stop, or dropped, or waited on the queue for the next engine.
    starts = traces.starts
    if border.claim(order.jti) is None:
        assert starts == 1
    else:
        border.wait_for(order.jti)
        assert traces.starts <= 2


def test_commands_may_be_left_to_the_next_engine(border: Border, traces: Traces) -> None:
    border.engine.stop()
    border.start_engine(LEAVE_RUNNING="true")
    order = border.order(*traces.command("echo first", "echo second"))
    border.put_order(order)
    border.wait_until(lambda: border.output(order.jti) == b"first\n", "it runs")
    border.engine.terminate()
    wait_for_end(border)
    assert border.delivered(order.jti) is None
    assert traces.runs
    border.start_engine(LEAVE_RUNNING="false")
    traces.go()
    found = border.wait_for(order.jti)
    assert (found.receipt.state, traces.starts) == (ExecState.SUCCEEDED, 1)
    assert found.content("stdout") == border.output(order.jti) == b"first\nsecond\n"


def wait_for_end(border: Border) -> None:
    """Wait until an engine that was asked to stop has ended, without a lease."""
    process = border.engine.process
    assert process is not None
    wait_until(lambda: process.poll() is not None, "the engine ends")
    assert process.returncode == 0
    assert border.heartbeat() is None
