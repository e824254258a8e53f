"""One process of a stack: start, readiness, end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from patience import PATIENCE_SECONDS
from tachikoma.dev import part as module
from tachikoma.dev.part import Part
from tachikoma.errors import ConfigurationError

Make = Callable[..., Part]
#: Takes what the parts of a stack take.
READY = "import sys; from tachikoma.config.readiness import report_ready\n"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Part] = []

    def make(script: str, *options: str, **environment: str) -> Part:
        part = Part("part", [sys.executable, "-c", script, *options], tmp_path / "part.log", environment)
        made.append(part)
        return part

    yield make
    for part in made:
        part.stop(seconds=0.1)


def test_what_a_part_reports_is_returned_when_it_is_ready(make: Make) -> None:
    part = make(READY + "report_ready(int(sys.argv[-1]), 'here'); import time; time.sleep(600)")
    assert not part.alive
    assert part.start_until_ready() == "here"
    assert part.alive
    part.stop()
    assert not part.alive
    assert part.process is None


def test_a_child_with_the_end_of_the_pipe_delays_nothing(make: Make) -> None:
    child = "import os, subprocess; subprocess.Popen(['sleep', '20'], pass_fds=(int(sys.argv[-1]),)); "
    part = make(READY + child + "report_ready(int(sys.argv[-1]), 'here'); import time; time.sleep(600)")
    assert part.start_until_ready() == "here"
    ended = make("import sys\n" + child + "sys.exit(3)")
    with pytest.raises(ConfigurationError, match="ended with status 3"):
        ended.start_until_ready()


def test_a_part_that_is_never_ready_is_waited_for_with_a_bound(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_SECONDS", 0.2)
    monkeypatch.setattr(module, "REPORT_SECONDS", 0.05)
    part = make("import time; time.sleep(600)")
    with pytest.raises(ConfigurationError, match=r"part is not ready after 0.2 s; its log is .*/part.log"):
        part.start_until_ready()
    assert part.alive


def test_a_part_that_ends_before_it_is_ready_is_shown_with_its_log(make: Make, tmp_path: Path) -> None:
    part = make("import sys; print('line\\n' * 30 + 'the reason'); sys.exit(3)")
    with pytest.raises(ConfigurationError) as failure:
        part.start_until_ready()
    lines = str(failure.value).splitlines()
    assert lines[0] == f"part ended with status 3; its log {tmp_path / 'part.log'} ends:"
    assert lines[-1] == "the reason"
    assert len(lines) == 1 + module.LOG_LINES


def test_a_failure_without_a_log_is_told_too(tmp_path: Path) -> None:
    part = Part("part", ["x"], tmp_path / "none.log", {})
    assert part.failure() == "part ended with status None"
    assert str(part.failed()) == "part ended with status None"


def test_a_condition_is_waited_for_while_the_part_lives(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    part = make("import time; time.sleep(600)")
    part.start()
    answers = [False, False, True]
    part.wait_until(lambda: answers.pop(0))
    assert answers == []
    monkeypatch.setattr(module, "START_SECONDS", 0.0)
    with pytest.raises(ConfigurationError, match="part is not ready after 0 s"):
        part.wait_until(lambda: False)
    part.kill()
    ended = make("")
    ended.start()
    assert ended.process is not None
    ended.process.wait()
    with pytest.raises(ConfigurationError, match="ended with status 0"):
        ended.wait_until(lambda: False)


def test_environment_and_options_reach_the_program(make: Make, tmp_path: Path) -> None:
    part = make("import os, sys; print(os.environ['NAME'], sys.argv[1:])", "--listen", "a", NAME="value")
    part.keep_option("--listen", "b")
    part.start()
    assert part.process is not None
    part.process.wait()
    part.run_once("--once")
    assert (tmp_path / "part.log").read_text() == "value ['--listen', 'b']\nvalue ['--listen', 'b', '--once']\n"


def test_a_part_has_the_descriptors_that_it_inherits_at_each_start(make: Make, tmp_path: Path) -> None:
    with (tmp_path / "shared").open("w") as file:
        part = make(f"import os; os.write({file.fileno()}, b'here ')")
        part.inherit(file.fileno())
        for _ in range(2):
            part.start()
            assert part.process is not None
            assert part.process.wait(PATIENCE_SECONDS) == 0
            part.stop()
    assert (tmp_path / "shared").read_text() == "here here "


def test_a_part_that_ignores_term_is_killed(make: Make) -> None:
    part = make(READY + "import signal, time; signal.signal(15, 1); report_ready(int(sys.argv[-1])); time.sleep(600)")
    part.start_until_ready()
    pid = part.pid
    part.stop(seconds=0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    part.stop()
    part.terminate()


def test_a_part_ends_with_its_supervisor_even_if_that_is_killed(tmp_path: Path) -> None:
    child = READY + "report_ready(int(sys.argv[-1])); import time; time.sleep(600)"
    script = (
        "import sys; from pathlib import Path; from tachikoma.dev.part import Part\n"
        f"part = Part('p', [sys.executable, '-c', {child!r}],"
        f" Path({str(tmp_path / 'log')!r}), {{}})\n"
        "part.start_until_ready(); print(part.pid, flush=True); sys.stdin.read()"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        with open(f"/proc/{pid}/stat") as stat:
            session = int(stat.read().rpartition(")")[2].split()[3])
        assert session == pid, "it has a session of its own"
        # Opened while it lives, so that no other process with its id is waited for.
        handle = os.pidfd_open(pid)
        supervisor.send_signal(signal.SIGKILL)
        supervisor.wait(PATIENCE_SECONDS)
    assert select.select([handle], [], [], PATIENCE_SECONDS)[0], "it ended"
    os.close(handle)
