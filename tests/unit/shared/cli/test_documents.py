"""JSON documents: each command that has `-o` is in the table, and what it prints matches its schema."""

from __future__ import annotations

import ast
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from json_schemas import violations
from tachikoma import (
    AgentInfo,
    Approval,
    CancelOutcome,
    CancelResponse,
    DueOutcome,
    Enrolment,
    ExecAuditLog,
    ExecOutput,
    ExecRequest,
    ExecResponse,
    ExecState,
    ExecStatus,
    OutputKind,
    PolicyStatus,
    Revocation,
    ScheduledRun,
    ScheduleStatus,
)  # fmt: skip
from tachikoma.cli import output
from tachikoma.cli.app import app
from tachikoma.cli.components import COMPONENTS
from tachikoma.cli.documents import DOCUMENTS, Document
from tachikoma.errors import PermissionDenied
from tachikoma.vocabulary.recordings import RecordingInfo, RecordingMatch
from tachikoma.vocabulary.users import UserEnrolment, UserInfo

NOW = datetime(2026, 1, 31, 12, 0, 0, 250000, tzinfo=UTC)
STATUS = ExecStatus(
    id="job-7", agent_id="web-1", state=ExecState.QUEUED, command=("ls",), requested_by="spiffe://e/user/a",
    request_time=NOW, deadline=NOW,
)  # fmt: skip
AGENT = AgentInfo(id="web-1", last_seen=NOW, labels={"role": "web"})
EVENT = ExecAuditLog(cursor="1-1", event="admitted", time=NOW, id="job-7", agent_id="web-1")
RUN = ScheduledRun(due=NOW, time=NOW, outcome=DueOutcome.RUN, id="job-7", agent_id="web-1", state=ExecState.QUEUED)
SCHEDULE = ScheduleStatus(
    name="nightly", when="0 3 * * *", agent_id="web-1", enabled=True, missed="skip", overlap="skip", command=("ls",),
    next_due=NOW, last=RUN,
)  # fmt: skip
DIGEST = "ab" * 32
RECORDING = RecordingInfo(
    id="job-7", agent_id="web-1", requested_by="spiffe://e/user/a", command=("bash",), start_time=NOW, sha256=DIGEST,
    matches=(RecordingMatch(at=timedelta(seconds=1), line="a line"),),
)  # fmt: skip
APPROVAL = Approval(
    status=STATUS, request=ExecRequest(id="job-7", agent_id="web-1", command=("cat",), stdin=b"\xff", request_time=NOW),
    digest=DIGEST, policy="web@1",
)  # fmt: skip
OUTPUT = (
    ExecOutput(id="job-7", kind=OutputKind.STATUS, status=STATUS),
    ExecOutput(id="job-7", kind=OutputKind.STDOUT, seq=1, time=NOW, data=b"a\n"),
    ExecOutput(id="job-7", kind=OutputKind.GAP, seq=1, missing_bytes=3),
    ExecOutput(
        id="job-7", kind=OutputKind.RESULT, seq=1,
        result=ExecResponse(id="job-7", agent_id="web-1", state=ExecState.SUCCEEDED, exit_code=0, start_time=NOW),
    ),
)  # fmt: skip
#: The answers of the client.
ANSWERS = {
    "agents": (AGENT,), "drain_agent": AGENT, "resume_agent": AGENT, "label_agent": AGENT,
    "enroll_agent": Enrolment(agent_id="web-1", token="t", expires=NOW),
    "revoke_agent": Revocation(agent_id="web-1", cancelled=1, lost=0),
    "users": (UserInfo(name="ada", joined=NOW),), "revoke_user": UserInfo(name="ada", revoked=True),
    "enroll_user": UserEnrolment(name="ada", token="t", expires=NOW),
    "approvals": (STATUS,), "approval": APPROVAL, "approve": STATUS, "reject": STATUS, "audit": (EVENT,),
    "cancel": CancelResponse(outcome=CancelOutcome.CANCELLED, status=STATUS), "submit": STATUS, "status": STATUS,
    "execute_stream": lambda *_, **__: OUTPUT, "attach": lambda *_, **__: OUTPUT,
    "list_page": ((STATUS.model_copy(update={"interactive": True}),), ""),
    "policy_status": PolicyStatus(digest=DIGEST, since=NOW, policies=1, host="h", path="/p"),
    "schedules": ((SCHEDULE,), ""), "next_due_times": (NOW,), "pause_schedule": SCHEDULE, "resume_schedule": SCHEDULE,
    "run_schedule": RUN, "scheduled_runs": (RUN,), "recordings": (RECORDING,),
}  # fmt: skip
#: The command line of each document; those with None need more than a client, and are checked in the named test.
LINES: dict[str, tuple[str, ...] | None] = {
    "agents": (), "agents drain": ("web-1", "-r", "why"), "agents resume": ("web-1",), "agents enroll": ("web-1",),
    "agents label": ("web-1", "role=web"),
    "agents revoke": ("web-1", "-r", "why", "-y"), "approvals": (), "approvals ID": ("job-7",),
    "approve": ("job-7", "-m", "why", "--digest", DIGEST), "reject": ("job-7", "-m", "why"),
    "audit tail": (), "audit show": ("job-7",), "cancel": ("job-7",), "exec": ("-n", "web-1", "ls"),
    "exec -o jsonl": ("-n", "web-1", "ls"), "exec --detach": ("-n", "web-1", "ls"), "logs": ("job-7",),
    "policy status": (), "ps": (), "schedule ls": (), "schedule next": ("nightly",),
    "schedule pause": ("nightly", "-r", "why"), "schedule resume": ("nightly",), "schedule run": ("nightly",),
    "schedule history": ("nightly",), "sessions ls": (), "recordings ls": (), "status": ("job-7",),
    "version": (), "config show": ("beat",), "config check": ("beat",),
    # test_every_document_is_checked_on_a_running_system
    "identity show": None, "identity check": None, "any command that fails": None,
    # tests/unit/shared/cli/commands/test_doctor.py
    "doctor": None,
    # They need a batch: tests/unit/shared/cli/commands/test_run.py.
    "batches ls": None, "batches status": None, "batches cancel": None, "batches logs": None, "batches approvals": None,
    "batches approvals ID": None, "batches approve": None, "batches reject": None, "run": None,
    "batches retry": None, "batches retry -o jsonl": None, "batches retry --detach": None,
    "batches retry --preview": None, "run -o jsonl": None, "run --detach": None, "run --preview": None,
    "audit verify": None, "audit export": None, "sessions close": ("job-7",),
    # They need files: test_the_documents_of_files.
    "policy check": None, "policy explain": None, "policy test": None, "schedule check": None,
    "identity ca init": None, "identity ca issue": None,
    "users ls": (), "users add": ("ada",), "users revoke": ("ada", "-r", "why", "-y"),
    # tests/security/test_redis_command.py
    "redis check": None,
    # tests/end_to_end/test_backup.py
    "redis backup": None, "redis restore": None,
    # tests/end_to_end/test_setup.py and tests/security/test_joining.py
    "setup": None, "worker install": None, "worker join": None,
    # tests/end_to_end/test_health.py
    "orchestrator health": None, "worker health": None,
    # tests/security/test_people.py
    "login": None, "identity renew": None,
    "policy diff": None, "audit tail --follow": None,
}  # fmt: skip


def check(document: Document, content: Any) -> None:
    assert violations(document.schema(), content) == []


def with_output() -> set[str]:
    """Commands that have `--output`."""

    def below(name: str, command: Any) -> set[str]:
        found = {name} if any("--output" in parameter.opts for parameter in command.params) else set()
        for child, part in getattr(command, "commands", {}).items():
            found |= below(f"{name} {child}", part)
        return found

    return {name for component in COMPONENTS for name in below(component.name, component.load())}


def test_every_command_with_output_has_a_document() -> None:
    named = {document.command for document in DOCUMENTS}
    assert with_output() <= named
    assert set(LINES) == named
    assert isinstance(app, typer.Typer)


#: Lists that are no table, and tables of what does not change by itself.
NO_TABLE = {"agents enroll", "audit show", "cancel", "schedule next"}
NOT_WATCHED = NO_TABLE | {"config show"}


def test_every_list_has_wide_and_can_be_watched() -> None:
    lists = {document.command for document in DOCUMENTS if document.lists}
    assert lists >= NOT_WATCHED
    for command in lists:
        options = options_of(command)
        assert ("--wide" in options) is (command not in NO_TABLE), command
        assert bool(options & {"--watch", "--follow"}) is (command not in NOT_WATCHED), command


def options_of(command: str) -> set[str]:
    """The options of a command by its path."""
    name, *path = command.split()
    (component,) = (component for component in COMPONENTS if component.name == name)
    found = component.load()
    for word in path:
        found = found.commands[word]
    return {option for parameter in found.params for option in parameter.opts}


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if LINES[d.command] is not None], ids=lambda d: d.command)
def test_the_document_matches_its_schema(
    document: Document, run: Any, client: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # For `config show` and `config check`.
    monkeypatch.setenv("TACHIKOMA_REDIS_URL", "rediss://redis.example.org")
    monkeypatch.setenv("TACHIKOMA_SCHEDULES", "schedules")
    client.answers.update(ANSWERS)
    words = document.command.removesuffix(" ID").removesuffix(" -o jsonl").split()
    arguments = LINES[document.command] or ()
    done = run(*words, "-o", "jsonl" if document.command.endswith("jsonl") else "json", *arguments)
    assert done.code == 0, done.err
    # Chunks are written to the descriptor itself.
    out = done.out or capfd.readouterr().out
    for text in out.splitlines() if document.lines else [out]:
        check(document, json.loads(text))


def test_the_documents_of_files(run: Any, tmp_path: Path) -> None:
    policy, schedules, authority, identity = (tmp_path / name for name in ("p.yaml", "s.yaml", "ca", "alice"))
    alice = "spiffe://e/user/alice"
    rules = "allowedCommands: [/bin/true], limits: {memory: 1GiB}"
    policy.write_text(f"policies: [{{name: p, subjects: ['{alice}'], agents: ['*'], {rules}}}]\n")
    wanted = f"{{as: '{alice}', agent: web-1, command: /bin/true, expect: deny}}"
    policy.with_suffix(".test.yaml").write_text(f"tests: [{wanted}]\n")
    schedules.write_text("schedules: [{name: n, cron: '0 3 * * *', agentId: web-1, request: {command: [ls]}}]\n")
    root = str(authority / "ca.pem")
    lines: dict[str, tuple[int, tuple[str, ...]]] = {
        "policy check": (0, (str(policy),)),
        "policy explain": (0, ("--policy", str(policy), "--as", alice, "web-1", "/bin/true")),
        "policy test": (1, (str(policy),)),
        "schedule check": (0, (str(schedules),)),
        "identity ca init": (0, (str(authority), "--trust-domain", "e")),
        "identity ca issue": (0, (str(authority), alice, "--bundle", root, "--identity", str(identity))),
    }
    for name, (code, arguments) in lines.items():
        done = run(*name.split(), "-o", "json", *arguments)
        assert done.code == code, (name, done.err, done.error)
        (document,) = (document for document in DOCUMENTS if document.command == name)
        check(document, json.loads(done.out))
    explained = json.loads(run("policy", "explain", "-o", "json", *lines["policy explain"][1]).out)
    assert (explained["decision"]["allowed"], explained["executables"][0]["path"]) == (True, "/bin/true")
    assert explained["limits"]["memory"]


#: Documents that need no server: test_the_document_matches_its_schema and test_the_documents_of_files.
LOCAL = {"config check", "config show", "identity ca init", "identity ca issue", "policy test"}


def test_every_document_is_checked_on_a_running_system() -> None:
    tests = Path(__file__).parents[3]
    files = [file for folder in ("end_to_end", "security") for file in (tests / folder).glob("test_*.py")]
    texts = [text for file in files if "import checked\n" in (text := file.read_text(encoding="utf-8"))]
    constants = {node.value for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
    assert {document.command for document in DOCUMENTS} - LOCAL - constants == set()


def test_an_error_matches_its_schema(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output._Chosen, "output", output.Output.JSON)
    output.report(PermissionDenied("no policy grants it", metadata={"rule": "x"}))
    check(next(d for d in DOCUMENTS if d.command == "any command that fails"), json.loads(capsys.readouterr().err))


def test_a_document_with_a_missing_or_unknown_form_does_not_match() -> None:
    (document,) = (d for d in DOCUMENTS if d.command == "status")
    assert violations(document.schema(), {**STATUS.to_dict(), "state": "ENDED"})
    assert violations(document.schema(), {"id": "job-7"})
