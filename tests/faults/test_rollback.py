"""Redis goes back to an older state in the middle of everything: nothing that was reported is undone.

One rollback for all tests. The fixture makes one execution for each part of the state that is lost, takes Redis back
while agents and orchestrator run on, and waits until the new life of Redis is reconciled. Each test is one row of what
may be lost.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from support import AGENT, wait_until
from world import Job, World, end_of, submit

from order_queues import waiting_orders
from patience import PATIENCE_SECONDS
from tachikoma import (
    AgentRevoked,
    Client,
    DueOutcome,
    ExecRequest,
    ExecResponse,
    ExecState,
    FailedPrecondition,
    NotFound,
    ScheduledRun,
)
from tachikoma.audit.chain import read_events
from tachikoma.dev.identities import own_user
from tachikoma.dev.stack import TRUST_DOMAIN
from tachikoma.errors import TachikomaError
from tachikoma.identity.spiffe import user_id
from tachikoma.redis import keys

FROZEN, REVOKED = "agent-2", "agent-3"
#: A schedule of agent-1 that is due each second.
OFTEN = "often"
BOSS = user_id(TRUST_DOMAIN, "boss")
#: One command must be approved.
POLICY = """\
operators: ["{user}"]
policies:
  - name: runs
    subjects: ["spiffe://tachikoma.local/user/*", "spiffe://tachikoma.local/schedule/*"]
    agents: ["**"]
    allowedCommands: ["/bin/sh ...", /usr/bin/true]
    allowInterpreters: true
  - name: careful
    subjects: ["spiffe://tachikoma.local/user/*"]
    agents: ["**"]
    allowedCommands: ["/usr/bin/mkdir /tmp/**"]
    requireApproval: true
    approvers: ["spiffe://tachikoma.local/user/boss"]
"""


@dataclass
class Scene:
    """Everything that was made before and after the state to which Redis went back."""

    world: World
    client: Client
    boss: Client
    folder: Path
    #: The schedule's command appends a line to it.
    marks: Path
    jobs: dict[str, Job] = field(default_factory=dict)
    #: Requests that an approver approved and rejected.
    approved: ExecRequest | None = None
    rejected: ExecRequest | None = None
    waiting: Future[ExecResponse] | None = None

    def job(self, name: str, **values: object) -> Job:
        job = self.jobs[name] = Job.make(self.folder, name, **values)  # type: ignore[arg-type]
        return job

    def careful(self, name: str) -> ExecRequest:
        request = ExecRequest(id=name, agent_id=AGENT, command=("/usr/bin/mkdir", str(self.folder / name)))
        assert self.client.submit(request).state is ExecState.PENDING_APPROVAL
        return request

    def has_started(self, job: Job) -> bool:
        return self.client.status(job.id).state is ExecState.STARTED


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Scene]:
    data = tmp_path_factory.mktemp("rollback")
    (data / "policy.yaml").write_text(POLICY.format(user=user_id(TRUST_DOMAIN, own_user())))
    # The frozen agent keeps its lease in the eyes of the orchestrator.
    environment = {"TACHIKOMA_LEASE": "90s"}
    marks = data / "marks"
    request = {"command": ["/bin/sh", "-c", f"echo run >> {marks}"], "timeout": "30s"}
    often = {"name": OFTEN, "every": "1s", "agentId": AGENT, "request": request}
    (data / "schedules.yaml").write_text(json.dumps({"schedules": [often]}))
    with ExitStack() as stack:
        world = stack.enter_context(
            World(
                data, agents=3, redis_server=redis_server, queue_timeout="90s", environment=environment,
                schedules=str(data / "schedules.yaml"),
            )
        )  # fmt: skip
        client = stack.enter_context(Client(world.profile()))
        boss = stack.enter_context(Client(world.issue(BOSS)))
        made = Scene(world, client, boss, tmp_path_factory.mktemp("jobs"), marks)
        threads = stack.enter_context(ThreadPoolExecutor(1))
        roll_back(made, threads)
        yield made


def roll_back(scene: Scene, threads: ThreadPoolExecutor) -> None:
    """Make everything, and take Redis back in the middle."""
    world, client, older = scene.world, scene.client, scene.folder / "older"
    with world.stopped(FROZEN):
        go = scene.folder / "go"
        submit(client, scene.job("result", go=go))
        wait_until(lambda: scene.has_started(scene.jobs["result"]), "it runs")
        for name in ("fenced", "never-taken"):
            submit(client, scene.job(name, agent=FROZEN))
        scene.approved, scene.rejected = scene.careful("approved"), scene.careful("rejected")
        wait_until(lambda: accepted_runs(scene), "a run of the schedule is accepted")
        with world.stopped(AGENT):
            for name in ("queued-1", "queued-2"):
                submit(client, scene.job(name))
            with world.stopped("redis"):
                shutil.copytree(world.data / "redis", older)
        after_the_copy(scene, go, threads)
        world.redis.kill()
        shutil.rmtree(world.data / "redis")
        shutil.copytree(older, world.data / "redis")
        world.start_redis()
        wait_until(lambda: "redis_life" in codes(scene), "the new life is recorded")
    (scene.folder / "go-on").touch()


def after_the_copy(scene: Scene, go: Path, threads: ThreadPoolExecutor) -> None:
    """Do what Redis will not know."""
    client, boss = scene.client, scene.boss
    go.touch()
    before = len(accepted_runs(scene))
    for name in ("result", "queued-1", "queued-2"):
        assert end_of(client, scene.jobs[name]) is ExecState.SUCCEEDED
    assert client.cancel("fenced").outcome == "CANCELLED"
    client.revoke_agent(REVOKED, "stolen")
    assert scene.approved is not None
    boss.approve(scene.approved.id, boss.approval(scene.approved.id).digest, "fine")
    boss.reject("rejected", "not today")
    wait_until(lambda: client.status("approved").state is ExecState.SUCCEEDED, "it has run")
    submit(client, scene.job("record"))
    assert end_of(client, scene.jobs["record"]) is ExecState.SUCCEEDED
    submit(client, scene.job("old"))
    assert end_of(client, scene.jobs["old"]) is ExecState.SUCCEEDED
    # As if it had ended so long ago that its agent no longer retains its output.
    spool = scene.world.data / "agents" / AGENT / "sent" / "old"
    wait_until(spool.exists, "its output is retained")
    spool.unlink()
    wait_until(lambda: len(accepted_runs(scene)) > before, "a run that Redis will not know is accepted")
    running = scene.job("awaited", go=scene.folder / "go-on")
    scene.waiting = threads.submit(client.execute, running.request)
    wait_until(lambda: running.starts, "it runs")
    wait_until(lambda: scene.has_started(running), "its start is recorded")


def accepted_runs(scene: Scene) -> list[ScheduledRun]:
    runs = scene.client.scheduled_runs(OFTEN, limit=1000)
    return [run for run in runs if run.outcome is DueOutcome.RUN]


def codes(scene: Scene) -> list[str]:
    with scene.world.direct() as redis:
        return [fields[b"event"].decode() for _, fields in redis.xrange(keys.AUDIT)]


def ends_as(scene: Scene, exec_id: str, wanted: ExecState) -> None:
    """Wait until the ledger has a final state of an execution; fail if it is another one."""

    def ended() -> bool:
        try:
            return scene.client.status(exec_id).state.terminal
        except NotFound:
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


def test_what_was_queued_in_the_lost_life_expires_with_the_reason(scene: Scene) -> None:
    ends_as(scene, "never-taken", ExecState.EXPIRED)
    assert "Redis went back to an older state while it was queued" in scene.client.status("never-taken").error
    assert scene.jobs["never-taken"].starts == 0


def test_a_revoked_agent_stays_revoked_also_for_an_orchestrator_that_starts_later(scene: Scene) -> None:
    request = ExecRequest(agent_id=REVOKED, command=("/usr/bin/true",))
    with pytest.raises(AgentRevoked):
        scene.client.execute(request)
    scene.world.kill("orchestrator")
    scene.world.start_again("orchestrator")
    wait_until(lambda: answers(scene), "it answers again")
    with pytest.raises(AgentRevoked):
        scene.client.execute(request)


def answers(scene: Scene) -> bool:
    try:
        return bool(scene.client.agents())
    except TachikomaError:
        return False


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
        **dict.fromkeys(scene.jobs, 1), "fenced": 0, "never-taken": 0,
    }  # fmt: skip
    assert codes(scene).count("record_restored") >= 2
