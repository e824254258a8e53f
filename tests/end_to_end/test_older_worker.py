"""A worker of the last release under this orchestrator: it works, or it is refused in words; nothing waits for ever."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import AGENT, prepare, request, wait_until

from tachikoma import Client, ExecState, FailedPrecondition
from tachikoma.dev.stack import Stack
from tachikoma.vocabulary.formats import difference

ROOT = Path(__file__).parents[2]
#: The release whose worker is run.
TAG = "v0.2.0"
#: The sources of its spawner.
SPAWNER = ("spawner.c", "child.c", "protocol.c")
#: Prints what that release writes and reads.
FORMATS = "import json; from tachikoma.vocabulary.formats import FORMATS; print(json.dumps(dict(FORMATS)))"


@pytest.fixture
def release(tmp_path_factory: pytest.TempPathFactory, need: Callable[[bool, str], None]) -> Path:
    """The packages of the release, with its own spawner."""
    found = subprocess.run(["git", "archive", TAG, "shared", "worker"], cwd=ROOT, capture_output=True, check=False)
    if found.returncode:
        # A source distribution, or a clone without the history.
        pytest.skip(f"there is no tag {TAG} here, so no older worker")
    need(shutil.which("cc") is not None, "a C compiler")
    folder = tmp_path_factory.mktemp("release")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=found.stdout, check=True)
    sources = [str(folder / "worker" / "spawner" / name) for name in SPAWNER]
    program = folder / "worker" / "tachikoma_worker" / "tachikoma-spawner"
    subprocess.run(["cc", "-std=c11", "-O1", "-o", str(program), *sources], check=True)
    return folder


def ask(release: Path, code: str) -> str:
    """Return what Python prints with the packages of the release."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path_of(release)}, capture_output=True, text=True, check=True
    )
    return done.stdout


def path_of(release: Path) -> str:
    return f"{release / 'shared'}:{release / 'worker'}"


@pytest.fixture
def stack(tmp_path: Path, redis_server: Path | None, release: Path) -> Iterator[Stack]:
    """A stack of this tree, whose agent runs the worker of the release."""
    assert ask(release, "import tachikoma_worker; print(tachikoma_worker.__file__)").startswith(str(release))
    with Stack(prepare(tmp_path), redis_server=redis_server) as running:
        worker = running.agents[AGENT]
        # With its spawner, which speaks its worker's version of the protocol.
        worker.stop()
        worker._environment = {**worker._environment, "PYTHONPATH": path_of(release)}
        worker.start_until_ready()
        yield running


@pytest.mark.long
def test_a_worker_of_the_last_release_works_or_is_refused_in_words(
    stack: Stack, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every order names a trace, which that release does not know.
    monkeypatch.setenv("TRACEPARENT", f"00-{'a' * 32}-{'b' * 16}-01")
    unlike = difference(json.loads(ask(release, FORMATS)))
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
