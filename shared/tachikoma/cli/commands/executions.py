"""`tachikoma ps`, `status` and `cancel`: executions as the ledger knows them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated

import typer

from tachikoma.cli import completion
from tachikoma.cli.lookup import with_full_id
from tachikoma.cli.output import (
    Output,
    OutputOption,
    WatchOption,
    WideOption,
    report_failure,
    show_list,
    show_value,
    watch,
)
from tachikoma.cli.show import age, facts, moment, short_id, state_cell, warn
from tachikoma.cli.tables import Column, table
from tachikoma.client.sync import Client
from tachikoma.errors import InvalidRequest, TachikomaError
from tachikoma.vocabulary.durations import format_duration, parse_duration
from tachikoma.vocabulary.results import CancelOutcome, CancelResponse, ExecStatus
from tachikoma.vocabulary.states import ExecState

__all__ = ["add_to", "outcome_of"]

#: Largest number of calls for one list. Each searches a bounded part of the ledger.
MAX_PAGES = 20


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (ps, status, cancel):
        app.command()(command)


def _time(text: str, option: str) -> datetime | None:
    """Read a time: ISO 8601, in the local time zone unless it names one, or a duration before now. Empty is None."""
    if not text:
        return None
    with suppress(ValueError):
        return datetime.fromisoformat(text).astimezone()
    with suppress(ValueError):
        return datetime.now(UTC) - parse_duration(text)
    raise InvalidRequest(f"{option}: {text!r} is no time; write 2026-01-31T12:00, or 1h for an hour ago")


def ps(
    agent: Annotated[str, typer.Argument(help="Only executions on this agent.", autocompletion=completion.agents)] = "",
    everything: Annotated[bool, typer.Option("--all", "-a", help="Show executions that have ended too.")] = False,
    by: Annotated[
        str, typer.Option(help="Only executions of this requester: a SPIFFE ID, or what the list shows, as user/anna.")
    ] = "",
    state: Annotated[
        list[ExecState] | None, typer.Option(help="Only executions in this state. May be repeated.")
    ] = None,
    on: Annotated[str, typer.Option(help="Only on agents that match a pattern or label: 'web-*', 'role=web'.")] = "",
    since: Annotated[
        str, typer.Option(help="Only executions accepted after this time: 2026-01-31T12:00, or 1h for an hour ago.")
    ] = "",
    until: Annotated[str, typer.Option(help="Only executions accepted before this time.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=1000, help="At most n executions.")] = 50,
    wide: WideOption = False,
    again: WatchOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """List executions, newest first."""
    newer, older = _time(since, "--since"), _time(until, "--until")

    def read(page_size: int, token: str) -> tuple[tuple[ExecStatus, ...], str]:
        return client.list_page(
            agent, include_ended=everything, page_size=page_size, page_token=token, requested_by=by,
            states=state or (), agents=on, since=newer, until=older,
        )  # fmt: skip

    def show(form: Output) -> None:
        found, more = _read_pages(read, limit)
        show_list(found, form, name=lambda item: item.id, text=lambda found: _show_list(found, wide))
        if more and form is Output.TEXT:
            warn(f"there are more than these {len(found)}; use --limit")

    with Client() as client:
        watch(show, output, again=again)


def _read_pages(
    read: Callable[[int, str], tuple[tuple[ExecStatus, ...], str]], limit: int
) -> tuple[list[ExecStatus], bool]:
    """Return at most `limit` executions, and whether there are more."""
    found: list[ExecStatus] = []
    token = ""
    # A call searches only a part of a long list, and its page may be short or empty.
    for _ in range(MAX_PAGES):
        page, token = read(limit - len(found), token)
        found += page
        if not token or len(found) == limit:
            break
    return found, bool(token)


#: Columns of the list; the last ones to be left out have the smallest numbers.
COLUMNS = (
    Column("ID", is_id=True),
    Column("AGENT", 1, elastic=True),
    Column("STATE"),
    Column("EXIT", 3),
    Column("ASKED", 2),
    Column("BY", 4, elastic=True),
    Column("COMMAND", elastic=True),
)


def _show_list(found: Sequence[ExecStatus], wide: bool) -> None:
    rows = (
        (
            item.id,
            item.agent_id,
            state_cell(item.state),
            str(item.exit_code) if item.exit_code >= 0 else "-",
            age(item.request_time),
            short_id(item.requested_by),
            shlex.join(item.command),
        )
        for item in found
    )
    table(COLUMNS, rows, wide=wide)


def status(
    exec_id: Annotated[str, typer.Argument(help="The execution.", autocompletion=completion.executions)],
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the state of an execution, and the history of its states."""
    with Client() as client:
        found = with_full_id(client, exec_id, client.status)
    show_value(found, output, name=lambda found: found.id, text=lambda found: facts(_facts(found)))


def _facts(found: ExecStatus) -> Iterator[tuple[str, str]]:
    """Yield the facts of an execution that say something."""
    yield "id", found.id
    yield "agent", found.agent_id
    yield "state", found.state
    yield "command", shlex.join(found.command)
    yield "requested by", found.requested_by
    yield "policy", found.policy_applied
    yield "timeout", format_duration(found.timeout)
    optional = {
        "user": found.user,
        "directory": found.work_dir,
        "exit code": str(found.exit_code) if found.state.terminal else "",
        "error": found.error,
        "approvers": ", ".join(found.approvers),
        "approved by": f"{found.approved_by}: {found.approval_reason}" if found.approved_by else "",
        "waits until": moment(found.deadline) if _waits(found) else "",
        "cancelled by": found.cancel_requested_by,
        "session": ", ".join(session_facts(found)) if found.interactive and not found.state.terminal else "",
        "recorded": "yes" if found.recorded else "",
    }
    yield from ((name, value) for name, value in optional.items() if value)
    for step in found.history:
        yield f"at {moment(step.time)}", step.state


def session_facts(found: ExecStatus) -> Iterator[str]:
    """Yield in words who is attached to a session that has not ended, and who observes it."""
    if found.attached_by:
        yield f"{short_id(found.attached_by)} attached"
    elif not _waits(found):
        yield "detached"
    if found.observers:
        yield f"observed by {', '.join(map(short_id, found.observers))}"


def _waits(found: ExecStatus) -> bool:
    return found.state in (ExecState.PENDING_APPROVAL, ExecState.QUEUED)


_OUTCOMES = {
    CancelOutcome.CANCELLED: "cancelled before it started",
    CancelOutcome.REQUESTED: "cancel requested; the agent ends it",
    CancelOutcome.ALREADY_ENDED: "had already ended",
}


def outcome_of(answer: CancelResponse) -> str:
    """Return what a request to cancel changed, in words."""
    return f"{_OUTCOMES[answer.outcome]} ({answer.status.state})"


def cancel(
    exec_ids: Annotated[list[str], typer.Argument(help="The executions.", autocompletion=completion.open_executions)],
    output: OutputOption = Output.TEXT,
) -> None:
    """Cancel executions and print what happened to each. The exit code is 1 if any could not be cancelled."""
    answers = []
    failed = False
    with Client() as client:
        for exec_id in exec_ids:
            try:
                answer = with_full_id(client, exec_id, client.cancel)
            except TachikomaError as error:
                failed = True
                report_failure(
                    f"{exec_id}: {error}", reason=error.reason, code=error.code,
                    metadata=error.metadata | {"id": exec_id}, retry=error.retry_after_seconds,
                )  # fmt: skip
                continue
            answers.append(answer)
            if output is Output.TEXT:
                typer.echo(f"{answer.status.id}: {outcome_of(answer)}")
    if output is not Output.TEXT:
        show_list(answers, output, name=lambda answer: answer.status.id, text=lambda _: None)
    if failed:
        raise typer.Exit(1)
