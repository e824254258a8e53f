"""Redis goes back to an older state in the middle of everything: nothing that was reported is undone.

One rollback for all tests. `rollback_scene.py` makes one execution for each part of the state that is lost, takes Redis
back while agents and orchestrator run on, and waits until the new life of Redis is reconciled. Each test is one row of
what may be lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from policies import BOSS, LEAVER
from rollback_scene import FROZEN, OFTEN, RARE, REVOKED, Scene, accepted_runs, answers, codes, open_scene
from support import AGENT, wait_until

from order_queues import waiting_orders
from patience import PATIENCE_SECONDS
from tachikoma import (
    AgentRevoked,
    BatchState,
    Client,
    DueOutcome,
    ExecRequest,
    ExecState,
    FailedPrecondition,
    NotFound,
    TargetState,
    Unauthenticated,
    Unavailable,
)
from tachikoma.audit.chain import read_events


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Scene]:
    with open_scene(tmp_path_factory.mktemp("rollback"), tmp_path_factory.mktemp("jobs"), redis_server) as made:
        yield made


def ends_as(scene: Scene, exec_id: str, wanted: ExecState) -> None:
    """Wait until the ledger has a final state of an execution; fail if it is another one."""

    def ended() -> bool:
        try:
            return scene.client.status(exec_id).state.terminal
        except (NotFound, Unavailable):
            # Its record may be restored for a few seconds.
            return False

    wait_until(ended, f"{exec_id} has a final state", 60)
    status = scene.client.status(exec_id)
    assert status.state is wanted, status.error


def test_a_caller_that_waited_gets_the_result_of_a_command_whose_record_was_lost(scene: Scene) -> None:
    assert scene.waiting is not None
    assert scene.waiting.result(timeout=PATIENCE_SECONDS).state is ExecState.SUCCEEDED
    ends_as(scene, "awaited", ExecState.SUCCEEDED)
    assert scene.jobs["awaited"].starts == 1


def test_a_lost_record_is_back_and_its_id_runs_nothing_again(scene: Scene) -> None:
    job = scene.jobs["record"]
    ends_as(scene, job.id, ExecState.SUCCEEDED)
    response = scene.client.execute(job.request)
    assert (response.state, response.stdout) == (ExecState.SUCCEEDED, job.stdout)
    assert job.starts == 1


def test_a_lost_result_is_back(scene: Scene) -> None:
    ends_as(scene, "result", ExecState.SUCCEEDED)
    assert scene.jobs["result"].starts == 1


@pytest.mark.parametrize("name", ["queued-1", "queued-2"])
def test_what_was_on_the_queue_again_had_run_and_keeps_its_result(scene: Scene, name: str) -> None:
    ends_as(scene, name, ExecState.SUCCEEDED)
    assert scene.jobs[name].starts == 1


def test_what_was_cancelled_before_its_start_stays_cancelled_and_never_starts(scene: Scene) -> None:
    ends_as(scene, "fenced", ExecState.CANCELLED)
    with scene.world.direct() as redis:
        wait_until(lambda: not waiting_orders(redis, FROZEN), "the agent has taken what was queued")
    ends_as(scene, "never-taken", ExecState.EXPIRED)
    assert scene.jobs["fenced"].starts == 0


def test_what_ended_before_its_start_is_back_if_all_of_its_record_was_lost(scene: Scene) -> None:
    ends_as(scene, "forgotten", ExecState.CANCELLED)
    ends_as(scene, "rejected-forgotten", ExecState.REJECTED)
    # A repetition of the request is no new one.
    assert scene.client.execute(scene.jobs["forgotten"].request).state is ExecState.CANCELLED
    assert scene.jobs["forgotten"].starts == 0
    assert not (scene.folder / "rejected-forgotten").exists()


def test_what_was_queued_in_the_lost_life_expires_with_the_reason(scene: Scene) -> None:
    ends_as(scene, "never-taken", ExecState.EXPIRED)
    assert "Redis went back to an older state while it was queued" in scene.client.status("never-taken").error
    assert scene.jobs["never-taken"].starts == 0


def test_a_running_execution_whose_cancel_was_lost_ends(scene: Scene) -> None:
    ends_as(scene, "running", ExecState.CANCELLED)
    assert scene.jobs["running"].starts == 1


def test_a_cancelled_batch_stays_cancelled_and_starts_no_further_target(scene: Scene) -> None:
    batch = scene.client.batch(scene.batches["cancelled-batch"])
    assert batch.state is BatchState.CANCELLED
    assert batch.totals == {TargetState.CANCELLED: 1, TargetState.NOT_STARTED: 1}
    assert scene.started_of("cancelled-batch") == [AGENT]


def test_a_batch_that_was_lost_is_back_with_its_results(scene: Scene) -> None:
    batch_id = scene.batches["lost-batch"]
    wait_until(lambda: scene.client.batch(batch_id).end_time is not None, "the batch has ended again")
    batch = scene.client.batch(batch_id)
    assert (batch.state, batch.totals) == (BatchState.DONE, {TargetState.SUCCEEDED: 1})
    assert scene.started_of("lost-batch") == [AGENT]


def test_a_session_goes_on_and_its_recording_has_all_of_it(scene: Scene) -> None:
    assert scene.session is not None
    assert scene.attached is not None
    scene.session.write(b"two\r")
    result = scene.attached.result(timeout=PATIENCE_SECONDS)
    assert result is not None
    assert (result.state, result.exit_code) == (ExecState.FAILED, 7)
    assert b"".join(scene.seen).split() == [b"got", b"one", b"got", b"two"]
    ends_as(scene, "session", ExecState.FAILED)
    [info] = wait_until(lambda: scene.client.recordings(exec_id="session"), "the recording is finished")
    assert (info.complete, info.problem, info.exit_code) == (True, "", 7)


def test_labels_are_those_of_the_last_change(scene: Scene) -> None:
    agents = {agent.id: agent for agent in scene.client.agents()}
    assert agents[AGENT].labels == {"role": "new"}


def test_a_drained_agent_stays_drained(scene: Scene) -> None:
    agents = {agent.id: agent for agent in scene.client.agents()}
    assert (agents[REVOKED].draining, agents[REVOKED].drain_reason) == (True, "a broken disk")
    assert not agents[AGENT].draining


def test_a_paused_schedule_stays_paused(scene: Scene) -> None:
    [rare] = [schedule for schedule in scene.client.schedules()[0] if schedule.name == RARE]
    assert (rare.paused, rare.pause_reason) == (True, "not now")


def test_a_revoked_person_stays_revoked(scene: Scene) -> None:
    assert [user.name for user in scene.client.users() if user.revoked] == ["leaver"]
    with Client(scene.world.issue(LEAVER)) as leaver, pytest.raises(Unauthenticated, match="was revoked"):
        leaver.agents()


def test_a_revoked_agent_stays_revoked_also_for_an_orchestrator_that_starts_later(scene: Scene) -> None:
    request = ExecRequest(agent_id=REVOKED, command=("/usr/bin/true",))
    with pytest.raises(AgentRevoked):
        scene.client.execute(request)
    scene.world.kill("orchestrator")
    scene.world.start_again("orchestrator")
    wait_until(lambda: answers(scene), "it answers again")
    with pytest.raises(AgentRevoked):
        scene.client.execute(request)


def test_a_rejected_request_stays_rejected(scene: Scene) -> None:
    ends_as(scene, "rejected", ExecState.REJECTED)
    assert "rejected by" in scene.client.status("rejected").error
    with pytest.raises((NotFound, FailedPrecondition)):
        scene.boss.approval("rejected")
    assert not (scene.folder / "rejected").exists()


def test_an_approved_request_that_ran_does_not_wait_for_its_approval_again(scene: Scene) -> None:
    ends_as(scene, "approved", ExecState.SUCCEEDED)
    assert scene.client.status("approved").approved_by == str(BOSS)
    with pytest.raises((NotFound, FailedPrecondition)):
        scene.boss.approval("approved")
    assert scene.client.approvals() == ()


def test_the_numbers_of_the_audit_trail_go_on_after_those_that_were_seen(scene: Scene) -> None:
    log = scene.world.data / "audit" / "audit.jsonl"
    wait_until(lambda: "redis_life" in log.read_text(), "the audit log has the new life")
    numbers = [event.seq for event in read_events(log)]
    # No number is used twice. Events that had not been shipped when Redis died are a gap, where the new life begins.
    gaps = [after for before, after in pairwise(numbers) if after != before + 1]
    assert numbers == sorted(set(numbers))
    assert len(gaps) <= 1
    (life,) = [event for event in read_events(log) if event.event == "redis_life"]
    assert "life 2 of Redis begins" in life.reason
    assert "is missing, so what was queued before expires" in life.reason


@pytest.mark.parametrize("name", ["record", "awaited"])
def test_output_that_was_lost_is_sent_again(scene: Scene, name: str) -> None:
    job = scene.jobs[name]
    ends_as(scene, job.id, ExecState.SUCCEEDED)
    parts = list(scene.client.attach(job.id))
    assert sum(part.missing_bytes for part in parts) == 0
    shown = {kind: b"".join(part.data for part in parts if part.kind.name == kind) for kind in ("STDOUT", "STDERR")}
    assert shown == {"STDOUT": job.stdout, "STDERR": job.stderr}


def test_output_that_no_agent_retains_is_reported_as_missing(scene: Scene) -> None:
    job = scene.jobs["old"]
    ends_as(scene, job.id, ExecState.SUCCEEDED)
    parts = list(scene.client.attach(job.id))
    result = parts[-1].result
    assert result is not None
    assert result.stdout_summary.total_bytes == len(job.stdout)
    shown = sum(len(part.data) for part in parts if part.data)
    missing = sum(part.missing_bytes for part in parts)
    assert shown + missing == len(job.stdout) + len(job.stderr)
    assert missing


def test_each_time_of_a_schedule_has_one_outcome_and_each_run_one_end(scene: Scene) -> None:
    before = len(accepted_runs(scene))
    wait_until(lambda: len(accepted_runs(scene)) > before, "the schedule goes on")
    scene.client.pause_schedule(OFTEN, "it is counted")
    settled = {DueOutcome.RUN, DueOutcome.SKIPPED, DueOutcome.MISSED}

    def decided() -> bool:
        runs = scene.client.scheduled_runs(OFTEN, limit=1000)
        return {run.outcome for run in runs} <= settled

    wait_until(decided, "no run is about to be requested")
    runs = accepted_runs(scene)
    for run in runs:
        wait_until(lambda run=run: scene.client.status(run.id).state.terminal, f"{run.id} has ended", 60)
    states = Counter(scene.client.status(run.id).state for run in runs)
    # A run that was requested again before its record was restored is LOST: its agent refuses to start it twice.
    assert states.keys() <= {ExecState.SUCCEEDED, ExecState.LOST, ExecState.EXPIRED}
    starts = len(scene.marks.read_text().splitlines())
    assert states[ExecState.SUCCEEDED] <= starts <= len(runs)
    times = sorted(run.due for run in scene.client.scheduled_runs(OFTEN, limit=1000) if run.count == 1)
    assert len(set(times)) == len(times)


def test_everything_started_at_most_once(scene: Scene) -> None:
    assert {name: job.starts for name, job in scene.jobs.items()} == {
        **dict.fromkeys(scene.jobs, 1), "fenced": 0, "forgotten": 0, "never-taken": 0,
    }  # fmt: skip
    assert codes(scene).count("record_restored") >= 2
