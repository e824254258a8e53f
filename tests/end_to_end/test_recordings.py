"""Recordings of real sessions: the real command line types, lists, exports and plays; a full disk ends a session."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from browser import Browser, chromium
from support import AGENT, Cli, install_packages, make_cli, prepare, wait_until

from json_schemas import checked
from tachikoma import Client, ExecRequest, FailedPrecondition, OutputKind, WindowSize
from tachikoma.dev.stack import Stack
from tachikoma.sessions.asciicast import read_cast
from tachikoma.vocabulary.states import ExecState

RULES = "    allowInteractive: true\n    allowTty: true\n    record: required\n"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small file system for recordings."""
    if os.geteuid():
        pytest.skip("only root mounts a file system")
    disk = tmp_path_factory.mktemp("recordings")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None, disk: Path) -> Iterator[Stack]:
    """A stack whose policy requires recordings."""
    folder = prepare(tmp_path_factory.mktemp("recorded"))
    policy = folder / "policy.yaml"
    policy.write_text(policy.read_text().rstrip() + f"\n{RULES}")
    environment = {"TACHIKOMA_RECORDINGS": str(disk)}
    with Stack(folder, redis_server=redis_server, environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def cli(stack: Stack) -> Cli:
    return make_cli(stack)


def test_a_session_is_recorded_exported_and_played(stack: Stack, cli: Cli, client: Client, tmp_path: Path) -> None:
    request = ExecRequest(
        id="recorded", agent_id=AGENT, command=["sh", "-c", "echo the needle; read x; echo got $x"],
        interactive=True, tty=True, terminal={"rows": 30, "columns": 100},
    )  # fmt: skip
    with client.session(request) as session:
        session.write(b"hay\r")
        kinds = [message.kind for message in session]
    assert kinds[-1] is OutputKind.RESULT
    # The agent's receipt vouches for what is recorded.
    [info] = wait_until(lambda: client.recordings(exec_id="recorded"), "it is finished")
    assert (info.complete, info.problem, info.exit_code, info.has_input) == (True, "", 0, False)
    found = cli.run("recordings", "ls", "--text", "NEEDLE").stdout.decode()
    assert "the needle" in found
    assert "complete" in found
    listed = checked("recordings ls", cli.run("recordings", "ls", "--text", "needle", "-o", "json").stdout)
    assert [(item["id"], item["complete"]) for item in listed] == [("recorded", True)]
    assert "the needle" in listed[0]["matches"][0]["line"]
    target = tmp_path / "recorded.cast"
    assert cli.run("recordings", "export", "recorded", "--file", str(target)).returncode == 0
    header, events = read_cast(target.read_bytes().splitlines(keepends=True))
    assert (header.columns, header.rows) == (100, 30)
    shown = "".join(event.data for event in events if event.code == "o")
    assert "the needle\r\n" in shown
    assert "got hay\r\n" in shown
    second = cli.run("recordings", "export", "recorded", "--format", "v2").stdout.splitlines()
    assert json.loads(second[0])["version"] == 2
    played = cli.run("play", "recorded", "--speed", "1000", "--search", "needle").stdout.decode()
    assert played == shown
    assert b"".join(client.recording("recorded")) == target.read_bytes()


#: asciinema's own player, and the page that runs it.
PLAYER = Path(__file__).with_name("player")
#: Draws as full-screen programs do: colours, a cleared screen, the alternate one, places, and a line after a resize.
DRAWING = r"""
printf 'gone\r\n\033[2J\033[H\033[31mred\033[0m w\303\266rld\r\n\033[?1049hhidden\033[?1049l'
read size; printf '\033[3;5Hthere\033[4;60Hright of the old edge'; read end
"""
#: The screen after it.
DRAWN = ["red wörld", "", "    there", " " * 59 + "right of the old edge", ""]


@pytest.mark.long
def test_a_recording_plays_in_asciinemas_own_player(
    cli: Cli, client: Client, tmp_path: Path, need: Callable[[bool, str], None]
) -> None:
    need(all(map(shutil.which, ("node", "npm"))), "node and npm")
    need(chromium() is not None, "Chromium")
    for file in PLAYER.iterdir():
        shutil.copy(file, tmp_path)
    install_packages(tmp_path)
    wanted = ExecRequest(
        id="drawn", agent_id=AGENT, command=["sh", "-c", DRAWING], interactive=True, tty=True,
        terminal={"rows": 5, "columns": 50},
    )  # fmt: skip
    with client.session(wanted) as session:
        # Each answer is typed once: it is echoed, and more lines would scroll.
        seen, answers = b"", [(b"1049l", b"\r"), (b"old edge", b"\x04")]
        for message in session:
            seen += message.data
            if answers and answers[0][0] in seen:
                session.resize(WindowSize(rows=5, columns=90))
                session.write(answers.pop(0)[1])
    wait_until(lambda: client.recordings(exec_id="drawn"), "it is finished")
    for name, options in (("v3.cast", ()), ("v2.cast", ("--format", "v2"))):
        exported = cli.run("recordings", "export", "drawn", "--file", str(tmp_path / name), *options)
        assert exported.returncode == 0, exported.stderr
    handler = partial(SilentHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, Browser(width=1000, height=500) as page:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            for name in ("v3.cast", "v2.cast"):
                page.open(f"http://127.0.0.1:{server.server_port}/page.html?file={name}")
                page.wait(f"file === '{name}' && /ended|errored/.test(events)", f"{name} is played")
                assert page.ask("events.join(' ')") == "playing ended"
                page.wait("lines()", "its last screen is drawn", lambda lines: lines == DRAWN)
        finally:
            server.shutdown()


class SilentHandler(SimpleHTTPRequestHandler):
    """Serves files, and logs nothing."""

    def log_message(self, format: str, *values: Any) -> None:
        pass


def test_a_full_disk_ends_a_session_that_must_be_recorded(stack: Stack, client: Client, disk: Path) -> None:
    # More output than the rest of a page of memory, in which a file on a full disk still grows.
    command = ["sh", "-c", "echo begun; read x; seq 20000; sleep 1000"]
    request = ExecRequest(agent_id=AGENT, command=command, interactive=True, tty=True)
    filler = disk / "filler"
    reasons: list[str] = []
    with client.session(request) as session:
        messages = iter(session)
        next(message for message in messages if b"begun" in message.data)
        # The recorder is another reader than the caller.
        wait_until(lambda: any(b'["o",' in part.read_bytes() for part in disk.rglob("output-*")), "it is recorded")
        fill(filler)
        try:
            session.write(b"more\r")
            for message in messages:
                if message.kind is OutputKind.RESULT and message.result is not None:
                    reasons.append(message.result.state)
        except FailedPrecondition as error:
            reasons.append(str(error))
    assert len(reasons) == 1
    assert reasons[0] == "CANCELLED" or "must be recorded" in reasons[0]
    ended: Callable[[], bool] = lambda: client.status(request.id).state is ExecState.CANCELLED  # noqa: E731
    wait_until(ended, "the agent has ended it")
    codes = [event.event for event in client.audit(exec_id=request.id)]
    assert "cancel_requested" in codes
    # Such requests are refused until there is room again.
    with pytest.raises(FailedPrecondition, match="policy requires a recording, which cannot be written"):
        list(client.session(ExecRequest(agent_id=AGENT, command=["true"], interactive=True)))
    filler.unlink()
    [info] = wait_until(lambda: client.recordings(exec_id=request.id), "it is finished")
    assert not info.complete or info.sha256


def fill(filler: Path) -> None:
    """Fill a file system to the last byte."""
    with filler.open("wb", buffering=0) as file:
        size = 65536
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
