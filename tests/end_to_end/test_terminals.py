"""Sessions as a person uses them: the real command line at a real terminal, on a real agent."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support import AGENT, Cli, OpenCli, install_packages, make_cli, prepare, request, wait_until

from patience import PATIENCE_SECONDS
from processes import processes_named
from pty_process import PtyProcess
from tachikoma import Client, ExecState, OutputKind
from tachikoma.dev.stack import SERVER_NAME, TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import SpiffeId, user_id
from tachikoma.vocabulary.requests import WindowSize
from tachikoma_orchestrator.sessions.screen import Screen, open_screen
from warm_start import WarmPopen

SIZE = WindowSize(24, 80)
PROMPT = "ready> "
SHELL = ("env", f"PS1={PROMPT}", "bash", "--norc", "--noprofile", "--noediting")
TRAINER, STRANGER = user_id(TRUST_DOMAIN, "trainer"), user_id(TRUST_DOMAIN, "stranger")
GRANTED = f"""
    allowInteractive: true
    allowTty: true
    killGrace: 1s
    observers: ["{TRAINER}"]
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    """A stack whose policy allows sessions."""
    folder = prepare(tmp_path_factory.mktemp("terminals"))
    policy = folder / "policy.yaml"
    policy.write_text(policy.read_text().rstrip() + GRANTED)
    with Stack(folder, redis_server=redis_server) as running:
        yield running


@pytest.fixture(scope="module")
def cli(stack: Stack) -> Cli:
    return make_cli(stack)


#: Runs until a signal ends it. It writes when it has the terminal, and when it is continued.
FOREGROUND = "sh -c 'trap \"echo again $((42 + 1))\" CONT; echo begin $((41 + 1)); while :; do sleep 0.1; done'"
#: Shows the size of the terminal once it is as wanted: a new size and what is typed take different ways.
UNTIL_SIZE = 'until [ "$(stty size)" = "{}" ]; do sleep 0.1; done; stty size\r'


def test_a_shell_feels_like_one(open_cli: OpenCli) -> None:
    here = open_cli("exec", "-it", AGENT, "--", *SHELL, rows=33, columns=99)
    here.expect(PROMPT)
    here.type("stty size; echo $TERM; tty\r")
    here.expect("\r\n33 99\r\nxterm-256color\r\n/dev/pts/")
    here.expect(PROMPT)
    # The size follows the window.
    here.resize(40, 132)
    here.type(UNTIL_SIZE.format("40 132"))
    here.expect("\r\n40 132\r\n")
    here.expect(PROMPT)
    # Ctrl-C ends the command in the foreground, and no more. It says when it is there.
    here.type(f"{FOREGROUND}\r")
    here.expect("\r\nbegin 42\r\n")
    here.type("\x03")
    here.expect(PROMPT)
    # Job control.
    here.type(f"{FOREGROUND}\r")
    here.expect("\r\nbegin 42\r\n")
    here.type("\x1a")
    here.expect("Stopped")
    here.expect(PROMPT)
    here.type("fg\r")
    here.expect("\r\nagain 43\r\n")
    here.type("\x03")
    here.expect(PROMPT)
    # Characters beyond ASCII, and a password that is not shown.
    here.type("echo grüße-日本\r")
    here.expect("\r\ngrüße-日本\r\n")
    here.type("read -rsp 'secret: ' x; echo; echo got ${#x}\r")
    here.expect("secret: $")
    here.type("hunter2\r")
    here.expect("got 7\r\n")
    assert b"hunter2" not in here.output
    here.type("exit 42\r")
    assert here.wait() == 42
    assert here.restored()


def test_escapes_leave_a_session_and_attaching_returns(open_cli: OpenCli, cli: Cli, client: Client) -> None:
    here = open_cli("exec", "-it", "--id", "leave-me", AGENT, "--", *SHELL)
    here.expect(PROMPT)
    here.type("x=kept\r")
    here.expect(PROMPT)
    here.type("~?")
    here.expect("leave it running")
    here.type("~d")
    assert here.wait() == 0
    assert here.restored()
    assert b"tachikoma sessions attach leave-me" in here.output
    wait_until(lambda: not client.status("leave-me").attached_by, "the session is detached")
    assert b"leave-me" in cli.run("sessions", "ls", "-o", "name").stdout.split()
    again = open_cli("sessions", "attach", "leave-me", rows=30, columns=90)
    again.expect(PROMPT)
    again.type(f"echo $x; {UNTIL_SIZE.format('30 90')}")
    again.expect("\r\nkept\r\n30 90\r\n")
    assert client.status("leave-me").attached_by == client.spiffe_id
    again.type("\r~.")
    assert again.wait() != 0
    assert again.restored()
    wait_until(lambda: client.status("leave-me").state.terminal, "it has ended")


def test_a_killed_program_leaves_its_session(open_cli: OpenCli, client: Client) -> None:
    here = open_cli("exec", "-it", "--id", "killed", AGENT, "--", *SHELL)
    here.expect(PROMPT)
    here.process.kill()
    wait_until(lambda: not client.status("killed").attached_by, "the session is detached")
    again = open_cli("sessions", "attach", "killed")
    again.expect(PROMPT)
    again.type("exit\r")
    assert again.wait() == 0


def test_sigterm_restores_the_terminal_and_leaves_the_session(open_cli: OpenCli, client: Client) -> None:
    here = open_cli("exec", "-it", "--id", "terminated", AGENT, "--", *SHELL)
    here.expect(PROMPT)
    here.process.terminate()
    assert here.wait() == 0
    assert here.restored()
    client.cancel("terminated")


def test_a_pipe_streams_through_unchanged(cli: Cli) -> None:
    data = random.Random(7).randbytes(6 * 1024 * 1024)
    # More than a request can hold, without any option.
    done = cli.run("exec", AGENT, "--", "sha256sum", stdin=data)
    assert done.stderr == b""
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    # Both ways, and at once.
    part = data[:300_000]
    done = cli.run("exec", "-i", AGENT, "--", "sh", "-c", "cat; echo err >&2; exit 3", stdin=part)
    assert (done.returncode, done.stderr) == (3, b"err\n")
    assert done.stdout == part


def test_a_command_answers_before_its_input_ends(cli: Cli) -> None:
    with WarmPopen(
        [sys.executable, "-m", "tachikoma", "exec", "-i", AGENT, "--", "cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=cli.environment(),
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):
            line = f"line {number}\n".encode()
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line
        process.stdin.close()
        assert process.wait(PATIENCE_SECONDS) == 0


def test_without_a_terminal_here_there_is_none_there(cli: Cli) -> None:
    done = cli.run("exec", "-it", AGENT, "--", "sh", "-c", "tty; exit 5", stdin=b"")
    assert (done.returncode, done.stdout) == (5, b"not a tty\n")
    assert b"standard input is not a terminal" in done.stderr


def test_a_full_screen_program_goes_on_after_a_resize(open_cli: OpenCli) -> None:
    here = open_cli("exec", "-it", AGENT, "--", "less", "/etc/services", rows=20, columns=70)
    here.expect("/etc/services")
    here.type("G")
    here.expect(r"\(END\)")
    here.resize(12, 60)
    here.type("g")
    here.type("q")
    assert here.wait() == 0


def test_an_observer_reads_along(open_cli: OpenCli, cli: Cli, client: Client) -> None:
    here = open_cli("exec", "-it", "--id", "observed", AGENT, "--", *SHELL)
    here.expect(PROMPT)
    there = open_cli("sessions", "watch", "observed")
    there.expect(PROMPT)
    here.expect("observed by spiffe://")
    assert b"observed by" in cli.run("sessions", "ls").stdout
    there.type("echo intruder\r")
    here.type("echo se''en\r")
    there.expect("seen")
    there.process.send_signal(signal.SIGINT)
    assert there.wait() == 0
    here.expect("observed no longer")
    here.type("exit\r")
    assert here.wait() == 0
    assert b"intruder" not in here.output
    assert client.status("observed").observers == ()


def test_an_observer_that_policy_names_is_not_the_requester(stack: Stack, open_cli: OpenCli, tmp_path: Path) -> None:
    here = open_cli("exec", "-it", "--id", "taught", AGENT, "--", *SHELL)
    here.expect(PROMPT)

    def environment(person: SpiffeId) -> dict[str, str]:
        place = tmp_path / person.path.rpartition("/")[2]
        stack.issue(person).save(place)
        return {**os.environ, "TACHIKOMA_PROFILE": str(place), "COLUMNS": "200"}

    watch = [sys.executable, "-m", "tachikoma", "sessions", "watch"]
    with PtyProcess([*watch, "taught"], env=environment(TRAINER)) as there:
        there.expect(PROMPT)
        here.expect(f"observed by {TRAINER}")
        there.type("echo intruder\r")
        here.type("echo se''en\r")
        there.expect("seen")
        there.process.send_signal(signal.SIGINT)
        assert there.wait() == 0
    here.expect("observed no longer")
    # The beginning of an id is searched in the observer's own executions only.
    for person, wanted in ((TRAINER, "taug"), (STRANGER, "taught")):
        done = subprocess.run(
            [*watch, wanted], env=environment(person), capture_output=True, timeout=PATIENCE_SECONDS, check=False
        )
        assert done.returncode == 1
        assert f"there is no execution '{wanted}' that you may observe".encode() in done.stderr
    here.type("exit\r")
    assert here.wait() == 0
    assert b"intruder" not in here.output


FULL_SCREEN = {
    "vi": (
        ("vim", "-n", "-N", "-u", "NONE", "-i", "NONE", "/etc/services"),
        "/etc/services",
        "Gofirst\x1b:set nu\r",
        "first",
    ),
    "less": (("less", "/etc/services"), "/etc/services", "G", r"\(END\)"),
    "top": (("top", "-d", "1000"), "load average", "1", "%Cpu0"),
    "tmux": (("tmux", "-S", "socket", "-f", "/dev/null", "new", "sh"), r"\[0\]", "\x02%echo le''ft\r", "left"),
}


@pytest.mark.parametrize("program", FULL_SCREEN)
def test_a_full_screen_program_is_drawn_again(open_cli: OpenCli, client: Client, tmp_path: Path, program: str) -> None:
    command, begin, typed, end = FULL_SCREEN[program]
    name = f"redrawn-{program}"
    folder = ("sh", "-c", f'cd {tmp_path} && exec "$@"', "sh", "env", f"HOME={tmp_path}")
    here = open_cli("exec", "-it", "--id", name, AGENT, "--", *folder, *command)
    here.expect(begin)
    here.type(typed)
    here.expect(end)
    # Whatever the program has drawn until now, the drawing and the output that follows are as the output itself.
    again = open_screen(SIZE)
    with client.attach_session(name, screen=SIZE) as session:
        drawing = None
        for message in session:
            if message.kind is OutputKind.SCREEN:
                drawing = message
                again.feed(message.data)
                at_once = on_screen(again)
                client.cancel(name)
            elif message.kind is OutputKind.STDOUT:
                again.feed(message.data)
    assert drawing is not None
    undisturbed = open_screen(SIZE)
    for message in client.attach(name):
        if message.kind is OutputKind.STDOUT:
            undisturbed.feed(message.data)
            if message.seq == drawing.seq:
                assert at_once == on_screen(undisturbed)
                assert sum(map(bool, undisturbed.text())) > 5
    assert on_screen(again) == on_screen(undisturbed)


def on_screen(screen: Screen) -> bytes:
    """The screen with its colours, modes and cursor; without the lines above it."""
    return screen.draw().rpartition(b"\x1b[H\x1b[2J")[2]


#: Processes that try to outlive their session. Each has a mark with its kind in its arguments.
ZOO = r"""
mark=$1
nohup sh -c 'sleep 300; :' $mark-nohup >/dev/null 2>&1 &
setsid sh -c 'sleep 300; :' $mark-setsid &
(trap '' HUP TERM INT; exec sh -c 'sleep 300; :' $mark-deaf) &
(setsid sh -c "trap '' HUP TERM; (sh -c 'sleep 300; :' $mark-twice) &" &)
sh -c 'kill -STOP $$; :' $mark-stopped &
setsid perl -e 'while (1) { exit if fork }' $mark-quick </dev/null >/dev/null 2>&1 &
trap '' HUP TERM
echo zoo
sh -c 'sleep 300; :' $mark-shell
"""
#: The kinds that can be seen. The quick one has another process id whenever one looks.
KINDS = ("nohup", "setsid", "deaf", "twice", "stopped", "shell")


#: How the end of a closed session is described: the agent hangs up; one that is slow to do so is sent a cancel.
CLOSED = ("hung up: its caller closed the session", "cancelled")


@pytest.mark.parametrize("level", ["shared", "private", "sealed"])
def test_nothing_of_a_closed_session_lives_and_its_receipt_says_so(
    client: Client, need: Callable[[bool, str], None], level: str
) -> None:
    [agent] = client.agents()
    need(not agent.warnings, f"cgroups that root may make: {agent.warnings}")
    need(level in ("shared", *agent.isolation), f"namespaces for {level}")
    mark = uuid.uuid4().hex
    wanted = request("bash", "-c", ZOO, "zoo", mark, interactive=True, tty=True, isolation=level)
    seen: set[str] = set()

    def all_seen() -> bool:
        words = " ".join(word for process in processes_named(mark) for word in arguments_of(process))
        seen.update(kind for kind in KINDS if f"{mark}-{kind}" in words)
        return seen == set(KINDS)

    with client.session(wanted) as session:
        for message in session:
            if b"zoo" in message.data:
                wait_until(all_seen, "each kind of process runs")
                session.close()
            result = message.result
    assert result is not None
    assert result.state is ExecState.CANCELLED
    assert result.error in CLOSED
    assert result.kill is not None
    assert (result.kill.empty, result.kill.whole, result.kill.survivors) == (True, True, ())
    assert (result.isolation.level if result.isolation else "shared") == level
    assert processes_named(mark) == []


def arguments_of(process: psutil.Process) -> list[str]:
    """The arguments of a process; none of one that has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def test_what_policy_does_not_allow_is_refused(stack: Stack, cli: Cli, client: Client) -> None:
    policy = stack.data / "policy.yaml"
    before, digest = policy.read_text(), client.policy_status().digest
    try:
        policy.write_text(before.replace("allowInteractive: true", "allowInteractive: false"))
        done = wait_until(
            lambda: (tried := cli.run("exec", "-i", AGENT, "--", "cat", stdin=b"x")).returncode == 125 and tried,
            "the new policy is active",
        )
        assert b"does not allow interactive executions" in done.stderr
    finally:
        policy.write_text(before)
        wait_until(lambda: client.policy_status().digest == digest, "the policy of the other tests is active")


#: The client in another language: its program and the lock of its packages.
NODE = Path(__file__).parents[2] / "docs/examples/node"
PROTOS = Path(__file__).parents[2] / "shared"


def test_a_client_in_another_language_needs_only_the_api_definition(
    stack: Stack, tmp_path: Path, need: Callable[[bool, str], None]
) -> None:
    need(all(map(shutil.which, ("node", "npm"))), "node and npm")
    for name in ("package.json", "package-lock.json", "session.js"):
        shutil.copy(NODE / name, tmp_path)
    install_packages(tmp_path)
    identity = stack.identity("user")
    done = subprocess.run(
        ["node", "session.js", stack.address, SERVER_NAME, str(identity), str(PROTOS), AGENT],
        cwd=tmp_path, capture_output=True, timeout=3 * PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.stderr == b""
    result = json.loads(done.stdout)
    assert result["left"]
    assert result["drawn"] > 0
    assert result["state"] == "EXEC_STATE_CANCELLED"
    assert result["error"] in CLOSED
    assert result["kill"]["empty"]
