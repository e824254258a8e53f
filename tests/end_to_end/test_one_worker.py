"""An agent has one worker, and its clock is right: what happens otherwise, with real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import AGENT, make_cli, request, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecState
from tachikoma.dev.part import Part
from tachikoma.dev.stack import Stack
from tachikoma.errors import FailedPrecondition

pytestmark = pytest.mark.long

CLOCK = Path(__file__).parents[1] / "faults" / "clock.c"


def second(stack: Stack, folder: Path, *, data: Path | None = None, **environment: str) -> Part:
    """Another worker with the identity of the first agent, not started."""
    part = stack.agents[AGENT]
    other = Part("second", part._command, folder / "second.log", {**part._environment, **environment})
    if data is not None:
        other.keep_option("--data", str(data))
        # Another host has a tree of cgroups of its own.
        other.keep_option("--cgroup-name", "tachikoma-dev-second")
    return other


@pytest.fixture
def started() -> Iterator[list[Part]]:
    parts: list[Part] = []
    yield parts
    for part in parts:
        part.stop()


def test_a_second_worker_with_the_same_data_folder_ends_at_once(own_stack: Stack, tmp_path: Path) -> None:
    with Client(own_stack.profile()) as client:
        running = request("sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.25; done")
        client.submit(running)
        wait_until(lambda: client.status(running.id).start_time, "it runs")
        other = second(own_stack, tmp_path)
        other.start()
        assert other.process is not None
        assert other.process.wait(PATIENCE_SECONDS) == 1
        assert "uses the data folder" in (tmp_path / "second.log").read_text()
        wait_until(lambda: client.status(running.id).state.terminal, "it ends")
        assert client.execute(running).stdout == b"1\n2\n3\n4\n5\n6\n7\n8\n"
        # A worker that is killed, whose spawner and command stay, frees it.
        running = request("sh", "-c", "sleep 2; echo done")
        client.submit(running)
        wait_until(lambda: client.status(running.id).start_time, "it runs")
        own_stack.agents[AGENT].kill()
        own_stack.start_agent(AGENT)
        assert client.execute(running).stdout == b"done\n"


def test_a_second_worker_with_another_data_folder_waits_and_is_seen(
    own_stack: Stack, tmp_path: Path, started: list[Part]
) -> None:
    # Its path has to be short: a socket is in it.
    data = own_stack.data / "b"
    with Client(own_stack.profile()) as client:
        other = second(own_stack, tmp_path, data=data)
        started.append(other)
        other.start()
        log = tmp_path / "second.log"
        wait_until(lambda: log.exists() and "agent.held_elsewhere" in log.read_text(), "it waits")
        for _ in range(10):
            assert client.execute(request("true")).state is ExecState.SUCCEEDED
        wait_until(lambda: any("second worker" in text for text in client.agents()[0].warnings), "it is seen")
        assert "a second worker with its identity waits" in make_cli(own_stack).run("agents").stderr.decode()
        [event] = [event for event in client.audit(limit=200) if event.event == "agent_contested"]
        assert event.agent_id == AGENT
        assert "agent.ready" not in log.read_text()
        # When the first one ends, the second one is the agent.
        own_stack.agents[AGENT].stop()
        wait_until(lambda: "agent.ready" in log.read_text(), "it is the agent now")
        wait_until(lambda: client.agents()[0].online, "it is online")
        assert client.execute(request("true")).state is ExecState.SUCCEEDED


@pytest.mark.parametrize(("offset", "words"), [("300", "ahead of"), ("-300", "behind")])
def test_an_agent_whose_clock_is_wrong_is_refused_and_shown(
    own_stack: Stack, tmp_path: Path, started: list[Part], need: Callable[[bool, str], None], offset: str, words: str
) -> None:
    compiler = shutil.which("cc")
    need(compiler is not None, "a C compiler")
    assert compiler is not None
    library = tmp_path / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, CLOCK], check=True)
    own_stack.agents[AGENT].stop()
    wrong = second(own_stack, tmp_path, LD_PRELOAD=str(library), CLOCK_OFFSET=offset, PATH=os.environ["PATH"])
    started.append(wrong)
    with Client(own_stack.profile()) as client:
        own_stack.start_part(wrong)
        wait_until(lambda: any("its clock is" in text for text in client.agents()[0].warnings), "it is shown")
        with pytest.raises(FailedPrecondition, match=rf"its clock is (29|30|31)[0-9] s {words} the orchestrator's"):
            client.execute(request("true"))
        event = next(event for event in client.audit(limit=200) if event.event == "refused")
        assert event.reason.startswith("UNFIT: its clock is ")
