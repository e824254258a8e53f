"""Batches through the whole system: real agents, real receipts, the command line, an orchestrator that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Cli, make_cli, prepare, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import BatchRequest, BatchState, BatchUpdate, Client, ExecState, HealthGate, NotFound, TargetState
from tachikoma.dev.stack import Stack
from tachikoma.identity.spiffe import user_id

AGENTS = 4


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    data = prepare(tmp_path_factory.mktemp("batches"))
    with Stack(data, agents=AGENTS, redis_server=redis_server) as running:
        yield running


@pytest.fixture(scope="module")
def cli(stack: Stack) -> Cli:
    return make_cli(stack)


def batch(*command: str, **values: object) -> BatchRequest:
    return BatchRequest(**{"targets": ("agent-*",), "command": command, "timeout": 600, **values})  # type: ignore[arg-type]


def text(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stdout.decode()


def test_every_target_answers_and_equal_output_comes_once(client: Client) -> None:
    script = 'test "$1" = agent-2 && echo other || echo same'
    updates = list(client.run(batch("sh", "-c", script, "sh", "{agent}")))
    assert updates[0].status is not None
    results = {update.result.agent_id: update.result for update in updates if update.result}
    assert set(results) == {f"agent-{number}" for number in range(1, AGENTS + 1)}
    assert {result.state for result in results.values()} == {TargetState.SUCCEEDED}
    assert sorted(result.stdout for result in results.values() if result.stdout is not None) == [b"other\n", b"same\n"]
    last = updates[-1].status
    assert last is not None
    assert (last.state, last.totals) == (BatchState.DONE, {TargetState.SUCCEEDED: AGENTS})
    one = client.status(results["agent-1"].exec_id)
    assert (one.state, one.command[-1]) == (ExecState.SUCCEEDED, "agent-1")


def test_run_shows_hosts_groups_and_totals(cli: Cli) -> None:
    script = 'test "$1" = agent-2 && exit 3; echo hello'
    done = cli.run("run", "agent-[1-4],agent-9", "--", "sh", "-c", script, "sh", "{agent}")
    assert done.returncode == 125
    lines = text(done).splitlines()
    assert {line for line in lines if line.startswith("agent-")} == {f"agent-{n}  hello" for n in (1, 3, 4)}
    assert "--- 3 (60 %) agent-[1,3-4]: succeeded" in lines
    errors = done.stderr.decode()
    assert "agent-2  failed with exit code 3" in errors
    assert "1 unreachable: agent-9" in errors
    assert "3 of 5 targets succeeded" in errors


def test_equal_answers_are_printed_once_and_others_as_a_difference(cli: Cli) -> None:
    script = 'echo one; test "$1" = agent-2 && echo 2 || echo two'
    done = cli.run("run", "-q", "--diff", "agent-*", "--", "sh", "-c", script, "sh", "{agent}")
    assert done.returncode == 0
    lines = text(done).splitlines()
    assert lines[:3] == ["--- 3 (75 %) agent-[1,3-4]: succeeded", "one", "two"]
    assert lines[3] == "--- 1 (25 %) agent-2: succeeded"
    assert {"-two", "+2"} <= set(lines[4:])


def test_output_that_is_cut_is_reported_and_still_grouped_by_all_of_it(cli: Cli) -> None:
    """Two hosts differ only after the 64 KiB that a watched batch sends."""
    script = 'head -c 100000 /dev/zero | tr "\\0" x; test "$1" = agent-2 && echo 2 || true'
    arguments = ("agent-[1-3]", "--", "sh", "-c", script, "sh", "{agent}")
    done = cli.run("run", "-q", *arguments)
    notices = {line.partition(";")[0] for line in done.stderr.decode().splitlines() if " bytes of " in line}
    sizes = {"agent-1": 100_000, "agent-2": 100_002, "agent-3": 100_000}
    assert notices == {f"{agent}  65536 of {size} bytes of standard output" for agent, size in sizes.items()}
    lines = text(cli.run("run", "-q", "--diff", *arguments)).splitlines()
    assert lines[0] == "--- 2 (67 %) agent-[1,3]: succeeded"
    assert lines[1].startswith("--- 65536 of 100000 bytes of standard output; all of them: `tachikoma logs ")
    assert lines[2:4] == ["x" * 65536, "--- 1 (33 %) agent-2: succeeded"]
    assert lines[4].startswith("--- 65536 of 100002 bytes of standard output; ")
    assert lines[5:] == ["--- only the parts that are here are compared: these do not differ"]


def test_exit_code_and_json(cli: Cli) -> None:
    done = cli.run("run", "-o", "json", "agent-[1-2]", "--", "false")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["batch"]["totals"] == {"FAILED": 2}
    assert [result["exitCode"] for result in found["results"]] == [1, 1]
    done = cli.run("run", "-o", "jsonl", "agent-1", "--", "true")
    assert done.returncode == 0
    updates = [BatchUpdate.model_validate_json(line) for line in text(done).splitlines()]
    assert updates[0].result is not None
    assert updates[-1].status is not None


def test_preview_starts_nothing(cli: Cli, client: Client) -> None:
    before = len(client.batches())
    done = cli.run("run", "--preview", "agent-*,agent-9", "--", "reboot")
    assert done.returncode == 0
    assert "1 unreachable: unknown: agent-9" in text(done)
    assert "5 targets, digest" in text(done)
    assert "4 denied" in text(done)
    assert len(client.batches()) == before


def test_a_file_of_targets_and_a_retry_of_what_failed(cli: Cli, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    hosts = tmp_path / "hosts"
    hosts.write_text("agent-[1-3] # three\n")
    script = f'test "$1" = agent-2 && test ! -e {mark} && exit 1; true'
    first = cli.run("run", "-o", "json", "-f", str(hosts), "--", "sh", "-c", script, "sh", "{agent}")
    assert first.returncode == 1
    batch_id = json.loads(first.stdout)["batch"]["id"]
    mark.touch()
    again = cli.run("run", "-o", "json", "--retry", batch_id, "failed")
    assert again.returncode == 0
    assert [result["agentId"] for result in json.loads(again.stdout)["results"]] == ["agent-2"]
    same = cli.run("batches", "retry", "-o", "json", batch_id)
    assert same.returncode == 0
    assert [result["agentId"] for result in json.loads(same.stdout)["results"]] == ["agent-2"]
    assert "no target of the batch" in cli.run("batches", "retry", batch_id, "unreachable").stderr.decode()
    shown = cli.run("batches", "status", "--group", batch_id)
    assert "1 failed: agent-2" in shown.stderr.decode()
    assert batch_id[:8] in text(cli.run("batches", "ls"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "agent-1"), "targets and command are required"),
        (("run", "mail-*", "--", "true"), "no agent matches 'mail-*'"),
        (("run", "--retry", "never", "failed"), "there is no batch 'never' of yours"),
    ],
)
def test_mistakes_are_one_line(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    done = cli.run(*arguments)
    assert done.returncode in (1, 125)
    assert message in done.stderr.decode()
    assert len(done.stderr.splitlines()) == 1


def test_a_cancelled_batch_ends_what_runs_and_starts_no_more(client: Client) -> None:
    wanted = batch("sleep", "600", parallel="2")
    client.submit_batch(wanted)
    wait_until(lambda: client.batch(wanted.id).totals.get(TargetState.RUNNING) == 2, "two run")
    status = client.cancel_batch(wanted.id)
    assert status.state is BatchState.CANCELLED
    last = list(client.watch_batch(wanted.id))[-1].status
    assert last is not None
    assert last.totals == {TargetState.CANCELLED: 2, TargetState.NOT_STARTED: 2}
    assert client.cancel_batch(wanted.id).end_time == last.end_time


def test_ctrl_c_cancels_the_batch(cli: Cli, client: Client) -> None:
    process = cli.start("run", "--id", "interrupted", "agent-[1-2]", "--", "sleep", "600")

    def running() -> bool:
        try:
            return client.batch("interrupted").totals.get(TargetState.RUNNING) == 2
        except NotFound:
            return False

    wait_until(running, "both run")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 125
    assert "2 cancelled: agent-[1-2]" in errors.decode()


def test_a_failed_health_gate_stops_the_batch_before_its_next_wave(cli: Cli, client: Client, tmp_path: Path) -> None:
    """The gate succeeds once: before the first wave."""
    check = f"sh -c 'test ! -e {tmp_path}/checked && touch {tmp_path}/checked'"
    done = cli.run("run", "--id", "gated", "--wave", "1", "--gate", "agent-3", check, "agent-[1-2]", "--", "true")
    assert done.returncode == 125
    status = client.batch("gated")
    assert (status.state, status.totals) == (
        BatchState.STOPPED, {TargetState.SUCCEEDED: 1, TargetState.NOT_STARTED: 1},
    )  # fmt: skip
    gate = client.status(status.reason.split()[3])
    assert (gate.state, gate.agent_id) == (ExecState.FAILED, "agent-3")
    assert "ended as FAILED with exit code 1, before targets 2 to 2 of 2" in done.stderr.decode()


def test_a_cancelled_batch_ends_its_health_gate(client: Client) -> None:
    gate = HealthGate(agent_id="agent-3", command=("sleep", "601"), timeout=600)  # type: ignore[arg-type]
    wanted = batch("true", gate=gate)
    client.submit_batch(wanted)

    def gates() -> list[ExecState]:
        found = client.list_page(include_ended=True, page_size=100)[0]
        return [item.state for item in found if item.command == ("sleep", "601")]

    wait_until(lambda: gates() == [ExecState.STARTED], "the gate runs")
    assert client.cancel_batch(wanted.id).totals == {TargetState.NOT_STARTED: AGENTS}
    wait_until(lambda: gates() == [ExecState.CANCELLED], "the gate was cancelled")


def test_a_batch_belongs_to_its_requester(stack: Stack, client: Client) -> None:
    wanted = batch("true", targets=("agent-1",))
    list(client.run(wanted))
    with Client(stack.issue(user_id("tachikoma.local", "mallory"))) as other:
        with pytest.raises(NotFound):
            other.batch(wanted.id)
        with pytest.raises(NotFound):
            other.cancel_batch(wanted.id)
        assert wanted.id not in {status.id for status in other.batches()}


def test_the_trail_names_the_batch(client: Client) -> None:
    wanted = batch("true", targets=("agent-1",))
    list(client.run(wanted))
    events = [event for event in client.audit(limit=100) if event.batch == wanted.id]
    codes = {event.event for event in events}
    assert codes - {"started"} == {"batch_submitted", "admitted", "dispatched", "succeeded", "batch_ended"}


def test_a_batch_survives_the_orchestrator_that_drives_it(stack: Stack, client: Client, tmp_path: Path) -> None:
    """SIGKILL twice in the middle: each target runs once, and the watching client sees the end."""
    runs = tmp_path / "runs"
    runs.mkdir()
    script = f"mktemp {runs}/$1.XXXXXX; sleep 1"
    wanted = batch("sh", "-c", script, "sh", "{agent}", parallel="1")
    found: list[BatchUpdate] = []
    thread = threading.Thread(target=lambda: found.extend(client.run(wanted)))
    thread.start()
    for number in (1, 2):
        wait_until(lambda number=number: len(os.listdir(runs)) >= number, f"{number} ran")
        stack.orchestrator.kill()
        stack.orchestrator.start()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert sorted(name.partition(".")[0] for name in os.listdir(runs)) == [f"agent-{n}" for n in range(1, AGENTS + 1)]
    assert found[-1].status is not None
    assert found[-1].status.totals == {TargetState.SUCCEEDED: AGENTS}
