"""`tachikoma audit`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from authority import Authority
from tachikoma import ConfigurationError, ExecAuditLog, NotFound, Profile
from tachikoma.audit.verification import Report
from tachikoma.cli.commands import audit
from tachikoma.identity.spiffe import SpiffeId

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def event(number: int, code: str = "started", **values: Any) -> ExecAuditLog:
    return ExecAuditLog(
        **{"cursor": f"{number}-0", "seq": number, "time": NOON, "event": code, "id": "job-7", "agent_id": "web-1",
           "requested_by": "spiffe://example.org/user/alice", "command": "ls", "authorized": True, **values}
    )  # fmt: skip


def test_tail_shows_the_latest_events(run: Any, client: Any) -> None:
    client.answers["audit"] = (event(1), event(2, "denied", authorized=False, reason="no policy", exit_code=-1))
    done = run("audit", "tail", "-n", "5", "--id", "job-7")
    lines = done.out.splitlines()
    assert lines[0].split() == ["TIME", "EVENT", "ID", "AGENT", "BY", "EXIT", "COMMAND", "/", "REASON"]
    assert lines[2].split()[-5:] == ["-", "ls", "—", "no", "policy"]
    assert client.calls == [("audit", (), {"limit": 5, "exec_id": "job-7"})]
    assert [item["seq"] for item in json.loads(run("audit", "tail", "-o", "json").out)] == [1, 2]


def test_tail_follows_from_the_last_event_on(run: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "FOLLOW_SECONDS", 0)
    pages: list[Any] = [(event(1),), (), (event(2),), KeyboardInterrupt()]

    def answer(**_: Any) -> Any:
        page = pages.pop(0)
        if isinstance(page, BaseException):
            raise page
        return page

    client.answers["audit"] = answer
    done = run("audit", "tail", "-f")
    assert done.code == 130
    assert done.out.count("started") == 2
    assert [call[2].get("after") for call in client.calls] == [None, "1-0", "1-0", "2-0"]


def test_tail_of_one_execution_follows_all_and_shows_its_own(
    run: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "FOLLOW_SECONDS", 0)
    #: The latest event of all, the search, and the events since the former.
    pages: list[Any] = [
        (event(5, id="other"),), (event(2), event(6, "succeeded")), (event(6, "succeeded"), event(7, id="other")), (),
        (event(8, "late_receipt"),), KeyboardInterrupt(),
    ]  # fmt: skip

    def answer(**_: Any) -> Any:
        page = pages.pop(0)
        if isinstance(page, BaseException):
            raise page
        return page

    client.answers["audit"] = answer
    done = run("audit", "tail", "-f", "--id", "job-7")
    assert [line.split()[2] for line in done.out.splitlines() if "job-7" in line] == [
        "started", "succeeded", "late_receipt"
    ]  # fmt: skip
    assert [call[2].get("after") for call in client.calls] == [None, None, "5-0", "7-0", "7-0", "8-0"]


def test_the_whole_trail_is_read_in_pages(client: Any) -> None:
    pages = {"0-0": (event(1), event(2)), "2-0": (event(3),), "3-0": ()}
    client.answers["audit"] = lambda *, after, limit: pages[after]
    assert [found.seq for found in audit.trail_of(None)] == [1, 2, 3]


def test_show_leaves_out_what_is_empty_or_repeated(run: Any, client: Any) -> None:
    client.answers["audit"] = (
        event(1, "admitted", policy_applied="web@1"),
        event(2, "failed", exit_code=3, reason="x\x1b"),
    )
    blocks = run("audit", "show", "job-7").out.split("\n\n")
    first, second = ([line.split()[0] for line in block.splitlines()[1:]] for block in blocks)
    assert first == ["seq", "id", "agentId", "requestedBy", "command", "authorized", "policyApplied"]
    assert second == ["seq", "exitCode", "reason"]
    assert r"x\x1b" in blocks[1]


def test_show_of_an_execution_without_events_is_an_error(run: Any, client: Any) -> None:
    client.answers |= {"audit": (), "status": NotFound("there is no execution 'never'"), "list_page": ((), "")}
    error = run("audit", "show", "never").error
    assert isinstance(error, NotFound)
    assert str(error) == "the audit trail has no event of 'never'"


def test_a_file_is_read_without_an_orchestrator(run: Any, client: Any, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    lines = [json.dumps({"event": found.to_dict(), "prev": "0" * 64}) for found in (event(1), event(2, id="job-8"))]
    file.write_text("\n".join(lines) + "\n")
    assert run("audit", "show", "job-8", "--file", str(file)).code == 0
    exported = run("audit", "export", "--file", str(file)).out.splitlines()
    assert [json.loads(line)["seq"] for line in exported] == [1, 2]
    assert client.calls == []


def test_export_begins_after_a_number_and_knows_ocsf(run: Any, client: Any) -> None:
    events = (event(1), event(2), event(0, "trail_altered"), event(3))
    pages = {"0-0": events, "3-0": ()}
    client.answers["audit"] = lambda *, after, limit: pages[after]
    out = run("audit", "export", "--after", "1").out.splitlines()
    # An event without a number goes with the one before it.
    assert [json.loads(line)["seq"] for line in out] == [2, 0, 3]
    out = run("audit", "export", "--format", "ocsf").out.splitlines()
    assert all("class_uid" in json.loads(line) for line in out)


def test_verify_reports_what_it_found_and_fails(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: Authority
) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    seen: list[Any] = []
    report = Report(lines=3, events=2, checkpoints=1, first_seq=1, last_seq=2, head="h", gaps=["one"])
    monkeypatch.setattr(audit, "verify_files", lambda *given: seen.append(given) or report)
    options = ("--bundle", str(tmp_path / "ca.pem"), "--writer", "spiffe://tachikoma.local/service/orchestrator")
    done = run("audit", "verify", "log", *options, "--head", "eyJa.b.c")
    assert (done.code, done.err) == (0, "note: one\n")
    assert done.out == "log: is unaltered: 2 events (1 to 2), 1 checkpoint, 0 events after the last checkpoint\n"
    path, bundle, writer, heads = seen[0]
    assert (path, bundle.roots, str(writer), heads) == (Path("log"), (authority.certificate,), options[3], ["eyJa.b.c"])
    report.findings.append("line 2 was changed")  # type: ignore[arg-type]
    done = run("audit", "verify", "log", *options)
    assert (done.code, done.err) == (1, "line 2 was changed\nnote: one\n")
    assert "log: was ALTERED: " in done.out
    found = json.loads(run("audit", "verify", "log", *options, "-o", "json").out)
    assert (found["lastSeq"], found["findings"]) == (2, ["line 2 was changed"])


def test_by_default_the_own_orchestrator_is_the_writer(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.write(tmp_path, "spiffe://tachikoma.local/user/alice")
    profile = Profile(address="x:1", server_name="x", identity=tmp_path)
    monkeypatch.setattr(Profile, "load", lambda: profile)
    bundle, writer = audit._trust(None, "")
    assert (bundle.roots, writer) == (
        (authority.certificate,), SpiffeId.parse("spiffe://tachikoma.local/service/orchestrator"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("bundle", "writer", "message"),
    [
        (Path("ca.pem"), "", "--bundle needs --writer"),
        (Path("no-such-file"), "spiffe://x/y", "cannot verify with no-such-file"),
        (None, "not a SPIFFE ID", "cannot verify with not a SPIFFE ID"),
    ],
)
def test_verify_needs_roots_and_a_writer(bundle: Path | None, writer: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        audit._trust(bundle, writer)


def test_heads_are_checkpoints_or_files_with_some(tmp_path: Path) -> None:
    file = tmp_path / "orchestrator.log"
    file.write_text('{"event": "audit.checkpoint", "token": "eyJa.b-c.d_e"}\nnothing\neyJf.g.h\n')
    assert audit._heads(["eyJx.y.z", str(file)]) == ["eyJx.y.z", "eyJa.b-c.d_e", "eyJf.g.h"]
    file.write_text("nothing")
    with pytest.raises(ConfigurationError, match="contains no checkpoint"):
        audit._heads([str(file)])
    with pytest.raises(ConfigurationError, match="'no-such-file' is no checkpoint and no file"):
        audit._heads(["no-such-file"])
