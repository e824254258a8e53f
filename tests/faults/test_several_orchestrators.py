"""A client with the addresses of two orchestrators goes on with the second one when the first is killed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import prepare, wait_until
from world import Job, World

from tachikoma import Client, ExecState

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[World]:
    data = prepare(tmp_path_factory.mktemp("several"))
    with World(data, orchestrators=2, redis_server=redis_server, queue_timeout="60s") as made:
        yield made


def test_calls_and_waiting_callers_go_on_at_another_orchestrator(world: World, tmp_path: Path) -> None:
    profiles = [world.profile_of(name) for name in world.orchestrators]
    both = profiles[0].model_copy(update={"address": ",".join(profile.address for profile in profiles)})
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
