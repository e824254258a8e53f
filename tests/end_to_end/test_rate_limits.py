"""Rate limits as callers meet them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from support import make_cli, prepare, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecRequest, ExecState, ResourceExhausted
from tachikoma.dev.stack import Stack


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    data = prepare(tmp_path_factory.mktemp("rates"))
    file = data / "policy.yaml"
    file.write_text(file.read_text() + "    rateLimit: {requestsPerMinute: 4, concurrentLimit: 2}\n")
    with Stack(data, redis_server=redis_server) as stack:
        yield stack


def test_limits_of_a_policy_are_refusals_that_say_when_and_are_on_the_record(strict: Stack) -> None:
    with Client(strict.profile()) as client:
        running = [ExecRequest(agent_id="agent-1", command=("sleep", "1000")) for _ in range(2)]
        for request in running:
            client.submit(request)
        with pytest.raises(ResourceExhausted, match="too many executions that have not ended") as refused:
            client.execute(ExecRequest(agent_id="agent-1", command=("true",)))
        assert refused.value.retry_after_seconds == 1
        for request in running:
            client.cancel(request.id)
        for request in running:
            wait_until(lambda request=request: client.status(request.id).state is ExecState.CANCELLED, "it has ended")
        # What ended is given back; what was accepted in the last minute is not.
        executed = 0

        def used_up() -> ResourceExhausted | None:
            nonlocal executed
            try:
                assert client.execute(ExecRequest(agent_id="agent-1", command=("true",))).exit_code == 0
            except ResourceExhausted as error:
                return error
            executed += 1
            return None

        # On a slow machine the first requests are older than a minute by now, and more are accepted.
        refusal = wait_until(used_up, "the requests of a minute are used up")
        assert executed >= 2
        assert "too many requests in the last minute" in str(refusal)
        assert 0 < refusal.retry_after_seconds <= 60.1
        reasons = [event.reason for event in client.audit(limit=100) if event.event == "limited"]
        assert reasons == ["CONCURRENT", "RATE"]
    cli = make_cli(strict)
    done = wait_until(lambda: (ran := cli.run("exec", "agent-1", "true")).returncode and ran, "the command is refused")
    assert done.returncode == 125
    assert b"too many requests in the last minute" in done.stderr


def limited(client: Client) -> int:
    """How often a request was refused for a limit."""
    return sum(event.event == "limited" for event in client.audit(limit=100))


def test_a_patient_client_waits_and_comes_again(tmp_path: Path, redis_server: Path | None) -> None:
    data = prepare(tmp_path)
    file = data / "policy.yaml"
    file.write_text(file.read_text() + "    rateLimit: {concurrentLimit: 1}\n")
    with (
        Stack(data, redis_server=redis_server) as stack,
        Client(stack.profile(), patience=timedelta(minutes=10)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        calls = (client.execute, lambda request: list(client.execute_stream(request))[-1].result)
        for number, call in enumerate(calls, 1):
            go = tmp_path / f"go-{number}"
            command = ("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.05; done")
            first = ExecRequest(agent_id="agent-1", command=command)
            client.submit(first)
            second = pool.submit(call, ExecRequest(agent_id="agent-1", command=("true",)))
            wait_until(lambda number=number: limited(client) >= number, "it is refused for now")
            go.touch()
            assert second.result(PATIENCE_SECONDS).exit_code == 0
            assert client.status(first.id).state.terminal
        client.submit(ExecRequest(agent_id="agent-1", command=("sleep", "1000")))
        with (
            Client(stack.profile(), patience=timedelta(seconds=0.5)) as hasty,
            pytest.raises(ResourceExhausted),
        ):
            hasty.execute(ExecRequest(agent_id="agent-1", command=("true",)))
