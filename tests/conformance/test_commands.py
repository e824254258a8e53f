"""Running commands: cancels, timeouts, notices, and output that is larger than its limits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from border import AGENT, DOMAIN, EXCERPT_BYTES, Border
from traces import Traces

from authority import Authority
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.identity.spiffe import agent_id, service_id, user_id
from tachikoma.redis import keys
from tachikoma.streams.frames import STDOUT
from tachikoma.vocabulary.states import ExecState

MIB = 1024 * 1024


# --- cancels ----------------------------------------------------------------------------------------------------------


def test_a_cancel_that_was_there_first_prevents_the_start(border: Border, traces: Traces) -> None:
    order = border.order(*traces.command())
    border.put_cancel(order)
    receipt = border.run(order).receipt
    assert (receipt.state, receipt.started_ms, receipt.exit_code, receipt.kill) == (ExecState.CANCELLED, 0, -1, None)
    assert traces.starts == 0
    # Spent all the same.
    assert border.claim(order.jti) == border.journal()


def test_a_cancel_ends_a_running_command_with_all_its_processes(border: Border, traces: Traces) -> None:
    order = border.order(*traces.command(f"sleep 600 & echo $! >> {traces.folder}/starts", waits=True))
    border.put_order(order)
    border.wait_until(lambda: traces.starts == 2, "it runs, and so does its child")
    border.put_cancel(order)
    receipt = border.wait_for(order.jti).receipt
    assert receipt.state is ExecState.CANCELLED
    assert receipt.kill is not None
    assert receipt.kill.empty
    assert not traces.runs


def by_a_stranger(border: Border, order: WorkOrder) -> None:
    border.put_cancel(order, by=border.authority.svid(str(service_id(DOMAIN, "stranger"))))


def by_the_agent(border: Border, order: WorkOrder) -> None:
    border.put_cancel(order, by=border.authority.svid(str(agent_id(DOMAIN, AGENT))))


def of_another_authority(border: Border, order: WorkOrder) -> None:
    border.put_cancel(order, by=Authority(DOMAIN).svid(str(service_id(DOMAIN, "orchestrator"))))


def for_another_agent(border: Border, order: WorkOrder) -> None:
    border.put_cancel(order, aud=str(agent_id(DOMAIN, "web-2")))


def of_another_requester(border: Border, order: WorkOrder) -> None:
    border.put_cancel(order, requested_by=str(user_id(DOMAIN, "other")))


def without_a_signature(border: Border, order: WorkOrder) -> None:
    border.redis.set(keys.cancel(AGENT, order.jti), "no.token")
    border.redis.publish(keys.control(AGENT), f"{order.jti} no.token")


@pytest.mark.parametrize(
    "send",
    [by_a_stranger, by_the_agent, of_another_authority, for_another_agent, of_another_requester, without_a_signature],
)
def test_a_cancel_that_is_not_genuine_does_nothing(
    border: Border, traces: Traces, send: Callable[[Border, WorkOrder], None]
) -> None:
    order, other = border.order(*traces.command(waits=True)), border.order(*traces.command(waits=True))
    # Beside the claim, and while it runs.
    send(border, order)
    border.put_order(order)
    border.put_order(other)
    border.wait_until(lambda: traces.starts == 2, "both run")
    send(border, order)
    # The channel keeps its order: when this one is applied, the engine has read the other.
    border.put_cancel(other)
    assert border.wait_for(other.jti).receipt.state is ExecState.CANCELLED
    traces.go()
    assert border.wait_for(order.jti).receipt.state is ExecState.SUCCEEDED


# --- times ------------------------------------------------------------------------------------------------------------


def test_a_command_is_killed_at_its_timeout(border: Border, traces: Traces) -> None:
    receipt = border.run(border.order(*traces.command(waits=True), timeout=0.3)).receipt
    assert receipt.state is ExecState.TIMED_OUT
    # A busy machine may not let it end within its grace.
    assert receipt.signal in (15, 9)
    assert receipt.exit_code == 128 + receipt.signal
    assert receipt.kill is not None
    assert receipt.kill.empty
    assert receipt.duration_us >= 290_000
    assert not traces.runs


def test_the_signal_that_ended_a_command_is_in_the_receipt(border: Border) -> None:
    receipt = border.run(border.order("/bin/sh", "-c", "kill -TERM $$")).receipt
    assert (receipt.state, receipt.exit_code, receipt.signal) == (ExecState.FAILED, 143, 15)
    assert receipt.kill is None


def test_an_execution_ends_with_its_command_and_leaves_no_process(border: Border, traces: Traces) -> None:
    # The child holds the pipe open.
    receipt = border.run(border.order(*traces.command(f"sleep 600 & echo $! >> {traces.folder}/starts"))).receipt
    assert (receipt.state, receipt.exit_code) == (ExecState.SUCCEEDED, 0)
    assert len(traces.pids) == 2
    assert not traces.runs


def test_a_start_is_announced_while_the_command_runs(border: Border, traces: Traces) -> None:
    order = border.order(*traces.command(waits=True))

    def announced(messages: list[bytes]) -> list[dict[str, Any]]:
        found = [json.loads(message) for message in messages]
        return [notice for notice in found if notice["type"] == "started" and notice["id"] == order.jti]

    with border.listening(keys.events(AGENT)) as events:
        border.put_order(order)
        border.wait_until(lambda: announced(events.messages()), "the start is announced")
        (notice,) = announced(events.messages())
    traces.go()
    assert border.wait_for(order.jti).receipt.started_ms == notice["started_ms"]


# --- output -----------------------------------------------------------------------------------------------------------


def test_output_is_readable_while_the_command_runs(border: Border, traces: Traces) -> None:
    order = border.order(*traces.command("echo first", "echo second"))
    border.put_order(order)
    border.wait_until(lambda: border.output(order.jti) == b"first\n", "the first line is in the log")
    assert border.delivered(order.jti) is None
    traces.go()
    assert border.wait_for(order.jti).content("stdout") == border.output(order.jti) == b"first\nsecond\n"


def test_a_result_has_head_and_tail_of_a_large_output_and_the_digest_of_all(border: Border) -> None:
    found = border.run(border.order("/bin/sh", "-c", "seq 10000; echo end >&2"))
    whole = "".join(f"{number}\n" for number in range(1, 10001)).encode()
    digest, excerpt = found.receipt.stdout, found.content("stdout")
    assert excerpt == whole[: EXCERPT_BYTES // 2] + whole[-EXCERPT_BYTES // 2 :]
    assert (digest.total_bytes, digest.truncated) == (len(whole), True)
    assert digest.sha256 == hashlib.sha256(whole).hexdigest()
    assert digest.excerpt_sha256 == hashlib.sha256(excerpt).hexdigest()
    assert (found.receipt.stderr.total_bytes, found.receipt.stderr.truncated) == (4, False)
    # The log has all of it.
    assert border.output(found.receipt.jti) == whole


def test_a_log_over_its_limit_keeps_beginning_and_end_under_their_numbers(border: Border) -> None:
    limit = 2 * MIB
    order = border.order("/bin/sh", "-c", "seq 1000000", grant={"output": {"limit": limit}})
    receipt = border.run(order).receipt
    whole = "".join(f"{number}\n" for number in range(1, 1_000_001)).encode()
    assert len(whole) > 2 * limit
    frames = border.frames(order.jti)
    assert receipt.stdout.total_bytes == len(whole)
    assert receipt.stdout.sha256 == hashlib.sha256(whole).hexdigest()
    assert (frames[0].seq, frames[0].offset, frames[-1].seq) == (1, 0, receipt.chunks)
    # Every chunk is what is at its offset.
    for frame in frames:
        assert frame.kind == STDOUT
        assert frame.data == whole[frame.offset : frame.offset + len(frame.data)]
    assert frames[-1].offset + len(frames[-1].data) == len(whole)
    assert len(frames) < receipt.chunks
    assert limit // 4 < sum(len(frame.data) for frame in frames) <= limit
