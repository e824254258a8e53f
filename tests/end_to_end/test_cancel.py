"""`Cancel`: running, waiting, ended; and what it answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import gone, request, wait_until

from tachikoma import CancelOutcome, Client, ExecState, NotFound, OutputKind
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import user_id


def test_a_running_command_is_killed_with_its_children(client: Client) -> None:
    wanted = request("sh", "-c", "sleep 600 & echo $! $$; wait")
    pids: list[int] = []
    result = None
    for output in client.execute_stream(wanted):
        if output.kind is OutputKind.STDOUT:
            pids = [int(pid) for pid in output.data.split()]
            answer = client.cancel(wanted.id)
            assert answer.outcome is CancelOutcome.REQUESTED
            assert answer.status.cancel_requested_by == client.spiffe_id
        elif output.kind is OutputKind.RESULT:
            result = output.result
    assert result is not None
    assert (result.state, result.cancelled) == (ExecState.CANCELLED, True)
    for pid in pids:
        wait_until(lambda pid=pid: gone(pid), f"process {pid} is gone")


def test_a_command_that_ignores_term_is_killed_after_the_grace(client: Client) -> None:
    wanted = request("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    result = None
    for output in client.execute_stream(wanted):
        if output.kind is OutputKind.STDOUT:
            client.cancel(wanted.id)
        elif output.kind is OutputKind.RESULT:
            result = output.result
    assert result is not None
    assert (result.state, result.signal) == (ExecState.CANCELLED, 9)


def test_a_cancel_can_be_repeated_and_tells_what_is(client: Client) -> None:
    wanted = request("sleep", "600")
    client.submit(wanted)
    first = client.cancel(wanted.id)
    assert first.outcome in (CancelOutcome.REQUESTED, CancelOutcome.CANCELLED)
    wait_until(lambda: client.status(wanted.id).state is ExecState.CANCELLED, "it is cancelled")
    again = client.cancel(wanted.id)
    assert again.outcome is CancelOutcome.ALREADY_ENDED
    assert again.status.state is ExecState.CANCELLED


def test_what_has_ended_stays_as_it_ended(client: Client) -> None:
    response = client.execute(request("true"))
    answer = client.cancel(response.id)
    assert answer.outcome is CancelOutcome.ALREADY_ENDED
    assert answer.status.state is ExecState.SUCCEEDED


def test_what_waits_on_the_queue_never_starts(tmp_path: Path, redis_server: Path | None) -> None:
    from support import prepare

    go, mark = tmp_path / "go", tmp_path / "mark"
    environment = {"TACHIKOMA_SLOTS": "1"}
    with (
        Stack(prepare(tmp_path), redis_server=redis_server, environment=environment) as stack,
        Client(stack.profile()) as client,
    ):
        first = request("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.01; done")
        client.submit(first)
        wait_until(lambda: client.status(first.id).state is ExecState.STARTED, "the only slot is taken")
        waiting = request("touch", str(mark))
        client.submit(waiting)
        answer = client.cancel(waiting.id)
        assert answer.outcome is CancelOutcome.CANCELLED
        assert answer.status.state is ExecState.CANCELLED
        go.touch()
        assert list(client.attach(first.id))[-1].kind is OutputKind.RESULT
        # One more, behind it on the queue: when that has run, the cancelled one's message was taken and dropped.
        assert client.execute(request("true")).exit_code == 0
        assert not mark.exists()
        assert client.status(waiting.id).state is ExecState.CANCELLED


def test_somebody_else_can_neither_see_nor_end_it(client: Client, stack: Stack) -> None:
    wanted = request("sleep", "600")
    client.submit(wanted)
    with Client(stack.issue(user_id(TRUST_DOMAIN, "mallory"))) as mallory:
        for attempt in (
            lambda: mallory.cancel(wanted.id),
            lambda: mallory.status(wanted.id),
            lambda: list(mallory.attach(wanted.id)),
        ):
            with pytest.raises(NotFound):
                attempt()
        assert wanted.id not in {status.id for status in mallory.list_page(include_ended=True)[0]}
    assert client.cancel(wanted.id).outcome in (CancelOutcome.REQUESTED, CancelOutcome.CANCELLED)


def test_the_audit_trail_tells_who_cancelled(client: Client) -> None:
    wanted = request("sleep", "600")
    client.submit(wanted)
    wait_until(lambda: client.status(wanted.id).state is ExecState.STARTED, "it runs")
    client.cancel(wanted.id)
    wait_until(lambda: client.status(wanted.id).state is ExecState.CANCELLED, "it is cancelled")
    events = client.audit(exec_id=wanted.id)
    assert [event.event for event in events] == ["admitted", "dispatched", "started", "cancel_requested", "cancelled"]
    assert [event.actor for event in events] == ["", "", "", client.spiffe_id, ""]
    # Each event can be read alone.
    for event in events:
        assert event.requested_by == client.spiffe_id
        assert event.command == "sleep 600"
        assert event.client_ip == "127.0.0.1"
        assert event.policy_applied.startswith("everybody@")
        assert event.authorized
    assert json.loads(events[0].to_json())["command"] == "sleep 600"


def test_a_killed_command_has_a_receipt_of_that(client: Client) -> None:
    cancelled = request("sh", "-c", "sleep 600 & sleep 600")
    client.submit(cancelled)
    wait_until(lambda: client.status(cancelled.id).state is ExecState.STARTED, "it runs")
    client.cancel(cancelled.id)
    timed_out = request("sleep", "600", timeout=0.2)
    for response in (list(client.attach(cancelled.id))[-1].result, client.execute(timed_out)):
        assert response is not None
        assert response.state in (ExecState.CANCELLED, ExecState.TIMED_OUT)
        assert response.kill is not None
        assert (response.kill.empty, response.kill.signals, response.kill.survivors) == (True, (15, 9), ())
    # What ended by itself was not killed.
    assert client.execute(request("true")).kill is None
