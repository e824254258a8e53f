"""A client with the addresses of two orchestrators goes on with the second one when the first is killed.

`tests/unit/shared/client/test_several_addresses.py` has each way in which an address does not answer, and names with
several addresses; `tests/end_to_end/test_session_faults.py` has sessions.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from support import AGENT, prepare, wait_until
from world import Job, World

from patience import PATIENCE_SECONDS
from tachikoma import BatchRequest, BatchState, Client, ExecRequest, ExecState, TargetState
from tachikoma.client.profile import Profile

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[World]:
    data = prepare(tmp_path_factory.mktemp("several"))
    with World(data, orchestrators=2, redis_server=redis_server, queue_timeout="60s") as made:
        yield made


#: Writes numbered lines until a file appears, and then the last one.
LINES = 'echo $$ >> "$0"; i=0; while [ ! -e "$1" ]; do i=$((i+1)); echo $i; sleep 0.01; done; echo end $i'
#: Lines that a reader has before and after the end of its orchestrator, at least.
SOME = 20


@pytest.fixture
def both(world: World) -> Profile:
    """The profile of a caller that knows both orchestrators, each of which runs."""
    for name in world.orchestrators:
        if not world.part(name).alive:
            world.start_again(name)
    profiles = [world.profile_of(name) for name in world.orchestrators]
    return replace(profiles[0], address=",".join(profile.address for profile in profiles))


def test_calls_and_waiting_callers_go_on_at_another_orchestrator(world: World, both: Profile, tmp_path: Path) -> None:
    go = tmp_path / "go"
    waiting, later = Job.make(tmp_path, "waiting", go=go), Job.make(tmp_path, "later")
    with Client(both) as client, ThreadPoolExecutor(1) as threads:
        call = threads.submit(client.execute, waiting.request)
        wait_until(lambda: waiting.starts, "it runs")
        world.kill("orchestrator")
        assert client.execute(later.request).state is ExecState.SUCCEEDED
        go.touch()
        assert call.result(timeout=60).stdout == waiting.stdout
        world.start_again("orchestrator")
        world.kill(world.others[0])
        assert client.execute(later.request).state is ExecState.SUCCEEDED
    assert (waiting.starts, later.starts) == (1, 1)


def test_a_stream_goes_on_at_another_orchestrator_without_a_byte_lost_or_doubled(
    world: World, both: Profile, tmp_path: Path
) -> None:
    mark, go = tmp_path / "stream", tmp_path / "go"
    request = ExecRequest(agent_id=AGENT, command=("/bin/sh", "-c", LINES, str(mark), str(go)), timeout=600)
    output, killed_after, result = b"", 0, None
    with Client(both) as client:
        for message in client.execute_stream(request):
            assert not message.missing_bytes
            output += message.data
            result = message.result or result
            lines = output.count(b"\n")
            if not killed_after and lines >= SOME:
                world.kill("orchestrator")
                killed_after = lines
            elif killed_after and lines >= killed_after + SOME:
                go.touch()
    assert result is not None
    assert (result.state, result.stdout_summary.total_bytes) == (ExecState.SUCCEEDED, len(output))
    *numbers, last = output.decode().splitlines()
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert (last, len(mark.read_text().split())) == (f"end {len(numbers)}", 1)


def test_a_batch_goes_on_at_another_orchestrator(world: World, both: Profile, tmp_path: Path) -> None:
    mark, go = tmp_path / "batch", tmp_path / "go"
    script = f"echo {{agent}} >> {mark}; while [ ! -e {go} ]; do sleep 0.02; done"
    request = BatchRequest(targets=(AGENT,), command=("/bin/sh", "-c", script), timeout=600)
    with Client(both) as client, ThreadPoolExecutor(1) as threads:
        call = threads.submit(lambda: list(client.run(request)))
        wait_until(mark.exists, "its target runs")
        world.kill("orchestrator")
        go.touch()
        batch = call.result(timeout=PATIENCE_SECONDS)[-1].status
    assert batch is not None
    assert (batch.state, batch.totals) == (BatchState.DONE, {TargetState.SUCCEEDED: 1})
    assert mark.read_text().split() == [AGENT]
