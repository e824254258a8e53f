"""`tachikoma dev` in a terminal: one command starts it, Ctrl-C leaves nothing, results stay."""

from __future__ import annotations

import base64
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import Cli, gone, wait_until

from patience import PATIENCE_SECONDS
from processes import processes_named
from warm_start import WarmPopen

pytestmark = pytest.mark.long

#: A Python with Tachikoma that every user may run; the one of the tests may lie in root's home.
EVERYBODYS_PYTHON = os.environ.get("TACHIKOMA_TEST_EVERYBODYS_PYTHON", sys.executable)


class Dev:
    """A running `tachikoma dev`."""

    def __init__(self, home: Path, *options: str, account: pwd.struct_passwd | None = None) -> None:
        self._program = [sys.executable if account is None else EVERYBODYS_PYTHON, "-m", "tachikoma"]
        self._switch: dict[str, Any] = {}
        # The parts that it starts are real starts in any case.
        self._popen: type[subprocess.Popen[Any]] = WarmPopen
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("TACHIKOMA_", "XDG_"))},
            "HOME": str(home),
            "USER": "tester",
        }
        if account is not None:
            self._switch = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            self._popen = subprocess.Popen
            self.environment = {
                "PATH": os.environ["PATH"], "HOME": str(home), "USER": account.pw_name, "PYTHONDONTWRITEBYTECODE": "1",
            }  # fmt: skip
        self.lines: list[str] = []
        self.process = self._popen(
            [*self._program, "dev", "--listen", "127.0.0.1:0", *(options or ("--no-submitter",))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.environment,
            cwd=home,
            text=True,
            start_new_session=True,
            **self._switch,
        )

    def wait_ready(self, see: Callable[[str], object] = len) -> None:
        """Wait until it is ready, and show each line until then to a function."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            see(line)
            if "Ctrl-C stops everything" in line:
                return
        pytest.fail("did not come up:\n" + "\n".join(self.lines))

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def interrupt(self) -> str:
        """Ctrl-C, and what it said."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stdout is not None
        rest = self.process.stdout.read()
        assert self.process.wait(PATIENCE_SECONDS) == 0, rest
        self.process.stdout.close()
        return rest

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self._popen(
            [*self._program, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            **self._switch,
        ) as process:
            try:
                out, err = process.communicate(timeout=60)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tk-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., Dev]]:
    started: list[Dev] = []

    def starter(
        *options: str, account: pwd.struct_passwd | None = None, before_ready: Callable[[str], object] = len
    ) -> Dev:
        dev = Dev(home, *options, account=account)
        started.append(dev)
        dev.wait_ready(before_ready)
        return dev

    yield starter
    for dev in started:
        dev.close()


def test_a_second_terminal_needs_no_flags_and_results_survive_a_closed_one(start: Callable[..., Dev]) -> None:
    dev = start("--agents", "2", "--no-submitter")
    assert any(line.startswith("agents        agent-1, agent-2") for line in dev.lines)
    done = dev.run("exec", "agent-1", "--", "echo", "kept")
    assert (done.returncode, done.stdout, done.stderr) == (0, "kept\n", "")
    exec_id = json.loads(dev.run("ps", "-a", "-o", "json").stdout)[0]["id"]
    running = run_sleep(dev)
    # The terminal closes while a command runs.
    dev.process.send_signal(signal.SIGHUP)
    assert dev.process.wait(PATIENCE_SECONDS) == 0
    assert processes_named(running) == []

    again = start()
    # Only what this start runs: agent-2 is forgotten, and nothing waits for it.
    assert "agents        agent-1" in again.lines
    assert [agent["id"] for agent in json.loads(again.run("agents", "-o", "json").stdout)] == ["agent-1"]
    refused = again.run("exec", "agent-2", "true")
    assert refused.returncode == 125
    assert refused.stderr.startswith("tachikoma: there is no agent 'agent-2'")
    status = json.loads(again.run("status", "-o", "json", exec_id).stdout)
    assert status["state"] == "SUCCEEDED"
    assert again.run("logs", exec_id).stdout == "kept\n"
    # The agent reported it before it stopped.
    assert state_of(again, running) == ("FAILED", "killed: the agent was shut down")
    again.interrupt()


def run_sleep(dev: Dev) -> str:
    """Start a command that sleeps, and return its id once it runs, which is in its command line too."""
    exec_id = f"sleep-{uuid.uuid4().hex}"
    done = dev.run("exec", "-d", "--id", exec_id, "agent-1", "--", "sh", "-c", "sleep 600; :", exec_id)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: state_of(dev, exec_id)[0] == "STARTED" and processes_named(exec_id), "it runs")
    return exec_id


def state_of(dev: Dev, exec_id: str) -> tuple[str, str]:
    """The state of an execution, and its error."""
    status = json.loads(dev.run("status", "-o", "json", exec_id).stdout)
    return status["state"], status["error"]


def test_a_new_policy_isolates_commands_where_the_host_can(start: Callable[..., Dev], home: Path) -> None:
    dev = start()
    [line] = [line for line in dev.lines if line.startswith("isolation ")]
    [agent] = json.loads(dev.run("agents", "-o", "json").stdout)
    result = json.loads(dev.run("exec", "-o", "json", "agent-1", "true").stdout)
    if "private" in agent["isolation"]:
        assert line.startswith("isolation     private: ")
        assert result["isolation"]["level"] == "private"
    else:
        assert line.startswith("isolation     shared, since ")
        assert result["isolation"] is None
    dev.interrupt()
    # A policy that exists is the developer's own.
    again = start()
    assert not any(line.startswith("isolation ") for line in again.lines)
    again.interrupt()


def test_flower_is_there_on_request_for_whoever_knows_its_password(start: Callable[..., Dev]) -> None:
    dev = start("--flower", "--flower-listen", "127.0.0.1:0")
    [line] = [line for line in dev.lines if line.startswith("flower  ")]
    url, user, file = re.fullmatch(r"flower +(\S+) \(user (\S+), password in (.+)\)", line).groups()  # type: ignore[union-attr]
    assert os.stat(file).st_mode & 0o077 == 0
    login = Path(file).read_text().strip()
    assert login.startswith(f"{user}:")
    assert len(login) > 30
    asked = urllib.request.Request(url)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(asked)
    asked.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    with urllib.request.urlopen(asked) as answer:
        assert "<title>Workers · Flower</title>" in answer.read().decode()
    children = dev.children()
    dev.interrupt()
    assert all(gone(pid) for pid in children)


def test_ctrl_c_leaves_no_process_and_no_socket(start: Callable[..., Dev], home: Path) -> None:
    dev = start()
    assert dev.run("exec", "-d", "agent-1", "sleep", "600").returncode == 0
    wait_until(lambda: len(dev.children()) >= 4, "redis, orchestrator, agent and command run")
    children = dev.children()
    sockets = [
        connection.laddr
        for pid in children
        for connection in psutil.Process(pid).net_connections("unix")
        if "redis.sock" in str(connection.laddr)
    ]
    assert sockets
    said = dev.interrupt()
    assert said.rstrip().endswith("stopped")
    for pid in children:
        assert gone(pid)
    assert not Path(str(sockets[0])).exists()
    done = dev.run("agents")
    assert done.returncode == 1
    assert "is the orchestrator running" in done.stderr


def test_celery_works_at_once_and_a_closed_terminal_stops_everything(start: Callable[..., Dev], home: Path) -> None:
    dev = start("--agents", "1")
    [url] = [line.split()[1] for line in dev.lines if line.startswith("celery  ")]
    script = (
        "import sys; from celery import Celery; from tachikoma.celery import Commands\n"
        "app = Celery('dev', broker=sys.argv[1], backend=sys.argv[1])\n"
        "commands = Commands(app, application='dev')\n"
        "print(commands.s('agent-1', ['echo', 'hello']).delay().get(timeout=60)['exitCode'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, url], env=dev.environment, capture_output=True, text=True, check=False,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert (home / ".local/share/tachikoma/redis.sock").is_socket()
    children = dev.children()
    dev.process.send_signal(signal.SIGHUP)
    assert dev.process.wait(PATIENCE_SECONDS) == 0
    assert all(gone(pid) for pid in children)
    assert not (home / ".local/share/tachikoma/redis.sock").is_symlink()


def test_a_killed_supervisor_takes_everything_with_it_and_the_next_one_reports_what_ran(
    start: Callable[..., Dev], home: Path
) -> None:
    dev = start()
    children = dev.children()
    [worker] = [pid for pid in children if "--agent-id" in psutil.Process(pid).cmdline()]
    sockets = Path((home / ".local/share/tachikoma/lock").read_text().strip())
    assert sockets.is_dir()
    running = run_sleep(dev)
    # It ends its command before itself, for which it needs some time; here until the next start has seen it.
    os.kill(worker, signal.SIGSTOP)
    dev.process.kill()
    try:
        again = start(before_ready=lambda line: "waiting for" in line and os.kill(worker, signal.SIGCONT))
    finally:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
    data = home / ".local/share/tachikoma"
    assert f"tachikoma: waiting for the processes of an earlier start in {data}, which was killed" in again.lines
    for pid in children:
        wait_until(lambda pid=pid: gone(pid), f"process {pid} is gone")
    assert processes_named(running) == []
    # What the killed one could not remove any more, the next one does.
    assert not sockets.exists()
    # The agent has the receipt in its journal, and delivers it now.
    wait_until(lambda: state_of(again, running)[0] != "STARTED", "the result is delivered")
    assert state_of(again, running) == ("FAILED", "killed: the agent was shut down")
    assert again.run("exec", "agent-1", "echo", "next").stdout == "next\n"
    again.interrupt()


def test_a_second_one_on_the_same_folder_or_port_is_refused(start: Callable[..., Dev], tmp_path: Path) -> None:
    dev = start()
    done = dev.run("dev", "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert "is in use by another `tachikoma dev`" in done.stderr
    address = next(line.split()[1] for line in dev.lines if line.startswith("orchestrator"))
    done = dev.run("dev", "--data", str(tmp_path / "other"), "--listen", address)
    assert done.returncode == 1
    assert f"cannot listen on {address}: is the port taken?" in done.stdout + done.stderr
    dev.interrupt()


def test_a_profile_that_leads_elsewhere_is_left_alone(start: Callable[..., Dev], home: Path) -> None:
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    profile = home / ".config" / "tachikoma" / "profile.json"
    profile.parent.mkdir(parents=True)
    content = json.dumps({"address": "prod:1", "serverName": "prod", "identity": str(elsewhere)})
    profile.write_text(content)
    dev = start()
    assert profile.read_text() == content
    assert "Your own client profile belongs to another orchestrator and was not changed." in dev.lines
    hint = next(line.strip() for line in dev.lines if "tachikoma exec" in line)
    own = Path(hint.split("=", 1)[1].split()[0])
    assert Cli(own).run("exec", "agent-1", "echo", "hi").stdout == b"hi\n"
    dev.interrupt()


def _may_run(account: pwd.struct_passwd) -> bool:
    try:
        done = subprocess.run(
            [EVERYBODYS_PYTHON, "-c", "import tachikoma"],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            capture_output=True,
            cwd="/",
            check=False,
        )
    except PermissionError:
        return False
    return done.returncode == 0


def test_an_ordinary_user_is_told_what_is_not_enforced(
    start: Callable[..., Dev], home: Path, need: Callable[[bool, str], None]
) -> None:
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        need(_may_run(nobody), f"a Python with Tachikoma that other users may run, not {EVERYBODYS_PYTHON}")
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        dev = start(account=nobody)
        name = "nobody"
    else:
        dev = start()
        name = pwd.getpwuid(os.getuid()).pw_name
    assert any(line.startswith("isolation     shared, since an agent cannot do more") for line in dev.lines)
    told = [line for line in dev.lines if line.startswith("not enforced")]
    assert f"not enforced  commands run as {name} only, with its rights: the spawner is not root" in told
    assert any(line.startswith("not enforced  commands run without cgroups, so without limits: ") for line in told)
    assert dev.run("exec", "agent-1", "id", "-un").stdout == f"{name}\n"
    other = dev.run("exec", "-u", "daemon", "agent-1", "id")
    assert other.returncode == 125
    assert f"this agent runs as {name} and cannot become daemon" in other.stderr
    dev.interrupt()
