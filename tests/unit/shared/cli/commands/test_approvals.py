"""`tachikoma approvals`, `approve` and `reject`."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma import Approval, ExecRequest, ExecState, InvalidRequest, ResourceLimits
from tachikoma.cli.commands.approvals import quoted
from tachikoma.vocabulary.isolation import Isolation

REQUEST = ExecRequest(
    id="job-7", agent_id="web-1", command=("sh", "-c", "echo a\n echo b"), environment={"B": "2", "A": "1\nid  x"},
    stdin=b"first\nsecond\n", timeout=timedelta(seconds=90),
)  # fmt: skip
DIGEST = "ab" * 32


@pytest.fixture
def waiting(status: Any) -> Approval:
    return Approval(
        status=status(state=ExecState.PENDING_APPROVAL), request=REQUEST, digest=DIGEST, policy="web@1",
        limits=ResourceLimits(pids=50),
    )  # fmt: skip


def test_waiting_executions_are_listed(run: Any, client: Any, status: Any) -> None:
    client.answers["approvals"] = (status(approvers=("spiffe://example.org/user/boss", "spiffe://example.org/user/x")),)
    lines = run("approvals").out.splitlines()
    assert lines[0].split() == ["ID", "AGENT", "BY", "ASKED", "UNTIL", "APPROVERS", "COMMAND"]
    assert lines[1].split()[:3] == ["job-7", "web-1", "user/alice"]
    assert "user/boss, user/x" in lines[1]


def test_one_execution_is_shown_in_full_and_no_value_looks_like_another_fact(
    run: Any, client: Any, waiting: Approval
) -> None:
    client.answers["approval"] = waiting
    lines = run("approvals", "job-7").out.splitlines()
    facts = [(line[:14].strip(), line[14:].strip()) for line in lines]
    assert ("command", r"sh -c $'echo a\n echo b'") in facts
    assert facts.index(("variable", r"A=$'1\nid  x'")) + 1 == facts.index(("variable", "B=2"))
    assert ("timeout", "1m30s") in facts
    assert ("limits", "pids 50") in facts
    assert ("stdin", f"13 bytes, SHA-256 {hashlib.sha256(REQUEST.stdin).hexdigest()}") in facts
    assert [value for name, value in facts if not name] == ["| first", "| second"]
    assert facts[-1] == ("digest", DIGEST)
    assert json.loads(run("approvals", "job-7", "-o", "json").out)["digest"] == DIGEST


def test_an_approver_sees_that_input_follows_unseen_and_the_isolation(
    run: Any, client: Any, waiting: Approval, status: Any
) -> None:
    def facts(**values: Any) -> set[tuple[str, str]]:
        request = REQUEST.model_copy(update={"stdin": b"", **values})
        client.answers["approval"] = waiting.model_copy(update={"request": request})
        client.answers["approve"] = status(state=ExecState.QUEUED)
        outputs = [run("approvals", "job-7").out, run("approve", "job-7", answers=["y", "seen"]).out]
        shown = [{(line[:14].strip(), line[14:].strip()) for line in output.splitlines()} for output in outputs]
        assert shown[0] <= shown[1]
        return shown[0]

    unseen = ("input", "follows while the command runs: it is not shown here, and the approval covers all of it")
    shell = facts(interactive=True, tty=True, isolation=Isolation.SEALED)
    assert {unseen, ("terminal", "yes"), ("isolation", "sealed")} <= shell
    pipe = facts(interactive=True)
    assert {unseen, ("isolation", "that of the agent")} <= pipe
    assert "terminal" not in dict(pipe)
    assert not {"input", "terminal"} & dict(facts()).keys()


@pytest.mark.parametrize("stdin", [b"x\n" * 21, b"x" * 2001])
def test_long_standard_input_is_shown_in_part(run: Any, client: Any, waiting: Approval, stdin: bytes) -> None:
    client.answers["approval"] = waiting.model_copy(update={"request": REQUEST.model_copy(update={"stdin": stdin})})
    lines = run("approvals", "job-7").out.splitlines()
    assert lines[-2].endswith("| … (--output json has all of it)")
    assert sum("| x" in line for line in lines) <= 20


def test_approve_shows_the_request_and_asks(run: Any, client: Any, waiting: Approval, status: Any) -> None:
    client.answers |= {"approval": waiting, "approve": status(state=ExecState.QUEUED)}
    done = run("approve", "job-7", answers=["y", "looks right"])
    assert "digest" in done.out
    assert "approve this?" in done.err
    assert done.out.endswith("job-7: approved (QUEUED)\n")
    assert client.calls[-1] == ("approve", ("job-7", DIGEST, "looks right"), {})
    assert run("approve", "job-7", answers=["n"]).code == 1
    assert client.calls[-1][0] == "approval"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "not a terminal: pass --digest of the request that you reviewed, or --yes"),
        (("--yes",), "not a terminal: pass --reason TEXT"),
        (("--digest", DIGEST), "not a terminal: pass --reason TEXT"),
    ],
)
def test_without_a_terminal_everything_must_be_given(
    run: Any, client: Any, waiting: Approval, options: tuple[str, ...], message: str
) -> None:
    client.answers["approval"] = waiting
    error = run("approve", "job-7", *options).error
    assert isinstance(error, InvalidRequest)
    assert str(error) == message
    assert "approve" not in [call[0] for call in client.calls]


def test_a_digest_approves_without_a_question(run: Any, client: Any, status: Any) -> None:
    client.answers["approve"] = status(state=ExecState.QUEUED)
    assert run("approve", "job-7", "--digest", DIGEST, "-m", "fine").out == "job-7: approved (QUEUED)\n"
    assert client.calls == [("approve", ("job-7", DIGEST, "fine"), {})]


def test_reject_sends_the_reason(run: Any, client: Any, status: Any) -> None:
    client.answers["reject"] = status(state=ExecState.REJECTED)
    assert run("reject", "job-7", "-m", "not today").out == "job-7: rejected (REJECTED)\n"
    assert client.calls == [("reject", ("job-7", "not today"), {})]
    assert json.loads(run("reject", "job-7", "-m", "x", "-o", "json").out)["state"] == "REJECTED"


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("plain", "plain"),
        ("a\nb", r"$'a\nb'"),
        (r"a\nb", r"'a\nb'"),
        ("a\\\nb", r"$'a\\\nb'"),
        ("it's\n", r"$'it\'s\n'"),
        ("$'a", """'$'"'"'a'"""),
        ("\x1b[31m", r"$'\x1b[31m'"),
        ("", "''"),
    ],
)
def test_an_approver_can_tell_a_line_break_from_a_backslash(
    run: Any, client: Any, waiting: Approval, word: str, shown: str
) -> None:
    request = ExecRequest(agent_id="web-1", command=("echo", word))
    client.answers["approval"] = waiting.model_copy(update={"request": request})
    (line,) = [line for line in run("approvals", "job-7").out.splitlines() if line.startswith("command")]
    assert line[14:].strip() == f"echo {shown}"


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_words_are_never_shown_alike(one: str, other: str) -> None:
    assert (quoted(one) == quoted(other)) == (one == other)
