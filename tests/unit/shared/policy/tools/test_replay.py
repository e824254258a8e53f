"""What a proposed policy would decide otherwise of past requests, and `tachikoma policy diff`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tachikoma.audit.chain import FIRST_PREV, line_digest
from tachikoma.cli.commands import policy as command
from tachikoma.errors import ConfigurationError, InvalidRequest
from tachikoma.policy.decide import PolicySet
from tachikoma.policy.masking.redaction import redact
from tachikoma.policy.tools.replay import Change, Replay
from tachikoma.vocabulary.agents import AgentInfo
from tachikoma.vocabulary.audit import AuditCode, AuditedRequest, ExecAuditLog

ALICE = "spiffe://example.org/user/alice"
BOB = "spiffe://example.org/user/bob"
BOSS = "spiffe://example.org/user/boss"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
DECISIONS = [
    AuditCode.ADMITTED,
    AuditCode.APPROVAL_REQUESTED,
    AuditCode.DENIED,
    AuditCode.LIMITED,
    AuditCode.REFUSED,
]
Trail = Callable[..., Path]


def rules(*entries: dict[str, Any]) -> str:
    """A policy file (JSON is YAML); each policy is for everybody and every agent."""
    filled = [{"name": f"p{n}", "subjects": ["**"], "agents": ["*"], **entry} for n, entry in enumerate(entries)]
    return json.dumps({"policies": filled})


def policies(*entries: dict[str, Any]) -> PolicySet:
    return PolicySet.parse(rules(*entries), "policy.yaml")


def asked(*argv: str, by: str = ALICE, on: str = "web-1", code: str = AuditCode.ADMITTED, **values: Any) -> Any:
    """The event of a decision on a request."""
    request = AuditedRequest(command=redact(argv), **values)
    return ExecAuditLog(cursor="1-0", time=NOON, event=code, agent_id=on, requested_by=by, request=request)


def replayed(
    old: PolicySet, new: PolicySet, *events: ExecAuditLog, labels: Mapping[str, Mapping[str, str]] | None = None
) -> Replay:
    replay = Replay(old, new, labels or {})
    for event in events:
        replay.add(event)
    return replay


def only(replay: Replay) -> Change:
    (change,) = replay.changes
    return change


NOTHING = policies()
UPTIME = policies({"name": "web", "allowedCommands": ["/usr/bin/uptime"]})


# --- what counts as another decision ----------------------------------------------------------------------------------


def test_the_same_policy_decides_the_same() -> None:
    replay = replayed(UPTIME, UPTIME, asked("uptime"), asked("reboot", code=AuditCode.DENIED))
    assert (replay.requests, replay.changes) == (2, [])


def test_a_request_that_would_be_denied_is_told_with_the_reason() -> None:
    new = policies({"name": "web", "allowedCommands": ["/usr/bin/uptime"], "deniedCommands": ["uptime"]})
    assert only(replayed(UPTIME, new, asked("/usr/bin/uptime"))) == Change(
        subject=ALICE,
        agent="web-1",
        command=("/usr/bin/uptime",),
        before="allowed by web",
        after="denied: policy web denies 'uptime'",
    )


def test_a_request_that_would_be_allowed_is_told() -> None:
    change = only(replayed(NOTHING, UPTIME, asked("uptime", code=AuditCode.DENIED)))
    assert change.before == f"denied: no policy applies to {ALICE} on agent web-1"
    assert change.after == "allowed by web"


def test_a_request_that_would_need_an_approval_is_told_with_who_gives_it() -> None:
    asking = {"name": "web", "allowedCommands": ["/usr/bin/uptime"], "requireApproval": True}
    change = only(replayed(UPTIME, policies({**asking, "approvers": [BOSS]}), asked("uptime")))
    assert (change.before, change.after) == ("allowed by web", f"allowed by web with an approval by {BOSS}")
    both = only(replayed(UPTIME, policies({**asking, "approvers": [BOSS, BOB]}), asked("uptime")))
    assert both.after == f"allowed by web with an approval by {BOSS} or {BOB}"


def test_a_request_that_another_policy_would_decide_is_told() -> None:
    new = policies({"name": "ops", "allowedCommands": ["/usr/bin/uptime"]})
    change = only(replayed(UPTIME, new, asked("uptime")))
    assert (change.before, change.after) == ("allowed by web", "allowed by ops")


def test_an_edited_policy_of_the_same_name_is_no_change() -> None:
    new = policies({"name": "web", "allowedCommands": ["/usr/bin/uptime ...", "/bin/ls"], "maxTimeout": "5m"})
    assert new.policies[0].label != UPTIME.policies[0].label
    assert new.digest != UPTIME.digest
    assert replayed(UPTIME, new, asked("uptime")).changes == []


@pytest.mark.parametrize(
    ("field", "allowing", "values"),
    [
        ("allowedUsers", ["www-data"], {"user": "www-data"}),
        ("allowedWorkDirs", ["/srv/**"], {"work_dir": "/srv/app"}),
        ("allowedEnvironment", ["APP_*"], {"environment": ("APP_MODE", "APP_X")}),
        ("maxTimeout", "2h", {"timeout": 7199.5}),
        ("allowInteractive", True, {"interactive": True}),
        ("allowTty", True, {"tty": True}),
    ],
)
def test_every_part_of_a_request_is_decided_on(field: str, allowing: Any, values: dict[str, Any]) -> None:
    new = policies({"name": "web", "allowedCommands": ["/usr/bin/uptime"], field: allowing})
    change = only(replayed(UPTIME, new, asked("uptime", **values), asked("uptime")))
    assert change.before.startswith("denied: policy web ")
    assert (change.after, change.times) == ("allowed by web", 1)


def test_variables_are_decided_on_by_name() -> None:
    """The trail has no values: one that would be refused for its value is taken for one that is not."""
    base = {"name": "web", "allowedCommands": ["/usr/bin/uptime"]}
    old, new = policies({**base, "allowedEnvironment": ["LANG", "A"]}), policies({**base, "allowedEnvironment": ["A"]})
    change = only(replayed(old, new, asked("uptime", environment=("A", "LANG")), asked("uptime", environment=("A",))))
    assert (change.before, change.times) == ("allowed by web", 1)
    assert change.after == "denied: policy web does not allow the variable 'LANG'"


def test_a_request_without_timeout_is_decided_on_without_one() -> None:
    short = policies({"name": "web", "allowedCommands": ["/usr/bin/uptime"], "maxTimeout": "1s"})
    replay = replayed(UPTIME, short, asked("uptime"), asked("uptime", timeout=1.5))
    assert only(replay).after == "denied: policy web allows at most 1s, not 1.5s"


@pytest.mark.parametrize(
    ("labels", "after"), [({"web-1": {"role": "web"}}, "allowed by web"), ({"db-1": {"role": "web"}}, None), ({}, None)]
)
def test_agents_are_selected_by_the_labels_given(labels: dict[str, dict[str, str]], after: str | None) -> None:
    new = policies({"name": "web", "agents": ["role=web"], "allowedCommands": ["/usr/bin/uptime"]})
    changes = replayed(NOTHING, new, asked("uptime"), labels=labels).changes
    assert [change.after for change in changes] == ([after] if after else [])


# --- how requests are counted -----------------------------------------------------------------------------------------


def test_the_most_frequent_come_first_and_each_once() -> None:
    events = [asked("uptime"), *[asked("ls")] * 3, asked("id"), *[asked("uptime", by=BOB)] * 2, asked("ls")]
    new = policies({"name": "web", "allowedCommands": ["/usr/bin/{uptime,ls}"]})
    replay = replayed(NOTHING, new, *events)
    assert [(change.command, change.subject, change.times) for change in replay.changes] == [
        (("ls",), ALICE, 4),
        (("uptime",), BOB, 2),
        (("uptime",), ALICE, 1),
    ]
    assert replay.requests == 8


def test_those_of_another_agent_or_user_are_others() -> None:
    new = policies({"name": "web", "allowedCommands": ["/usr/bin/uptime"], "allowedUsers": ["web"]})
    replay = replayed(NOTHING, new, asked("uptime"), asked("uptime", on="web-2"), asked("uptime", user="web"))
    assert [change.times for change in replay.changes] == [1, 1, 1]


@pytest.mark.parametrize("code", AuditCode)
def test_only_decisions_count(code: AuditCode) -> None:
    replay = replayed(NOTHING, UPTIME, asked("uptime", code=code))
    assert replay.requests == len(replay.changes) == (code in DECISIONS)


@pytest.mark.parametrize("code", AuditCode)
def test_an_event_that_kept_no_request_says_nothing(code: AuditCode) -> None:
    event = ExecAuditLog(cursor="1-0", time=NOON, event=code, agent_id="web-1", requested_by=ALICE, command="uptime")
    replay = replayed(NOTHING, UPTIME, event)
    assert (replay.requests, replay.changes) == (0, [])


def test_an_event_of_a_newer_version_says_nothing() -> None:
    assert replayed(NOTHING, UPTIME, asked("uptime", code="promised")).requests == 0


@pytest.mark.parametrize(
    ("agent", "values"),
    [
        ("web.1", {}),
        ("", {}),
        ("web-1", {"user": "#-1"}),
        ("web-1", {"work_dir": "tmp"}),
        ("web-1", {"environment": ("A=B",)}),
        ("web-1", {"timeout": 0.0}),
        ("web-1", {"timeout": 86400.0 * 8}),
    ],
)
def test_what_is_no_valid_request_today_is_skipped(agent: str, values: dict[str, Any]) -> None:
    new = policies({"allowedCommands": ["/** ..."], "allowedUsers": ["**", "root"], "allowedWorkDirs": ["/**"]})
    assert replayed(NOTHING, new, asked("uptime", on=agent, **values)).changes == []
    assert replayed(NOTHING, new, asked("uptime")).changes


# --- what was masked --------------------------------------------------------------------------------------------------

OPEN = policies({"name": "open", "allowedCommands": ["/** ..."]})
ADMITTED_OF = {
    "whole": ("mysql-ping", "--password", "hunter2"),
    "part": ("mysql-ping", "--password=hunter2"),
    "cut": ("mysql-ping", "x" * 1000),
    "too many": ("mysql-ping", *["x"] * 100),
}


@pytest.mark.parametrize("argv", ADMITTED_OF.values(), ids=ADMITTED_OF)
def test_a_masked_argument_is_told(argv: tuple[str, ...]) -> None:
    change = only(replayed(OPEN, NOTHING, asked(*argv)))
    assert change.masked
    assert "hunter2" not in " ".join(change.command)


def test_what_is_not_masked_is_not_told_as_masked() -> None:
    assert not only(replayed(OPEN, NOTHING, asked("mysql-ping", "-h", "db1"))).masked


def test_a_masked_argument_is_decided_on_as_it_is_masked() -> None:
    """The real one may have been denied or allowed; that is why it is told."""
    new = policies({"name": "open", "allowedCommands": ["/** --password *"]})
    assert replayed(OPEN, new, asked("mysql-ping", "--password", "hunter2")).changes == []
    narrow = policies({"name": "open", "allowedCommands": ["/** --password hunter2"]})
    assert only(replayed(OPEN, narrow, asked("mysql-ping", "--password", "hunter2"))).masked


# --- properties -------------------------------------------------------------------------------------------------------

SETS = st.lists(
    st.fixed_dictionaries(
        {
            "agents": st.sampled_from([["*"], ["web-1"], ["role=web"]]),
            "allowedCommands": st.sampled_from([[], ["/bin/x"], ["/bin/x ..."], ["/** ..."]]),
            "deniedCommands": st.sampled_from([[], ["x"], ["y"]]),
        }
    ),
    max_size=3,
).map(lambda entries: policies(*entries))
EVENTS = st.lists(
    st.builds(
        lambda program, by, on, code: asked(program, by=by, on=on, code=code),
        st.sampled_from(["x", "y", "/bin/x"]),
        st.sampled_from([ALICE, BOB]),
        st.sampled_from(["web-1", "web-2"]),
        st.sampled_from([*DECISIONS, AuditCode.STARTED, AuditCode.SUCCEEDED]),
    ),
    max_size=12,
)
LABELS = {"web-2": {"role": "web"}}


@given(SETS, EVENTS)
def test_no_policy_differs_from_itself(chosen: PolicySet, events: list[ExecAuditLog]) -> None:
    replay = replayed(chosen, chosen, *events, labels=LABELS)
    assert replay.changes == []
    assert replay.requests == sum(event.event in DECISIONS for event in events)


@given(SETS, SETS, EVENTS)
def test_the_way_back_is_the_way_there_turned_around(
    old: PolicySet, new: PolicySet, events: list[ExecAuditLog]
) -> None:
    there = replayed(old, new, *events, labels=LABELS).changes
    back = replayed(new, old, *events, labels=LABELS).changes
    assert back == [change.model_copy(update={"before": change.after, "after": change.before}) for change in there]
    assert [change.times for change in there] == sorted((change.times for change in there), reverse=True)
    assert sum(change.times for change in there) <= sum(event.event in DECISIONS for event in events)


# --- the command ------------------------------------------------------------------------------------------------------

WEB = {"name": "web", "allowedCommands": ["/usr/bin/{uptime,ls}"]}


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(command.policy, ["diff", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def old(tmp_path: Path) -> str:
    path = tmp_path / "old.yaml"
    path.write_text(rules(WEB))
    return str(path)


@pytest.fixture
def new(tmp_path: Path) -> str:
    path = tmp_path / "new.yaml"
    path.write_text(rules({**WEB, "deniedCommands": ["ls"]}, {"name": "db", "allowedCommands": ["/usr/bin/id"]}))
    return str(path)


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    """Writes an audit log, and gives its folder."""

    def write(*events: ExecAuditLog) -> Path:
        folder = tmp_path / "log"
        folder.mkdir()
        prev, number = FIRST_PREV, 0
        with (folder / "audit.jsonl").open("wb") as file:
            contents = [{"chain": {"writer": BOSS, "host": "control-1", "began": "2026-01-31T12:00:00Z"}}]
            for seq, event in enumerate(events, 1):
                at = NOON + timedelta(seconds=seq)
                numbered = event.model_copy(update={"seq": seq, "cursor": f"{seq}-0", "time": at})
                contents.append({"event": numbered.to_dict()})
            contents.append({"checkpoint": "eyJ.eyJ.x"})
            for content in contents:
                number += 1
                line = json.dumps({"line": number, "prev": prev, **content}).encode()
                file.write(line + b"\n")
                prev = line_digest(line)
        return folder

    return write


def test_where_nothing_changes_the_command_succeeds(old: str, trail: Trail) -> None:
    log = trail(asked("uptime"), asked("ls"), asked("uptime", code=AuditCode.SUCCEEDED))
    assert run(old, old, "--file", str(log)) == (0, "2 requests, 0 different decisions\n", "")


def test_changes_are_listed_and_the_command_fails(old: str, new: str, trail: Trail) -> None:
    events = [asked("id", "-u", code=AuditCode.DENIED), asked("uptime"), asked("ls"), asked("ls"), asked("ls", by=BOB)]
    code, out, err = run(old, new, "--file", str(trail(*events, asked("ls"), asked("ls", code=AuditCode.STARTED))))
    assert (code, err) == (1, "")
    assert out == (
        f"{ALICE} on web-1: ls (3 times)\n  was allowed by web\n  now denied: policy web denies 'ls'\n"
        f"{BOB} on web-1: ls (1 times)\n  was allowed by web\n  now denied: policy web denies 'ls'\n"
        "6 requests, 2 different decisions\n"
    )


def test_the_log_itself_or_its_folder_is_read(old: str, new: str, trail: Trail) -> None:
    log = trail(asked("ls"))
    assert run(old, new, "--file", str(log)) == run(old, new, "--file", str(log / "audit.jsonl"))


def test_a_folder_of_policies_is_compared_like_a_file(old: str, tmp_path: Path, trail: Trail) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    for number, program in enumerate(["uptime", "ls"]):
        entry = {"name": f"only-{program}", "allowedCommands": [f"/usr/bin/{program}"]}
        (folder / f"{number}.yaml").write_text(rules(entry))
    code, out, _ = run(old, str(folder), "--file", str(trail(asked("ls"))))
    assert (code, out.splitlines()[2]) == (1, "  now allowed by only-ls")


def test_what_is_masked_is_told_beside_the_command(old: str, tmp_path: Path, trail: Trail) -> None:
    new = tmp_path / "open.yaml"
    new.write_text(rules({"name": "open", "allowedCommands": ["/** ..."]}))
    log = trail(asked("deploy", "--token", "hunter2", "a b"))
    code, out, _ = run(old, str(new), "--file", str(log))
    assert (code, "hunter2" in out) == (1, False)
    told = "deploy --token '***' 'a b' (1 times; part of it is masked in the trail)"
    assert out.splitlines()[0] == f"{ALICE} on web-1: {told}"


def test_changes_are_told_as_json_too(old: str, new: str, trail: Trail) -> None:
    log = trail(asked("ls"), asked("ls"), asked("uptime"))
    code, out, err = run(old, new, "--file", str(log), "-o", "json")
    assert (code, err) == (1, "")
    assert json.loads(out) == {
        "requests": 3,
        "changes": [
            {
                "subject": ALICE,
                "agent": "web-1",
                "command": ["ls"],
                "before": "allowed by web",
                "after": "denied: policy web denies 'ls'",
                "times": 2,
                "masked": False,
            }
        ],
    }
    code, out, _ = run(old, old, "--file", str(log), "--output", "json")
    assert (code, json.loads(out)) == (0, {"requests": 3, "changes": []})


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ([], 0),
        (["--label", "web-1:role=web"], 0),
        (["--label", "web-1:site=a"], 0),
        (["--label", "web-2:role=web", "--label", "web-2:site=a"], 0),
        (["--label", "web-1:role=web", "--label", "web-1:site=a"], 1),
        (["--label", "web-1:role=x", "--label", "web-1:role=web", "--label", "web-1:site=a"], 1),
    ],
)
def test_labels_of_agents_are_given(old: str, tmp_path: Path, trail: Trail, options: list[str], changes: int) -> None:
    new = tmp_path / "new.yaml"
    new.write_text(rules(WEB, {"name": "site", "agents": ["role=web,site=a"], "deniedCommands": ["ls"]}))
    code, out, _ = run(old, str(new), "--file", str(trail(asked("ls"))), *options)
    assert code == changes
    assert out.endswith(f"1 requests, {changes} different decisions\n")


def test_a_label_may_hold_what_separates_its_parts(old: str, tmp_path: Path, trail: Trail) -> None:
    new = tmp_path / "new.yaml"
    new.write_text(rules(WEB, {"name": "site", "agents": ["at=a:b=c"], "deniedCommands": ["ls"]}))
    assert run(old, str(new), "--file", str(trail(asked("ls"))), "--label", "web-1:at=a:b=c")[0] == 1


@pytest.mark.parametrize("label", ["", "web-1", "web-1:role", "role=web", "web-1=role:web", ":"])
def test_a_malformed_label_is_refused(old: str, trail: Trail, label: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        run(old, old, "--file", str(trail(asked("ls"))), "--label", label)
    assert str(caught.value) == f"--label: {label!r} is not agent:name=value"


def test_a_policy_or_a_log_that_cannot_be_read_is_told(old: str, tmp_path: Path, trail: Trail) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the policy file .*none\.yaml"):
        run(old, str(tmp_path / "none.yaml"), "--file", str(trail(asked("ls"))))
    with pytest.raises(ConfigurationError, match="there is no audit log at"):
        run(old, old, "--file", str(tmp_path / "none"))


class _Orchestrator:
    """A client of an orchestrator that knows one agent and two pages of events."""

    pages = (
        ("0-0", [asked("ls").model_copy(update={"cursor": "1-0"})]),
        ("1-0", [asked("ls", on="web-2").model_copy(update={"cursor": "2-0"})]),
    )

    def __enter__(self) -> _Orchestrator:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def agents(self) -> tuple[AgentInfo, ...]:
        return (AgentInfo(id="web-1", labels={"role": "web"}),)

    def audit(self, *, after: str, limit: int) -> tuple[ExecAuditLog, ...]:
        return tuple(event for cursor, events in self.pages for event in events if cursor == after)


def test_without_a_file_the_orchestrator_is_asked_for_trail_and_labels(
    old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tachikoma.cli.commands.policy", "tachikoma.cli.commands.audit"):
        monkeypatch.setattr(f"{module}.Client", _Orchestrator)
    new = tmp_path / "new.yaml"
    new.write_text(rules(WEB, {"name": "role", "agents": ["role=web"], "deniedCommands": ["ls"]}))
    code, out, _ = run(old, str(new))
    assert (code, out.splitlines()[0]) == (1, f"{ALICE} on web-1: ls (1 times)")
    assert out.splitlines()[-1] == "2 requests, 1 different decisions"
    # What is given comes on top of what the orchestrator knows.
    assert run(old, str(new), "--label", "web-2:role=web")[1].endswith("2 different decisions\n")
    assert run(old, str(new), "--label", "web-1:role=db")[0] == 0
