"""Prints every list of the command line, with fixed values and times relative to now: `python pictured.py`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tachikoma import AgentInfo, DueOutcome, ExecAuditLog, ExecState, ExecStatus, ScheduledRun, ScheduleStatus
from tachikoma.cli.batch_view import show_groups, show_totals
from tachikoma.cli.commands import (
    agents,
    approvals,
    audit,
    batch_approvals,
    batches,
    configuration,
    executions,
    identity,
    recordings,
    run,
    schedule,
    sessions,
    users,
)
from tachikoma.cli.documents import SettingFacts
from tachikoma.targets.answers import grouped
from tachikoma.vocabulary.batches import (
    ApprovalNeed,
    BatchPreview,
    BatchResult,
    BatchState,
    BatchStatus,
    PreviewedTarget,
    TargetState,
)
from tachikoma.vocabulary.recordings import RecordingInfo, RecordingMatch
from tachikoma.vocabulary.users import UserInfo

NOW = datetime.now(UTC)
OLD = datetime(2026, 1, 31, 12, tzinfo=UTC)
ALICE = "spiffe://example.org/user/alice"
DATABASE = "database-primary-eu-1"
DIGEST = "4f1c2a9d8e7b" * 5 + "ab12"


def ago(**since: float) -> datetime:
    """A time before now, and five seconds more, so that a slow start changes no unit."""
    return NOW - timedelta(**since) - timedelta(seconds=5)


def later(**until: float) -> datetime:
    """A time after now, and thirty seconds more."""
    return NOW + timedelta(**until) + timedelta(seconds=30)


def status(number: int, state: ExecState, command: tuple[str, ...], agent: str = "web-1", **more: Any) -> ExecStatus:
    return ExecStatus(
        id=f"{number}f1c2a9d8e7b6a5f4c3d2e1f", agent_id=agent, state=state, command=command, requested_by=ALICE,
        request_time=ago(minutes=5**number), **more,
    )  # fmt: skip


def show_executions() -> None:
    dump = ("/usr/bin/pg_dump", "--format=custom", "--file=/backup/main.dump", "main")
    found = [
        status(1, ExecState.STARTED, dump),
        status(2, ExecState.FAILED, ("sh", "-c", "systemctl restart nginx && curl -f localhost"), exit_code=22),
        status(
            3, ExecState.PENDING_APPROVAL, ("reboot",), agent=DATABASE, deadline=later(minutes=9),
            approvers=("spiffe://example.org/group/oncall/*",),
        ),
    ]  # fmt: skip
    print("\n$ tachikoma ps -a")
    executions._show_list(found, False)
    print("\n$ tachikoma approvals")
    approvals._show_list(found[2:], False)
    print("\n$ tachikoma status")
    executions.facts(executions._facts(status(1, ExecState.FAILED, dump, exit_code=22, error="killed by SIGKILL")))
    print("\n$ tachikoma sessions ls")
    sessions._show(
        [
            status(1, ExecState.STARTED, ("bash", "-l"), attached_by=ALICE),
            status(2, ExecState.STARTED, ("top",), DATABASE, observers=("spiffe://example.org/user/bob",)),
        ],
        False,
    )


def show_agents() -> None:
    def agent(name: str, **more: Any) -> AgentInfo:
        return AgentInfo(id=name, version="0.3.0", hostname=f"{name}.example.org", slots=8, **more)

    labels = {"role": "web", "site": "eu"}
    found = [
        agent(
            "web-1", online=True, last_seen=ago(minutes=1), running=1, load=0.5, memory_used=0.4, disk_used=0.61,
            labels=labels,
        ),
        agent(DATABASE, last_seen=ago(hours=2), queued=3, labels={"role": "db"}),
    ]  # fmt: skip
    print("$ tachikoma agents")
    agents.table(agents.COLUMNS, map(agents._row, found))
    print("\n$ tachikoma identity check")
    checks = [
        identity.AgentCheck(found[0], "", ()),
        identity.AgentCheck(found[1], "does not report it; upgrade it", ()),
    ]
    own = ("you", "-", "2026-02-07 12:00:00", "", identity.ACCEPTED)
    identity.table(identity.CHECK_COLUMNS, [own, *(check.row() for check in checks)])


def show_batches() -> None:
    totals = {TargetState.SUCCEEDED: 118, TargetState.FAILED: 1, TargetState.UNREACHABLE: 1}
    found = BatchStatus(
        id="7f1c2a9d8e7b6a5f4c3d2e1f", state=BatchState.DONE, requested_by=ALICE, digest=DIGEST, total=120,
        command=("apt-get", "install", "--only-upgrade", "openssl"), totals=totals, submit_time=ago(hours=3),
        end_time=NOW,
    )  # fmt: skip
    running = found.model_copy(
        update={
            "id": "8f1c2a9d8e7b6a5f4c3d2e1f", "state": BatchState.RUNNING, "end_time": None,
            "totals": {TargetState.SUCCEEDED: 7, TargetState.PENDING: 113},
        }
    )  # fmt: skip
    print("\n$ tachikoma batches ls")
    batches._show_list([found, running], False)
    print("\n$ tachikoma batches approvals")
    need = ApprovalNeed(policy="web", approvers=("spiffe://example.org/group/oncall/*",), targets=120, above=10)
    waiting = {"state": BatchState.PENDING_APPROVAL, "end_time": None, "deadline": later(minutes=9), "needs": (need,)}
    batch_approvals._show_list([found.model_copy(update=waiting)], False)
    results = [
        *(BatchResult(agent_id=f"web-{n}", state=TargetState.SUCCEEDED, exit_code=0) for n in range(1, 119)),
        BatchResult(agent_id="web-119", state=TargetState.FAILED, exit_code=100, error=""),
        BatchResult(agent_id=DATABASE, state=TargetState.UNREACHABLE, error=f"agent {DATABASE!r} is offline"),
    ]
    print("\n$ tachikoma run")
    show_groups(grouped(results), bodies=False)
    show_totals(found, results)
    print("\n$ tachikoma run --preview")
    targets = [PreviewedTarget(agent_id=f"web-{n}", state=TargetState.PENDING) for n in range(1, 120)]
    offline = PreviewedTarget(agent_id=DATABASE, state=TargetState.UNREACHABLE, reason=f"agent {DATABASE!r} is offline")
    run._show_preview(BatchPreview(digest=DIGEST, targets=(*targets, offline)))


def show_others() -> None:
    due = ScheduledRun(
        due=ago(hours=5), time=NOW, outcome=DueOutcome.RUN, id="x", agent_id="web-1", state=ExecState.SUCCEEDED
    )
    print("\n$ tachikoma schedule ls")
    nightly = ScheduleStatus(
        name="nightly-backup", when="0 3 * * *", agent_id=DATABASE, enabled=True, missed="skip", overlap="skip",
        command=("/usr/bin/pg_dump", "main"), next_due=later(hours=6), last=due,
    )  # fmt: skip
    schedule._show_list([nightly], False)
    print("\n$ tachikoma schedule history nightly-backup")
    schedule._show_history(
        [
            ScheduledRun(due=OLD, time=OLD, outcome=DueOutcome.MISSED, count=3, first=OLD, reason="no submitter ran"),
            due.model_copy(update={"due": OLD, "requested_by": "spiffe://example.org/schedule/nightly-backup"}),
        ],
        False,
    )
    print("\n$ tachikoma recordings ls")
    recorded = RecordingInfo(
        id="1f1c2a9d8e7b6a5f4c3d2e1f", agent_id=DATABASE, requested_by=ALICE, command=("psql", "main"), size=81_234,
        start_time=ago(hours=5), duration=timedelta(seconds=754), sha256=DIGEST, complete=True,
        matches=(RecordingMatch(at=timedelta(seconds=12.3), line="main=# select count(*) from orders;"),),
    )  # fmt: skip
    recordings._show([recorded], False)
    print("\n$ tachikoma users ls")
    people = [
        UserInfo(name="ada", joined=ago(hours=26), enrolled_by=ALICE, address="192.0.2.7"),
        UserInfo(name="grace.hopper", revoked=True, revoked_by=ALICE, revoke_reason="left"),
    ]
    users.table(users.COLUMNS, map(users._row, people))
    print("\n$ tachikoma config show beat")
    configuration._show(
        [
            SettingFacts(setting="TACHIKOMA_REDIS_URL", value="rediss://redis.example.org:6379", origin="environment"),
            SettingFacts(setting="TACHIKOMA_SCHEDULES", value="/etc/tachikoma/schedules.yaml", origin="option"),
        ],
        False,
    )
    print("\n$ tachikoma audit tail")
    denied = ExecAuditLog(
        cursor="1-1", event="denied", time=OLD, id="1f1c2a9d8e7b6a5f4c3d2e1f", agent_id="web-1", requested_by=ALICE,
        command="reboot", reason="no policy grants it", authorized=False,
    )  # fmt: skip
    audit.show_events([denied])


def main() -> None:
    show_agents()
    show_executions()
    show_batches()
    show_others()


if __name__ == "__main__":
    main()
