"""The ends and the ways of a session that policy and options choose, by the real command line at a real terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import AGENT, POLICY, OpenCli

from pty_process import PtyProcess
from tachikoma import Client, ExecState
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import SpiffeId, user_id

IDLE, HASTY = user_id(TRUST_DOMAIN, "idle"), user_id(TRUST_DOMAIN, "hasty")
GRANTED = "    allowInteractive: true\n    allowTty: true\n    killGrace: 1s\n"
OTHER = """\
  - name: {name}
    subjects: ["{subject}"]
    agents: ["**"]
    allowedCommands: ["/** ..."]
    allowInterpreters: true
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    """A stack where sessions of two people end early, each for another reason."""
    folder = tmp_path_factory.mktemp("bounds")
    made = Stack(folder, redis_server=redis_server)
    policy = POLICY.format(user=made.user).replace(f"spiffe://{TRUST_DOMAIN}/user/*", str(made.user)) + GRANTED
    policy += OTHER.format(name="idle", subject=IDLE) + GRANTED + "    idleTimeout: 2s\n"
    policy += OTHER.format(name="hasty", subject=HASTY) + GRANTED + "    maxDuration: 2s\n"
    (folder / "policy.yaml").write_text(policy)
    with made as running:
        yield running


@pytest.mark.parametrize(
    ("person", "name", "message"),
    [(IDLE, "idle", "hung up: no input for 2 s"), (HASTY, "hasty", "timeout")],
    ids=["idle", "maximum"],
)
def test_a_session_that_lasts_too_long_ends_with_its_reason(
    open_cli: OpenCli, client: Client, person: SpiffeId, name: str, message: str
) -> None:
    here = open_cli("exec", "-it", "--id", name, AGENT, "--", "cat", person=person)
    here.expect(message)
    assert here.wait() == 124
    assert here.restored()
    assert client.status(name).state is ExecState.TIMED_OUT


def test_a_file_that_vi_writes_is_there(open_cli: OpenCli, tmp_path: Path) -> None:
    file = tmp_path / "edited.txt"
    file.write_text("second\n")
    tmp_path.chmod(0o755)
    vi = ("vim", "-n", "-N", "-u", "NONE", "-i", "NONE", str(file))
    here = open_cli("exec", "-it", "-u", "root", AGENT, "--", *vi)
    here.expect("second")
    here.type("Ofirst\x1b:wq\r")
    assert here.wait() == 0
    assert here.restored()
    assert file.read_text() == "first\nsecond\n"


def test_shell_opens_a_login_shell(open_cli: OpenCli) -> None:
    here = open_cli("shell", AGENT)
    here.type("shopt -q login_shell && echo lo''gin; tty; exit 4\r")
    here.expect("login\r\n/dev/pts/")
    assert here.wait() == 4
    assert here.restored()


def test_no_terminal_is_requested_where_none_is_wanted(open_cli: OpenCli) -> None:
    here = open_cli("exec", "-i", "-T", AGENT, "--", "sh", "-c", "tty; head -n 1; exit 6")
    here.expect("not a tty")
    here.type("line\r")
    assert here.wait() == 6


def test_a_session_within_tmux_has_its_type_and_size(stack: Stack, tmp_path: Path, client: Client) -> None:
    stack.profile().save(tmp_path / "profile.json")
    environment = {**os.environ, "TACHIKOMA_PROFILE": str(tmp_path / "profile.json"), "LC_ALL": "C.UTF-8"}
    tmux = ("tmux", "-S", str(tmp_path / "tmux"), "-f", "/dev/null", "new-session")
    shell = ("sh", "-c", "echo $TERM of $(stty size); exec less /etc/services")
    command = [sys.executable, "-m", "tachikoma", "exec", "-it", "--id", "in-tmux", AGENT, "--", *shell]
    with PtyProcess([*tmux, *command], env=environment, rows=30, columns=90) as here:
        # The last line is that of tmux.
        here.expect(r"(screen|tmux)[-0-9a-z]* of 29 90")
        here.type("G")
        here.expect(r"\(END\)")
        here.type("q")
        here.expect("exited")
        assert here.wait() == 0
        assert here.restored()
    assert client.status("in-tmux").state is ExecState.SUCCEEDED


def test_a_full_screen_program_gets_the_new_size_of_the_window(open_cli: OpenCli) -> None:
    shown = "autocmd VimResized * echo 'now' &lines 'x' &columns"
    vi = ("vim", "-n", "-N", "-u", "NONE", "-i", "NONE", "-c", shown, "/etc/services")
    here = open_cli("exec", "-it", AGENT, "--", *vi)
    here.expect("/etc/services")
    for rows, columns in ((12, 60), (40, 132)):
        here.resize(rows, columns)
        here.expect(f"now {rows} x {columns}")
    here.type(":q\r")
    assert here.wait() == 0
    assert here.restored()
