"""Leaving a session by each way, as a person does: the terminal is usable again, and what is reported is true."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import AGENT, POLICY, OpenCli

from pty_process import PtyProcess
from tachikoma import Client, ExecState
from tachikoma.cli.terminal import RESET
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import user_id

CAREFUL, BOSS = user_id(TRUST_DOMAIN, "careful"), user_id(TRUST_DOMAIN, "boss")
GRANTED = """\
    allowInteractive: true
    allowTty: true
    killGrace: 20s
"""
ASKED = f"""\
  - name: asked
    subjects: ["{CAREFUL}"]
    agents: ["**"]
    allowedCommands: ["/usr/bin/cat"]
    requireApproval: true
    approvers: ["{BOSS}"]
"""

#: Modes as a full-screen program sets them: other screen, mouse, pasted text, cursor, colour.
SCREEN_MODES = r"\033[?1049h\033[?1002;1006h\033[?2004h\033[?25l\033[31m"
#: The bytes that undo them.
UNDONE = (b"\x1b[?1049l", b"\x1b[?1002l", b"\x1b[?1006l", b"\x1b[?2004l", RESET)
FULL_SCREEN = ("sh", "-c", f"printf '{SCREEN_MODES}dra''wn'; exec cat")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    """A stack where one person needs approvals."""
    folder = tmp_path_factory.mktemp("leaving")
    made = Stack(folder, redis_server=redis_server)
    everybody = POLICY.format(user=made.user).replace(f"spiffe://{TRUST_DOMAIN}/user/*", str(made.user))
    (folder / "policy.yaml").write_text(everybody + GRANTED + ASKED + GRANTED)
    with made as running:
        yield running


def leave_by_terminating(here: PtyProcess) -> None:
    here.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("name", "leave", "code"),
    [
        ("detached", lambda here: here.type("\r~d"), 0),
        ("terminated", leave_by_terminating, 0),
        ("ended", lambda here: here.type("\r~."), 130),
    ],
    ids=["detached", "terminated", "ended"],
)
def test_the_terminal_of_a_full_screen_program_is_clean_again(
    open_cli: OpenCli, client: Client, name: str, leave: Callable[[PtyProcess], None], code: int
) -> None:
    here = open_cli("exec", "-it", "--id", name, AGENT, "--", *FULL_SCREEN)
    here.expect("drawn")
    before = len(here.output)
    leave(here)
    assert here.wait() == code
    assert here.restored()
    for sequence in UNDONE:
        assert sequence in here.output[before:]
    client.cancel(name)


def test_a_screen_that_was_not_changed_is_left_alone(open_cli: OpenCli, client: Client) -> None:
    here = open_cli("exec", "-it", "--id", "plain", AGENT, "--", "sh", "-c", "echo beg''un; exec cat")
    here.expect("begun")
    here.type("~d")
    assert here.wait() == 0
    # Some terminals move the cursor at this.
    assert b"\x1b[?1049l" not in here.output
    # A program that ends by itself has restored the terminal.
    again = open_cli("sessions", "attach", "plain")
    again.expect("begun")
    again.type("\x04")
    assert again.wait() == 0
    assert RESET not in again.output


def test_a_session_that_does_not_end_soon_is_reported_as_it_is(open_cli: OpenCli, client: Client) -> None:
    stubborn = "trap '' HUP TERM; echo beg''un; while :; do sleep 0.1; done"
    here = open_cli("exec", "-it", "--id", "stubborn", AGENT, "--", "sh", "-c", stubborn)
    here.expect("begun")
    here.type("~.")
    assert here.wait() == 130
    assert b"left; stubborn: cancel requested; the agent ends it" in here.output
    assert b"the session continues" not in here.output
    assert here.restored()
    assert client.status("stubborn").cancel_requested_by == client.spiffe_id


def test_ctrl_c_withdraws_a_request_that_waits_for_its_approval(open_cli: OpenCli, client: Client) -> None:
    here = open_cli("exec", "-it", "--id", "asked", AGENT, "--", "cat", person=CAREFUL)
    here.expect(r"\r\ntachikoma: waiting until .*\r\ntachikoma: to approve: tachikoma approve asked\r\n")
    # The mode is raw, so a line break alone would not return to the first column.
    assert not re.search(rb"(?<!\r)\n", here.output)
    here.type("\x03")
    assert here.wait() == 130
    assert here.restored()
    assert b"left" not in here.output
    assert client.status("asked").state is ExecState.CANCELLED


def test_escapes_work_at_a_session_that_takes_no_input_yet(open_cli: OpenCli, client: Client) -> None:
    first = open_cli("exec", "-it", "--id", "waits", AGENT, "--", "cat", person=CAREFUL)
    first.expect("to approve")
    first.type("~d")
    assert first.wait() == 0
    again = open_cli("sessions", "attach", "waits", person=CAREFUL)
    again.expect("to approve")
    # The command takes this once it runs.
    again.type("echo\r~d")
    assert again.wait() == 0
    assert b"the session continues" in again.output
    assert client.status("waits").state is ExecState.PENDING_APPROVAL
    last = open_cli("sessions", "attach", "waits", person=CAREFUL)
    last.expect("to approve")
    last.type("echo\r~.")
    assert last.wait() == 130
    assert last.restored()
    assert b"left" not in last.output
    assert client.status("waits").state is ExecState.CANCELLED


def test_a_server_that_stays_away_can_be_left_and_one_that_returns_is_noted(
    stack: Stack, open_cli: OpenCli, client: Client
) -> None:
    here = open_cli("exec", "-it", "--id", "lonely", AGENT, "--", *FULL_SCREEN)
    here.expect("drawn")
    stack.orchestrator.kill()
    try:
        here.expect("connection lost; trying again, ~. leaves\r\n")
    finally:
        stack.start_orchestrator()
    here.expect("connected again\r\n")
    here.type("ec''ho\r")
    here.expect("ec''ho")
    stack.orchestrator.kill()
    try:
        here.expect("connection lost; trying again, ~. leaves\r\n")
        before = len(here.output)
        here.type("~.")
        assert here.wait() == 130
    finally:
        stack.start_orchestrator()
    assert here.restored()
    for sequence in UNDONE:
        assert sequence in here.output[before:]
    assert (
        b"left; no orchestrator answers, so it may continue: `tachikoma sessions close lonely` ends it" in here.output
    )
    assert client.status("lonely").state is ExecState.STARTED
    client.cancel("lonely")
