"""Redis that is lost for a while: connections break, the server restarts, or it comes back with less than it had."""

from __future__ import annotations

import pytest
from border import AGENT, Border
from support import wait_until
from traces import Traces

from tachikoma.redis import keys
from tachikoma.redis.users import agent_user
from tachikoma.vocabulary.states import ExecState

pytestmark = pytest.mark.long


def test_broken_connections_cost_no_result_and_no_cancel(border: Border, traces: Traces) -> None:
    finished = border.order(*traces.command("echo first", "echo second"))
    cancelled = border.order(*traces.command(waits=True))
    border.put_order(finished)
    border.put_order(cancelled)
    border.wait_until(lambda: traces.starts == 2 and border.output(finished.jti), "both run")
    assert border.redis.execute_command("CLIENT", "KILL", "USER", agent_user(AGENT)) > 0
    # The subscription to cancels is broken as well: the stored one is found.
    border.put_cancel(cancelled)
    assert border.wait_for(cancelled.jti).receipt.state is ExecState.CANCELLED
    traces.go()
    found = border.wait_for(finished.jti)
    assert found.receipt.state is ExecState.SUCCEEDED
    assert found.content("stdout") == border.output(finished.jti) == b"first\nsecond\n"


def test_a_command_ends_while_redis_is_away_and_is_reported_in_its_next_life(border: Border, traces: Traces) -> None:
    order = border.order(*traces.command("echo first", "echo second"))
    border.put_order(order)
    border.wait_until(lambda: border.output(order.jti) == b"first\n", "it has output")
    border.stop_redis()
    traces.go()
    wait_until(lambda: not traces.runs, "it ends without Redis")
    border.start_redis()
    record = border.record_life(border.life + 1)
    found = border.wait_for(order.jti)
    assert found.receipt.state is ExecState.SUCCEEDED
    assert found.content("stdout") == border.output(order.jti) == b"first\nsecond\n"
    assert [frame.seq for frame in border.frames(order.jti)] == list(range(1, found.receipt.chunks + 1))
    border.wait_until(lambda: life_of(border) == record, "the heartbeat names the life")
    # Orders of the life before are still good: nothing was lost.
    assert border.run(border.order("/bin/true", order={"life": border.life - 1})).receipt.state is ExecState.SUCCEEDED


def test_claims_results_and_output_come_back_after_a_loss_of_data(border: Border, traces: Traces) -> None:
    order, running = border.order("/bin/echo", "hello"), border.order(*traces.command("echo first", "echo second"))
    token = border.put_order(order)
    end = border.wait_for(order.jti)
    frames = border.frames(order.jti)
    border.put_order(running)
    border.wait_until(lambda: border.output(running.jti) == b"first\n", "it has output")
    journal = border.journal()
    border.stop_redis()
    border.forget_everything()
    border.start_redis()
    assert border.delivered(order.jti) is None
    record = border.record_life(border.life + 1, valid_from=border.life + 1)
    # The heartbeat says so only when everything was written.
    border.wait_until(lambda: life_of(border) == record, "the heartbeat names the life")
    assert border.delivered(order.jti) == end
    assert border.frames(order.jti) == frames
    assert border.claim(order.jti) == border.claim(running.jti) == journal
    assert border.redis.hget(keys.orders(AGENT), order.jti) == token.encode()
    traces.go()
    found = border.wait_for(running.jti)
    assert found.content("stdout") == b"first\nsecond\n"
    assert (found.receipt.state, traces.starts) == (ExecState.SUCCEEDED, 1)
    # Still at most once.
    border.put(token, order.jti)
    border.settle()
    assert border.delivered(order.jti) == end


def life_of(border: Border) -> str:
    """Return the life that the heartbeat names; empty for none."""
    beat = border.heartbeat()
    return "" if beat is None else beat.life
