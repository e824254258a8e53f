"""The command line as a person at a terminal sees it: sessions of bash in tmux, on a running stack."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from support import AGENT, Cli, wait_until
from support import request as request_of

import pictures
from tachikoma import Client

#: What Rich draws around the parts of a help text.
FRAME = re.compile("[╭╮╰╯│─]")
#: Values that change between two looks: numbers, shares, times and ages.
CHANGING = re.compile(r"-|now|(in )?[\d.:/% -]+((ms|[smhd])( ago)?)?")
#: Between two presses of Tab, in seconds: a slow machine may not complete within the time that a person waits.
TAB_SECONDS = 3.0


class Terminal:
    """A bash in tmux, whose prompt has the number of the next command."""

    def __init__(self, folder: Path, profile: Path, columns: int) -> None:
        self.folder = folder
        self._columns = columns
        self._tmux = ["tmux", "-u", "-S", str(folder / "tmux.sock"), "-f", str(folder / "tmux.conf")]
        (folder / "tmux.conf").write_text("set -g history-limit 20000\n")
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder), "LANG": "C.UTF-8",
            "TERM": "xterm-256color", "TACHIKOMA_PROFILE": str(profile), "PS1": r"[\#]> ",
            # It would write its history when tmux has ended, while the folder is removed.
            "HISTFILE": "",
        }  # fmt: skip
        words = [f"{name}={value}" for name, value in environment.items()]
        self._call(
            *("new-session", "-d", "-x", str(columns), "-y", "24"),
            *("env", "-i", *words, "bash", "--norc", "--noprofile"),
            cwd=folder,
        )
        self._number = 1
        self._wait_for_prompt()

    def _call(self, *arguments: str, cwd: Path | None = None) -> str:
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            [*self._tmux, *arguments], env=environment, check=True, capture_output=True, cwd=cwd
        ).stdout.decode()

    def close(self) -> None:
        """End bash and tmux."""
        self._call("kill-server")

    def lines(self, *options: str) -> list[str]:
        """Everything on the screen and above it."""
        return [line.rstrip() for line in self._call("capture-pane", "-p", "-S", "-", *options).splitlines()]

    def _wait_for_prompt(self) -> None:
        prompt = f"[{self._number}]>"
        wait_until(lambda: [line for line in self.lines() if line][-1:] == [prompt], f"the prompt {prompt}")

    def type(self, *keys: str) -> None:
        """Type keys by their names in tmux."""
        self._call("send-keys", *keys)

    def run(self, command: str, *options: str) -> list[str]:
        """Type a command, and return the lines that it prints, captured with more options of tmux."""
        first = f"[{self._number}]> {command}"
        assert len(first) < self._columns
        self._call("send-keys", "-l", command)
        self.type("Enter")
        self._number += 1
        self._wait_for_prompt()
        lines = self.lines(*options)
        return lines[lines.index(first) + 1 : lines.index(f"[{self._number}]>")]

    def complete(self, text: str, expected: str) -> None:
        """Type a text and Tab until a line of the screen is the expected one."""
        self._call("send-keys", "-l", text)

        def offered() -> bool:
            self.type("Tab")
            until = time.monotonic() + TAB_SECONDS
            while time.monotonic() < until:
                if expected in self.lines():
                    return True
                time.sleep(0.02)
            return False

        wait_until(offered, f"{expected!r} is offered")


@pytest.fixture
def terminal(cli: Cli, need: Callable[[bool, str], None], request: pytest.FixtureRequest) -> Iterator[Terminal]:
    """A terminal of as many columns as the test's parameter says, or 80."""
    need(shutil.which("tmux") is not None, "tmux")
    # Not under tmp_path: the path of a unix socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="tk-"))
    here = Terminal(folder, cli.profile, getattr(request, "param", 80))
    yield here
    here.close()
    shutil.rmtree(folder)


def test_nothing_is_folded_and_nothing_is_cut_without_an_ellipsis(terminal: Terminal, cli: Cli, client: Client) -> None:
    long = request_of("echo", *(f"a-rather-long-argument-{number}" for number in range(20)))
    client.execute(long)
    # Help, whose words are all there at each width.
    for command in ("--help", "exec --help"):
        wanted = words_of(cli.run(*command.split()).stdout.decode().splitlines())
        shown = words_of(terminal.run(f"tachikoma {command}"))
        # The tests start it as `python -m tachikoma`.
        assert wanted - {"python", "-m"} <= shown
    # Commands print what they run, and notes of their own.
    assert terminal.run(f"tachikoma exec {AGENT} -- echo hello") == ["hello"]
    ran = terminal.run("tachikoma run 'agent-[1-2]' -- echo hello")
    assert [line for line in ran if "hello" in line]
    assert ran[-1].endswith(": 2 of 2 targets succeeded")
    assert terminal.run(f"tachikoma logs {long.id[:16]} | wc -w") == ["20"]
    look_at_lists(terminal, cli)
    assert any(line.endswith("…") and "echo a-rather" in line for line in terminal.lines())
    # With -J, tmux joins the lines that it folded.
    assert terminal.lines() == terminal.lines("-J")
    terminal.run('eval "$(_TACHIKOMA_COMPLETE=source_bash tachikoma)"')
    terminal.run("bind 'set show-all-if-ambiguous on'")
    terminal.complete("tachikoma exec agent-", "agent-1  agent-2")


@pytest.mark.parametrize("terminal", [40, 200], indirect=True)
def test_lists_are_not_folded_on_a_narrow_and_a_wide_terminal(terminal: Terminal, cli: Cli, client: Client) -> None:
    client.execute(request_of("echo", *(f"a-rather-long-argument-{number}" for number in range(20))))
    assert cli.run("run", AGENT, "--", "true").returncode == 0
    look_at_lists(terminal, cli)
    assert terminal.lines() == terminal.lines("-J")


#: What a person types, and what answers: help, output, hints, mistakes.
SESSION = (
    "tachikoma --help",
    "tachikoma exec --help",
    "tachikoma exec agent-1 -- echo hello",
    "tachikoma exec agent-1 -- sh -c 'echo to stderr >&2; exit 3'",
    'tachikoma exec agent-1 "ls -l"',
    "tachikoma exec agnet-1 true",
    "tachikoma exec --timeot 5s agent-1 true",
    "tachikoma exec agent-1 --timeout 5s true",
    "tachikoma exce agent-1 true",
    "tachikoma status no-such-execution",
    "tachikoma ps --by nobody",
    "tachikoma run --preview 'agent-[1-3]' -- true",
    "tachikoma run --parallel 1 'agent-[1-2]' -- echo hello",
    "tachikoma policy explain agent-1 true",
)
#: Parts of an answer that differ each time: ids, digests, paths, and how long it took.
MASKED = ((re.compile("[0-9a-f]{24}"), "f" * 24), (re.compile("digest [0-9a-f]{12}"), "digest ffffffffffff"))
PICTURES = Path(__file__).parent / "pictures"
LISTS = Path(__file__).parents[1] / "unit/shared/cli"


@pytest.mark.parametrize("terminal", [40, 80, 200], indirect=True)
def test_a_session_looks_as_in_its_picture(terminal: Terminal, request: pytest.FixtureRequest) -> None:
    columns = request.node.callspec.params["terminal"]
    script = "".join(f'echo {shlex.quote(f"$ {line}")}; {line}; echo "[exit $?]"; echo\n' for line in SESSION)
    (terminal.folder / "session").write_text(f"export NO_COLOR=1 TZ=UTC\n{script}")
    shown = "\n".join(terminal.run("bash session")) + "\n"
    for pattern, instead in MASKED:
        shown = pattern.sub(instead, shown)
    pictures.compare(shown, PICTURES / f"session-{columns}.txt")


@pytest.mark.parametrize("terminal", [40, 80, 200], indirect=True)
def test_lists_look_in_tmux_as_in_their_pictures(terminal: Terminal, request: pytest.FixtureRequest) -> None:
    columns = request.node.callspec.params["terminal"]
    (terminal.folder / "lists").write_text(f"export NO_COLOR=1 TZ=UTC\npython {LISTS / 'pictured.py'}\n")
    # The picture has whole lines where the terminal folds text.
    shown = terminal.run("bash lists", "-J")
    kept = (LISTS / f"pictures/lists-{columns}.txt").read_text(encoding="utf-8")
    assert [line.rstrip() for line in shown] == [line.rstrip() for line in kept.splitlines()]


def look_at_lists(terminal: Terminal, cli: Cli) -> None:
    """Compare each list on a terminal with its values in full."""
    # On standard error are notes, which are sentences: a host without cgroups has long ones.
    terminal.run("t() { tachikoma $* 2>/dev/null; }")
    for command in WIDE:
        shown = terminal.run(f"t {command}")
        whole = cli.run(*command.partition(" -")[0].split(), *WIDE[command]).stdout.decode().splitlines()
        assert len(shown) > 1
        assert cut_without_ellipsis(shown, whole) == []


#: The lists of what the test has run, and the options of longer ones that have the same values in full.
WIDE = {
    "ps -a -l 4": ("-a", "-l", "100"), "agents": (), "batches ls -l 1": (), "audit tail -n 9": ("-n", "200"),
}  # fmt: skip


def words_of(lines: Sequence[str]) -> set[str]:
    """The words of a help text, without its frame."""
    return {word for line in lines for word in FRAME.sub(" ", line).split()}


def cells_of(line: str) -> list[str]:
    return [cell for cell in re.split(r" {2,}", line.strip()) if cell]


def cut_without_ellipsis(shown: Sequence[str], whole: Sequence[str]) -> list[str]:
    """The values of a list that are no whole values, and no beginnings with an ellipsis; an id has none by design."""
    values = {cell for line in whole for cell in cells_of(line)}
    wrong = []
    for cell in (cell for line in shown for cell in cells_of(line)):
        beginning = cell.removesuffix("…")
        cut = beginning != cell or re.fullmatch(r"[\w-]{8,}", cell) is not None
        if cell in values or CHANGING.fullmatch(cell):
            continue
        if not cut or not any(value.startswith(beginning) for value in values):
            wrong.append(cell)
    return wrong
