"""Everything that is made before and after the state to which Redis goes back in `test_rollback.py`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from policies import BOSS, write_policy
from support import AGENT, wait_until, write_at_once
from world import Job, World, end_of, submit

from tachikoma import (
    BatchRequest,
    BatchState,
    Client,
    DueOutcome,
    ExecRequest,
    ExecResponse,
    ExecState,
    ScheduledRun,
)
from tachikoma.client.sync import Session
from tachikoma.errors import TachikomaError
from tachikoma.redis import keys

__all__ = [
    "FROZEN", "OFTEN", "RARE", "REVOKED", "Scene", "accepted_runs", "answers", "codes", "open_scene",
]  # fmt: skip

FROZEN, REVOKED = "agent-2", "agent-3"
#: A schedule of agent-1 that is due each second.
OFTEN = "often"
#: One that is not due, and that is paused.
RARE = "rare"


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
    #: An interactive execution, and all that its caller sees.
    session: Session | None = None
    seen: list[bytes] = field(default_factory=list)
    attached: Future[ExecResponse | None] | None = None
    #: Ids of batches by their name.
    batches: dict[str, str] = field(default_factory=dict)

    def job(self, name: str, **values: object) -> Job:
        job = self.jobs[name] = Job.make(self.folder, name, **values)  # type: ignore[arg-type]
        return job

    def careful(self, name: str) -> ExecRequest:
        request = ExecRequest(id=name, agent_id=AGENT, command=("/usr/bin/mkdir", str(self.folder / name)))
        assert self.client.submit(request).state is ExecState.PENDING_APPROVAL
        return request

    def batch(self, name: str, *targets: str, then: str = "true") -> None:
        """Submit a batch whose targets append a line to a file and do something else, one after the other."""
        command = ("/bin/sh", "-c", f"echo {{agent}} >> {self.folder / name}; {then}")
        request = BatchRequest(targets=targets, command=command, parallel="1", timeout=60)
        self.batches[name] = self.client.submit_batch(request).id

    def started_of(self, batch: str) -> list[str]:
        """The targets of a batch that started, by their own word."""
        mark = self.folder / batch
        return mark.read_text().split() if mark.exists() else []

    def attach(self) -> ExecResponse | None:
        """Read a session to its end."""
        assert self.session is not None
        result = None
        for message in self.session:
            self.seen.append(message.data)
            result = message.result or result
        return result

    def close_session(self) -> None:
        """End the session, unless it has ended."""
        if self.session is not None:
            with suppress(TachikomaError):
                self.session.close()

    def has_seen(self, text: bytes) -> bool:
        """Whether the caller of the session has seen a text."""
        return text in b"".join(self.seen)

    def has_started(self, job: Job) -> bool:
        return self.client.status(job.id).state is ExecState.STARTED


@contextmanager
def open_scene(data: Path, folder: Path, redis_server: Path | None) -> Iterator[Scene]:
    """Make the scene, and take Redis back in the middle of it."""
    write_policy(data)
    # The frozen agent keeps its lease in the eyes of the orchestrator.
    environment = {"TACHIKOMA_LEASE": "90s", "TACHIKOMA_RECORDINGS": str(data / "recordings")}
    (data / "recordings").mkdir()
    marks = data / "marks"
    request = {"command": ["/bin/sh", "-c", f"echo run >> {marks}"], "timeout": "30s"}
    schedules = [
        {"name": OFTEN, "every": "1s", "agentId": AGENT, "request": request},
        {"name": RARE, "every": "24h", "agentId": AGENT, "request": {"command": ["/usr/bin/true"]}},
    ]
    (data / "schedules.yaml").write_text(json.dumps({"schedules": schedules}))
    with ExitStack() as stack:
        world = stack.enter_context(
            World(
                data, agents=3, redis_server=redis_server, queue_timeout="90s", environment=environment,
                schedules=str(data / "schedules.yaml"),
            )
        )  # fmt: skip
        client = stack.enter_context(Client(world.profile()))
        boss = stack.enter_context(Client(world.issue(BOSS)))
        made = Scene(world, client, boss, folder, marks)
        threads = stack.enter_context(ThreadPoolExecutor(2))
        # The thread that reads the session ends with it, also where no test has ended it.
        stack.callback(made.close_session)
        roll_back(made, threads)
        yield made


def roll_back(scene: Scene, threads: ThreadPoolExecutor) -> None:
    """Make everything, and take Redis back in the middle."""
    world, client, older = scene.world, scene.client, scene.folder / "older"
    with world.stopped(FROZEN):
        go = scene.folder / "go"
        submit(client, scene.job("result", go=go))
        submit(client, scene.job("running", go=scene.folder / "never"))
        for name in ("result", "running"):
            wait_until(lambda name=name: scene.has_started(scene.jobs[name]), f"{name} runs")
        for name in ("fenced", "never-taken"):
            submit(client, scene.job(name, agent=FROZEN))
        client.label_agent(AGENT, {"role": "old"})
        scene.batch("cancelled-batch", AGENT, FROZEN, then="sleep 600")
        wait_until(lambda: scene.started_of("cancelled-batch"), "its first target runs, and the other one waits")
        scene.approved, scene.rejected = scene.careful("approved"), scene.careful("rejected")
        wait_until(lambda: accepted_runs(scene), "a run of the schedule is accepted")
        with world.stopped(AGENT):
            for name in ("queued-1", "queued-2"):
                submit(client, scene.job(name))
            # The copy contains all of it.
            write_at_once(world)
            with world.stopped("redis"):
                shutil.copytree(world.data / "redis", older, ignore=shutil.ignore_patterns("temp-*"))
        after_the_copy(scene, go, threads)
        while_its_agent_is_away(scene)
        world.redis.kill()
        shutil.rmtree(world.data / "redis")
        shutil.copytree(older, world.data / "redis")
        world.start_redis()
        world.relays.do(world.relays[AGENT].mend())
        wait_until(lambda: "redis_life" in codes(scene), "the new life is recorded")
        # The orchestrator that remembers answers only after it has written that again.
        wait_until(lambda: answers(scene), "the orchestrator uses the new life")
    (scene.folder / "go-on").touch()


def after_the_copy(scene: Scene, go: Path, threads: ThreadPoolExecutor) -> None:
    """Do what Redis will not know."""
    client, boss = scene.client, scene.boss
    go.touch()
    before = len(accepted_runs(scene))
    for name in ("result", "queued-1", "queued-2"):
        assert end_of(client, scene.jobs[name]) is ExecState.SUCCEEDED
    assert client.cancel("fenced").outcome == "CANCELLED"
    submit(client, scene.job("forgotten", agent=FROZEN))
    assert client.cancel("forgotten").outcome == "CANCELLED"
    client.revoke_agent(REVOKED, "stolen")
    assert scene.approved is not None
    boss.approve(scene.approved.id, boss.approval(scene.approved.id).digest, "fine")
    boss.reject("rejected", "not today")
    scene.careful("rejected-forgotten")
    boss.reject("rejected-forgotten", "not today")
    wait_until(lambda: client.status("approved").state is ExecState.SUCCEEDED, "it has run")
    submit(client, scene.job("record"))
    assert end_of(client, scene.jobs["record"]) is ExecState.SUCCEEDED
    submit(client, scene.job("old"))
    assert end_of(client, scene.jobs["old"]) is ExecState.SUCCEEDED
    # As if it had ended so long ago that its agent no longer retains its output.
    spool = scene.world.data / "agents" / AGENT / "sent" / "old"
    wait_until(spool.exists, "its output is retained")
    spool.unlink()
    decide(scene)
    open_session(scene, threads)
    wait_until(lambda: len(accepted_runs(scene)) > before, "a run that Redis will not know is accepted")
    running = scene.job("awaited", go=scene.folder / "go-on")
    scene.waiting = threads.submit(client.execute, running.request)
    wait_until(lambda: running.starts, "it runs")
    wait_until(lambda: scene.has_started(running), "its start is recorded")


def while_its_agent_is_away(scene: Scene) -> None:
    """Do what neither the older state nor the agent will know, only the orchestrator."""
    scene.world.relays.do(scene.world.relays[AGENT].cut())
    assert scene.client.cancel("running").outcome == "REQUESTED"


def answers(scene: Scene) -> bool:
    """Whether the orchestrator answers."""
    try:
        return bool(scene.client.agents())
    except TachikomaError:
        return False


def decide(scene: Scene) -> None:
    """Let operators decide what Redis will not know."""
    client = scene.client
    client.cancel_batch(scene.batches["cancelled-batch"])
    scene.batch("lost-batch", AGENT)
    wait_until(lambda: client.batch(scene.batches["lost-batch"]).state is BatchState.DONE, "the batch has ended")
    client.label_agent(AGENT, {"role": "new"})
    client.revoke_user("leaver", "left")
    client.drain_agent(REVOKED, "a broken disk")
    client.pause_schedule(RARE, "not now")


def open_session(scene: Scene, threads: ThreadPoolExecutor) -> None:
    """Attach a caller to a session, and let it type a line."""
    script = 'stty -echo; echo $$ >> "$0"; for i in 1 2; do read -r line; echo "got $line"; done; exit 7'
    mark = scene.folder / "session"
    request = ExecRequest(
        id="session", agent_id=AGENT, command=("/bin/sh", "-c", script, str(mark)), interactive=True, tty=True,
        timeout=600,
    )  # fmt: skip
    scene.jobs["session"] = Job(request, mark, exit_code=7)
    scene.session = scene.client.session(request)
    scene.attached = threads.submit(scene.attach)
    wait_until(lambda: scene.jobs["session"].starts, "the session runs")
    scene.session.write(b"one\r")
    wait_until(lambda: scene.has_seen(b"got one"), "the first line was taken")


def accepted_runs(scene: Scene) -> list[ScheduledRun]:
    runs = scene.client.scheduled_runs(OFTEN, limit=1000)
    return [run for run in runs if run.outcome is DueOutcome.RUN]


def codes(scene: Scene) -> list[str]:
    with scene.world.direct() as redis:
        return [fields[b"event"].decode() for _, fields in redis.xrange(keys.AUDIT)]
