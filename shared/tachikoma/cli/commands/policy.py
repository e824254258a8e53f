"""`tachikoma policy`: check, explain, test and compare policy files."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from tachikoma.cli import completion
from tachikoma.cli.commands.audit import FileOption, trail_of
from tachikoma.cli.options import duration, pairs, refuse_option, remote_command
from tachikoma.cli.output import Output, OutputOption, show_value
from tachikoma.cli.policy_documents import (
    PolicyChanges,
    PolicyExplanation,
    PolicyProgram,
    PolicyReport,
    PolicyTestFailure,
    PolicyTestReport,
    PolicyVerdict,
)
from tachikoma.cli.show import clock, warn
from tachikoma.cli.tables import printable
from tachikoma.client.sync import Client
from tachikoma.errors import ConfigurationError, InvalidRequest
from tachikoma.policy.decide import SEARCH_PATH, PolicySet
from tachikoma.policy.decision import Decision, Explanation
from tachikoma.policy.file import PolicyFile
from tachikoma.policy.hazards.installed import installed_kind
from tachikoma.policy.hazards.programs import worst
from tachikoma.policy.tools.expectations import Outcome, load_expectations
from tachikoma.policy.tools.expectations import check as check_expectations
from tachikoma.policy.tools.replay import Replay
from tachikoma.vocabulary.limits import (
    DEFAULT_CPU_WEIGHT,
    DEFAULT_MEMORY,
    DEFAULT_OPEN_FILES,
    DEFAULT_PIDS,
    ResourceLimits,
)
from tachikoma.vocabulary.pairs import parse_pair
from tachikoma.vocabulary.policies import PolicyStatus
from tachikoma.vocabulary.requests import make_request

__all__ = ["policy", "schema_text"]

policy = typer.Typer(no_args_is_help=True, help="Check, explain, test and compare policy files.")

FileArgument = Annotated[Path, typer.Argument(help="The policy file, or a folder of them.")]


@policy.command()
def check(
    file: FileArgument,
    strict: Annotated[bool, typer.Option("--strict", help="Fail also on warnings.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check a policy file: print each mistake with line and column, and warn of what is probably not meant."""
    found = PolicySet.load(file)
    programs = []
    for policy_name, path, kind in found.programs():
        # On this host a link may lead to a program of another kind. The agent looks at its own links.
        installed = worst(kind, installed_kind(path)) if Path(path).exists() else kind
        programs.append(PolicyProgram(policy=policy_name, path=path, kind=installed.value))
    report = PolicyReport(
        file=str(file), policies=len(found.policies), warnings=tuple(found.warnings()), programs=tuple(programs)
    )
    show_value(report, output, text=_show_report)
    if strict and report.warnings:
        raise typer.Exit(1)


def _show_report(report: PolicyReport) -> None:
    for warning in report.warnings:
        warn(f"warning: {warning}")
    policies = "policy" if report.policies == 1 else "policies"
    typer.echo(f"{report.file}: {report.policies} {policies}, {'valid' if report.warnings else 'all right'}")
    for program in report.programs:
        typer.echo(f"  {program.policy}: {program.path}: {program.kind}")


@policy.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def explain(
    context: typer.Context,
    agent: Annotated[str, typer.Argument(help="The agent's id.", autocompletion=completion.agents)],
    command: Annotated[list[str], typer.Argument(help="The program and its arguments.")],
    file: Annotated[Path, typer.Option("--policy", envvar="TACHIKOMA_POLICY", help="The policy file, or a folder.")],
    subject: Annotated[str, typer.Option("--as", help="SPIFFE ID of the requester.")],
    label: Annotated[list[str] | None, typer.Option(help="name=value of the agent. May be repeated.")] = None,
    user: Annotated[str, typer.Option("--user", "-u", help="User on the agent.")] = "",
    cwd: Annotated[str, typer.Option(help="Working directory.")] = "",
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="NAME=value. May be repeated.")] = None,
    timeout: Annotated[str | None, typer.Option(help="30s, 5m, 1h30m.")] = None,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="With a terminal.")] = False,
    address: Annotated[str, typer.Option("--from", help="Address of the requester; unknown by default.")] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the decision on a request, and the reason of each policy that applies to it. Exits 1 if it is denied."""
    refuse_option(context, [agent, *command])
    request = make_request(
        {
            "agent_id": agent, "command": remote_command(command), "user": user, "work_dir": cwd, "tty": tty,
            "interactive": tty, "environment": pairs(env, "--env"),
            "timeout": None if timeout is None else duration(timeout, "--timeout"),
        }
    )  # fmt: skip
    found = PolicySet.load(file).explain(request, subject, SEARCH_PATH, pairs(label, "--label"), address)
    show_value(_explanation(found), output, text=_show_explanation)
    if not found.decision.allowed:
        raise typer.Exit(1)


def _explanation(found: Explanation) -> PolicyExplanation:
    grant = found.decision.grant
    executables = [
        PolicyProgram(policy=found.decision.policy, path=item.path, kind=installed_kind(item.path).value)
        for item in (grant.executables if grant else ())
    ]
    return PolicyExplanation(
        decision=_verdict(found.decision), verdicts=tuple(map(_verdict, found.verdicts)),
        executables=tuple(executables),
        limits=grant.limits.model_dump(mode="json", by_alias=True, exclude_none=True) if grant else {},
        defaults=_defaults(grant.limits) if grant else {},
        isolation=grant.isolation.value if grant and grant.isolation else "",
    )  # fmt: skip


def _defaults(limits: ResourceLimits) -> dict[str, object]:
    """Return the limits that an agent adds to those of a grant, as in a policy file."""
    found: dict[str, object] = {}
    if limits.memory is None:
        found["memory"] = DEFAULT_MEMORY
    if limits.pids is None:
        found["pids"] = DEFAULT_PIDS
    if limits.cpu_weight is None:
        found["cpuWeight"] = DEFAULT_CPU_WEIGHT
    if limits.open_files is None:
        found["openFiles"] = DEFAULT_OPEN_FILES
    return found


def _verdict(verdict: Decision) -> PolicyVerdict:
    return PolicyVerdict(
        policy=verdict.policy, allowed=verdict.allowed, approvers=verdict.approvers, rule=verdict.rule,
        reason=verdict.reason, approval_above=verdict.approval_above, batch_approvers=verdict.batch_approvers,
    )  # fmt: skip


def _words(verdict: PolicyVerdict) -> str:
    if verdict.allowed:
        return "grants it with an approval" if verdict.approvers else "grants it"
    if verdict.rule.startswith("deniedCommands"):
        return f"denies it, whichever policy grants it: {verdict.rule}"
    return f"does not grant it: {verdict.rule} ({verdict.reason})"


def _show_explanation(found: PolicyExplanation) -> None:
    width = max((len(verdict.policy) for verdict in found.verdicts), default=0)
    for verdict in found.verdicts:
        typer.echo(f"{verdict.policy:{width}}  {_words(verdict)}")
    decision = found.decision
    outcome = "denied" if not decision.allowed else "allowed with an approval" if decision.approvers else "allowed"
    typer.echo(f"{outcome}: {decision.policy or decision.rule}")
    if not decision.allowed:
        typer.echo(f"  {decision.reason}")
        return
    for executable in found.executables:
        typer.echo(f"  may execute  {executable.path}  ({executable.kind})")
    for approver in decision.approvers:
        typer.echo(f"  approved by  {approver}")
    if decision.approval_above is not None and not decision.approvers:
        typer.echo(f"  in batches   of more than {decision.approval_above} targets, and beyond as many at once:")
        for approver in decision.batch_approvers:
            typer.echo(f"  approved by  {approver}")
    for title, limits in (("limits", found.limits), ("by default", found.defaults)):
        if limits:
            typer.echo(f"  {title:11}  {', '.join(f'{name} {value}' for name, value in limits.items())}")
    typer.echo(f"  {'isolation':11}  {found.isolation or 'that of the agent'}")


@policy.command("test")
def run_tests(
    file: FileArgument,
    expectations: Annotated[
        Path | None, typer.Argument(help="The expectations; by default the file next to it that ends in .test.yaml.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check that a policy decides as its expectations say. Exits 1 if one is not met."""
    default = file / "policy.test.yaml" if file.is_dir() else file.with_suffix(".test.yaml")
    path = expectations or default
    if not path.exists():
        raise ConfigurationError(f"there are no expectations at {path}")
    outcomes = check_expectations(PolicySet.load(file), load_expectations(path))
    failures = tuple(_failure(outcome) for outcome in outcomes if outcome.mistake)
    show_value(PolicyTestReport(expectations=len(outcomes), failures=failures), output, text=_show_failures)
    if failures:
        raise typer.Exit(1)


def _failure(outcome: Outcome) -> PolicyTestFailure:
    wanted = outcome.expectation
    return PolicyTestFailure(
        subject=wanted.subject, agent=wanted.agent, command=wanted.command, mistake=outcome.mistake
    )


def _show_failures(report: PolicyTestReport) -> None:
    for failure in report.failures:
        typer.echo(f"FAILED {failure.subject} on {failure.agent}: {shlex.join(failure.command)} {failure.mistake}")
    met = report.expectations - len(report.failures)
    typer.echo(f"{met} of {report.expectations} as expected")


@policy.command()
def status(output: OutputOption = Output.TEXT) -> None:
    """Show the active policy. Exits 1 if the newest files have a mistake; then an older policy stays active."""
    with Client() as client:
        found = client.policy_status()
    show_value(found, output, text=_show_status)
    if found.error:
        raise typer.Exit(1)


def _show_status(found: PolicyStatus) -> None:
    noun = "policy" if found.policies == 1 else "policies"
    typer.echo(f"active  {found.digest[:12]} since {clock(found.since)}, {found.policies} {noun}")
    typer.echo(f"files   {found.path} on {found.host}")
    if found.error:
        warn(f"the newest files are NOT active, since they have a mistake:\n{printable(found.error)}")


@policy.command()
def diff(
    old: Annotated[Path, typer.Argument(help="A policy file or folder.")],
    new: Annotated[Path, typer.Argument(help="The proposed one.")],
    file: FileOption = None,
    label: Annotated[
        list[str] | None, typer.Option(help="agent:name=value, for agents that are unknown now. May be repeated.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Decide the requests in the audit trail by two policies, and list the different decisions. Exits 1 if any."""
    replay = Replay(PolicySet.load(old), PolicySet.load(new), _labels(label or [], ask=file is None))
    for event in trail_of(file):
        replay.add(event)
    content = PolicyChanges(requests=replay.requests, changes=tuple(replay.changes))
    show_value(content, output, text=lambda _: _show_changes(replay))
    if replay.changes:
        raise typer.Exit(1)


def _labels(given: list[str], *, ask: bool) -> dict[str, dict[str, str]]:
    """Return the labels of each agent: those that the orchestrator knows, and those of `--label`."""
    labels: dict[str, dict[str, str]] = {}
    if ask:
        with Client() as client:
            labels = {agent.id: agent.labels for agent in client.agents()}
    for item in given:
        agent, _, pair = item.partition(":")
        try:
            name, value = parse_pair(pair)
        except ValueError:
            agent = ""
        if not agent:
            raise InvalidRequest(f"--label: {item!r} is not agent:name=value")
        labels.setdefault(agent, {})[name] = value
    return labels


def _show_changes(replay: Replay) -> None:
    for change in replay.changes:
        masked = "; part of it is masked in the trail" if change.masked else ""
        typer.echo(f"{change.subject} on {change.agent}: {shlex.join(change.command)} ({change.times} times{masked})")
        typer.echo(f"  was {change.before}")
        typer.echo(f"  now {change.after}")
    typer.echo(f"{replay.requests} requests, {len(replay.changes)} different decisions")


@policy.command()
def schema() -> None:
    """Print the JSON schema of policy files, for editors."""
    typer.echo(schema_text(), nl=False)


def schema_text() -> str:
    """Return the JSON schema of policy files, as it is shipped."""
    content = PolicyFile.model_json_schema(by_alias=True)
    content |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Tachikoma policy"}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
