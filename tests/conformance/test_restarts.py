"""An engine that is killed: its commands live on, the next engine continues them, and nothing starts twice.

One engine is killed while executions are in every part of their life. The tests compare what became of each.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from border import AGENT, EXCERPT_BYTES, REPLY, Border, Delivered
from support import wait_until
from traces import Traces

from relay import Command
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.redis import keys
from tachikoma.streams.frames import Frame
from tachikoma.vocabulary.states import ExecState

pytestmark = pytest.mark.long

MIB = 1024 * 1024


def sets(key: str) -> Callable[[Command], bool]:
    """Return whether a command sets a key."""
    return lambda command: command[:2] == [b"SET", key.encode()]


@dataclass
class Job:
    """One execution over the end of its engine."""

    order: WorkOrder
    token: str
    traces: Traces
    #: Once there is one.
    end: Delivered | None = None

    @property
    def id(self) -> str:
        return self.order.jti

    @property
    def delivered(self) -> Delivered:
        assert self.end is not None
        return self.end


@dataclass
class Scene:
    """The executions of a killed engine, by the part of their life in which it was killed."""

    border: Border
    jobs: dict[str, Job] = field(default_factory=dict)
    #: Chunks of the running one before the kill.
    before: list[Frame] = field(default_factory=list)
    #: The commands that ran while there was no engine.
    lived: set[str] = field(default_factory=set)
    #: The result that Redis had while there was no engine.
    stored: Delivered | None = None
    #: Reports of the running one.
    reports: list[bytes] = field(default_factory=list)
    journals: list[str] = field(default_factory=list)

    def add(self, name: str, folder: Path, stack: ExitStack, *steps: str, waits: bool = True, **request: Any) -> Job:
        """Put the order of an execution on the queue."""
        traces = stack.enter_context(Traces.within(folder / name))
        order = self.border.order(*traces.command(*steps, waits=waits), **request)
        self.jobs[name] = Job(order, self.border.put_order(order), traces)
        return self.jobs[name]


@pytest.fixture(scope="module")
def scene(redis_server: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("restarts")
    with ExitStack() as stack:
        # The folders are removed first, and the commands end.
        border = stack.enter_context(Border(redis_server, SPOOL_BYTES=str(MIB)))
        scene = Scene(border)
        kill(scene, folder, stack)
        yield scene


def kill(scene: Scene, folder: Path, stack: ExitStack) -> None:
    """Bring each execution to its part, kill the engine, and let another one continue."""
    border = scene.border
    scene.journals.append(border.journal())
    running = scene.add("running", folder, stack, "echo before", f"echo meanwhile; touch {folder}/meanwhile", "exit 4")
    listener = stack.enter_context(border.listening(keys.report(AGENT, REPLY, running.id)))
    large = scene.add("large", folder, stack, "seq 300000", "echo end", waits=False)
    ending = scene.add("ending", folder, stack, "echo begin", "echo end", waits=False)
    cancelled = scene.add("cancelled", folder, stack)
    timed = scene.add("timed", folder, stack, timeout=2)
    done = scene.add("done", folder, stack, "echo done", waits=False)
    done.end = border.wait_for(done.id)
    held = [hold(scene, "claimed", folder, stack, keys.claim), hold(scene, "stored", folder, stack, keys.result)]
    border.wait_until(lambda: border.output(running.id) == b"before\n", "the running one has output")
    border.wait_until(lambda: border.output(large.id).endswith(b"300000\n"), "the large output is in the log")
    border.wait_until(lambda: border.output(ending.id) == b"begin\n", "the ending one has output")
    border.wait_until(lambda: cancelled.traces.starts and timed.traces.starts, "the others run")
    scene.before = border.frames(running.id)

    border.engine.kill()
    for point in held:
        border.relays.let_go(AGENT, point)
    scene.stored = border.delivered(scene.jobs["stored"].id)
    ending.traces.go()
    running.traces.go()
    border.put_cancel(cancelled.order)
    wait_until(lambda: not ending.traces.runs, "a command ends without an engine")
    wait_until((folder / "meanwhile").exists, "a command continues without an engine")
    scene.lived = {name for name, job in scene.jobs.items() if job.traces.runs}

    border.start_engine()
    scene.journals.append(border.journal())
    running.traces.go()
    large.traces.go()
    for job in scene.jobs.values():
        job.end = job.end or border.wait_for(job.id)
    border.wait_until(listener.messages, "the end of the running one is reported")
    scene.reports = listener.messages()


def hold(scene: Scene, name: str, folder: Path, stack: ExitStack, key: Callable[[str, str], str]) -> Any:
    """Bring an execution to where Redis has set a key and the engine has no answer, and return what holds it there."""
    exec_id = f"exec-{name}"
    point = scene.border.relays.hold(AGENT, sets(key(AGENT, exec_id)), answer=True)
    scene.add(name, folder, stack, waits=False, id=exec_id)
    scene.border.wait_until(point.reached.is_set, f"{name} is there")
    return point


def test_a_running_command_lives_on_and_its_output_continues(scene: Scene) -> None:
    job, border = scene.jobs["running"], scene.border
    assert {"running", "cancelled"} <= scene.lived
    receipt = job.delivered.receipt
    assert (receipt.state, receipt.exit_code) == (ExecState.FAILED, 4)
    assert receipt.order_sha256 == hashlib.sha256(job.token.encode()).hexdigest()
    frames = border.frames(job.id)
    assert frames[: len(scene.before)] == scene.before
    assert [frame.seq for frame in frames] == list(range(1, receipt.chunks + 1))
    output = b"before\nmeanwhile\n"
    assert job.delivered.content("stdout") == border.output(job.id) == output
    assert (receipt.stdout.total_bytes, receipt.stdout.sha256) == (len(output), hashlib.sha256(output).hexdigest())


def test_an_output_larger_than_the_spool_continues_too(scene: Scene) -> None:
    job, border = scene.jobs["large"], scene.border
    whole = "".join(f"{number}\n" for number in range(1, 300_001)).encode() + b"end\n"
    receipt = job.delivered.receipt
    frames = border.frames(job.id)
    assert [frame.seq for frame in frames] == list(range(1, receipt.chunks + 1))
    assert border.output(job.id) == whole
    assert frames[-1].offset + len(frames[-1].data) == receipt.stdout.total_bytes == len(whole)
    # An engine that has no longer all of it cannot tell the digest.
    assert receipt.stdout.sha256 in ("", hashlib.sha256(whole).hexdigest())
    excerpt = job.delivered.content("stdout")
    assert excerpt == whole[: EXCERPT_BYTES // 2] + whole[-EXCERPT_BYTES // 2 :]
    assert receipt.stdout.excerpt_sha256 == hashlib.sha256(excerpt).hexdigest()


def test_the_receipt_of_a_resumed_command_is_signed_once(scene: Scene) -> None:
    assert scene.reports == [scene.jobs["running"].delivered.raw]


def test_a_command_that_ended_without_an_engine_is_reported(scene: Scene) -> None:
    job = scene.jobs["ending"]
    receipt = job.delivered.receipt
    assert (receipt.state, receipt.exit_code) == (ExecState.SUCCEEDED, 0)
    assert job.delivered.content("stdout") == scene.border.output(job.id) == b"begin\nend\n"


def test_a_cancel_that_came_without_an_engine_is_applied(scene: Scene) -> None:
    job = scene.jobs["cancelled"]
    receipt = job.delivered.receipt
    assert receipt.state is ExecState.CANCELLED
    assert receipt.kill is not None
    assert receipt.kill.empty
    assert not job.traces.runs


def test_a_timeout_applies_over_the_restart(scene: Scene) -> None:
    job = scene.jobs["timed"]
    assert job.delivered.receipt.state is ExecState.TIMED_OUT
    assert not job.traces.runs


def test_an_execution_that_was_claimed_and_not_started_is_lost(scene: Scene) -> None:
    job = scene.jobs["claimed"]
    receipt = job.delivered.receipt
    assert (receipt.state, receipt.exit_code, receipt.started_ms) == (ExecState.LOST, -1, 0)
    assert receipt.order_sha256 == hashlib.sha256(job.token.encode()).hexdigest()
    assert scene.border.claim(job.id) == scene.journals[0]
    assert job.traces.starts == 0


def test_a_receipt_that_was_stored_stays_as_it_is(scene: Scene) -> None:
    job = scene.jobs["stored"]
    assert scene.stored is not None
    assert job.delivered.raw == scene.stored.raw
    assert job.delivered.receipt.state is ExecState.SUCCEEDED


def test_the_journal_stays_the_same(scene: Scene) -> None:
    assert scene.journals[0] == scene.journals[1]


def test_no_second_delivery_starts_anything(scene: Scene) -> None:
    border = scene.border
    starts = {name: job.traces.starts for name, job in scene.jobs.items()}
    assert starts == {**dict.fromkeys(scene.jobs, 1), "claimed": 0}
    for job in scene.jobs.values():
        border.put(job.token, job.id)
    border.settle()
    # The journal alone is enough.
    for job in scene.jobs.values():
        border.redis.delete(keys.claim(AGENT, job.id))
        border.put(job.token, job.id)
    border.settle()
    assert {name: job.traces.starts for name, job in scene.jobs.items()} == starts
    assert {name: border.delivered(job.id) for name, job in scene.jobs.items()} == {
        name: job.delivered for name, job in scene.jobs.items()
    }


def test_an_engine_without_its_journal_runs_nothing_of_the_earlier_one(
    redis_server: Path | None, traces: Traces
) -> None:
    with Border(redis_server) as border:
        first, second = border.order(*traces.command()), border.order(*traces.command())
        token, _ = border.put_order(first), border.put_order(second)
        ends = [border.wait_for(order.jti) for order in (first, second)]
        waiting = border.order(*traces.command())
        journal = border.journal()
        border.engine.stop()
        shutil.rmtree(border.data)
        border.start_engine()
        assert border.journal() != journal
        # Orders that the earlier journal may know.
        border.put(token, first.jti)
        assert border.run(waiting).receipt.state is ExecState.LOST
        # A new order of an execution that the earlier journal claimed.
        border.put_order(border.order(*traces.command(), id=second.jti))
        border.settle()
        assert [border.delivered(order.jti) for order in (first, second)] == ends
        assert border.claim(first.jti) == border.claim(second.jti) == journal
        assert traces.starts == 2
