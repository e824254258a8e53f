"""A worker of the last release under this orchestrator: it works, or it is refused in words; nothing waits for ever."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from last_release import LastRelease
from support import AGENT, prepare, request, wait_until

from tachikoma import Client, ExecState, FailedPrecondition
from tachikoma.dev.stack import Stack
from tachikoma.vocabulary.formats import difference

#: Prints what that release writes and reads.
FORMATS = "import json; from tachikoma.vocabulary.formats import FORMATS; print(json.dumps(dict(FORMATS)))"


@pytest.fixture
def release(tmp_path_factory: pytest.TempPathFactory, need: Callable[[bool, str], None]) -> LastRelease:
    return LastRelease.unpack(tmp_path_factory.mktemp("release"), need)


@pytest.fixture
def stack(tmp_path: Path, redis_server: Path | None, release: LastRelease) -> Iterator[Stack]:
    """A stack of this tree, whose agent runs the worker of the release."""
    with Stack(prepare(tmp_path), redis_server=redis_server) as running:
        worker = running.agents[AGENT]
        # With its spawner, which speaks its worker's version of the protocol.
        worker.stop()
        worker._environment = {**worker._environment, **release.environment}
        worker.start_until_ready()
        yield running


@pytest.mark.long
def test_a_worker_of_the_last_release_works_or_is_refused_in_words(
    stack: Stack, release: LastRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every order names a trace, which that release does not know.
    monkeypatch.setenv("TRACEPARENT", f"00-{'a' * 32}-{'b' * 16}-01")
    unlike = difference(json.loads(release.ask(FORMATS)))
    with Client(stack.profile()) as client:
        wait_until(lambda: client.agents()[0].online, "the older worker is online")
        if unlike:
            with pytest.raises(FailedPrecondition, match=re.escape(unlike)):
                client.execute(request("true"))
            assert any(unlike in warning for warning in client.agents()[0].warnings)
            return
        done = client.execute(request("sh", "-c", "echo out; echo err >&2; exit 3"))
        assert (done.state, done.exit_code) == (ExecState.FAILED, 3)
        assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
        assert client.execute(request("cat", stdin=b"x" * 100_000)).stdout == b"x" * 100_000
        assert client.execute(request("sleep", "60", timeout=1)).state is ExecState.TIMED_OUT
        running = client.submit(request("sleep", "600", timeout="10m"))
        wait_until(lambda: client.status(running.id).state is ExecState.STARTED, "it runs")
        client.cancel(running.id)
        wait_until(lambda: client.status(running.id).state is ExecState.CANCELLED, "it is cancelled")
        assert client.execute(request("/no/such/program")).exit_code == 127
