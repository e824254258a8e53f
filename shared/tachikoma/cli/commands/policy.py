"""`tachikoma policy`: check, explain, test and compare policy files."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from tachikoma.cli.commands.audit import FileOption, trail_of
from tachikoma.cli.documents import PolicyChanges
from tachikoma.cli.options import duration, pairs, remote_command
from tachikoma.cli.output import Output, OutputOption, show_value
from tachikoma.cli.show import clock, warn
from tachikoma.cli.tables import printable
from tachikoma.client.sync import Client
from tachikoma.errors import ConfigurationError, InvalidRequest
from tachikoma.policy.decide import SEARCH_PATH, PolicySet
from tachikoma.policy.decision import Decision
from tachikoma.policy.file import PolicyFile
from tachikoma.policy.hazards.installed import installed_kind
from tachikoma.policy.hazards.programs import worst
from tachikoma.policy.tools.expectations import check as check_expectations
from tachikoma.policy.tools.expectations import load_expectations
from tachikoma.policy.tools.replay import Replay
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
) -> None:
    """Check a policy file: print each mistake with line and column, and warn of what is probably not meant."""
    found = PolicySet.load(file)
    warnings = found.warnings()
    for warning in warnings:
        warn(f"warning: {warning}")
    number = len(found.policies)
    policies = "policy" if number == 1 else "policies"
    typer.echo(f"{file}: {number} {policies}, {'all right' if not warnings else 'valid'}")
    for policy_name, path, kind in found.programs():
        # On this host a link may lead to a program of another kind. The agent looks at its own links.
        installed = worst(kind, installed_kind(path)) if Path(path).exists() else kind
        typer.echo(f"  {policy_name}: {path}: {installed.value}")
    if strict and warnings:
        raise typer.Exit(1)


@policy.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def explain(
    agent: Annotated[str, typer.Argument(help="The agent's id.")],
    command: Annotated[list[str], typer.Argument(help="The program and its arguments.")],
    file: Annotated[Path, typer.Option("--policy", envvar="TACHIKOMA_POLICY", help="The policy file, or a folder.")],
    subject: Annotated[str, typer.Option("--as", help="SPIFFE ID of the requester.")],
    label: Annotated[list[str] | None, typer.Option(help="name=value of the agent; may be repeated.")] = None,
    user: Annotated[str, typer.Option("--user", "-u", help="User on the agent.")] = "",
    cwd: Annotated[str, typer.Option(help="Working directory.")] = "",
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="NAME=value; may be repeated.")] = None,
    timeout: Annotated[str | None, typer.Option(help="30s, 5m, 1h30m.")] = None,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="With a terminal.")] = False,
    address: Annotated[str, typer.Option("--from", help="Address of the requester; unknown by default.")] = "",
) -> None:
    """Show the decision on a request, and the reason of each policy that applies to it. Exits 1 if it is denied."""
    request = make_request(
        {
            "agent_id": agent, "command": remote_command(command), "user": user, "work_dir": cwd, "tty": tty,
            "interactive": tty, "environment": pairs(env, "--env"),
            "timeout": None if timeout is None else duration(timeout, "--timeout"),
        }
    )  # fmt: skip
    found = PolicySet.load(file).explain(request, subject, SEARCH_PATH, pairs(label, "--label"), address)
    for verdict in found.verdicts:
        typer.echo(f"{verdict.policy:40} {_verdict(verdict)}")
    _show_decision(found.decision)
    if found.decision.grant is None:
        raise typer.Exit(1)


def _verdict(verdict: Decision) -> str:
    if verdict.allowed:
        return "grants it with an approval" if verdict.approvers else "grants it"
    if verdict.rule.startswith("deniedCommands"):
        return f"denies it for all: {verdict.rule}"
    return f"does not grant it: {verdict.rule} ({verdict.reason})"


def _show_decision(decision: Decision) -> None:
    outcome = "denied" if not decision.allowed else "allowed with an approval" if decision.approvers else "allowed"
    typer.echo(f"{outcome}: {decision.policy or decision.rule}")
    if decision.grant is None:
        typer.echo(f"  {decision.reason}")
        return
    for executable in decision.grant.executables:
        typer.echo(f"  may execute  {executable.path}  ({installed_kind(executable.path).value})")
    for approver in decision.approvers:
        typer.echo(f"  approved by  {approver}")
    limits = decision.grant.limits.model_dump(by_alias=True, exclude_none=True)
    if limits:
        typer.echo(f"  limits       {', '.join(f'{name} {value}' for name, value in limits.items())}")


@policy.command("test")
def run_tests(
    file: FileArgument,
    expectations: Annotated[
        Path | None, typer.Argument(help="The expectations; by default the file next to it that ends in .test.yaml.")
    ] = None,
) -> None:
    """Check that a policy decides as its expectations say. Exits 1 if one is not met."""
    default = file / "policy.test.yaml" if file.is_dir() else file.with_suffix(".test.yaml")
    path = expectations or default
    if not path.exists():
        raise ConfigurationError(f"there are no expectations at {path}")
    outcomes = check_expectations(PolicySet.load(file), load_expectations(path))
    failures = [outcome for outcome in outcomes if outcome.mistake]
    for outcome in failures:
        wanted = outcome.expectation
        typer.echo(f"FAILED {wanted.subject} on {wanted.agent}: {shlex.join(wanted.command)} {outcome.mistake}")
    typer.echo(f"{len(outcomes) - len(failures)} of {len(outcomes)} as expected")
    if failures:
        raise typer.Exit(1)


@policy.command()
def status(output: OutputOption = Output.TEXT) -> None:
    """Show the active policy. Exits 1 if the newest files have a mistake; then an older policy stays active."""
    with Client() as client:
        found = client.policy_status()
    show_value(found, output, text=_show_status)
    if found.error:
        raise typer.Exit(1)


def _show_status(found: PolicyStatus) -> None:
    typer.echo(f"active  {found.digest[:12]} since {clock(found.since)}, {found.policies} policies")
    typer.echo(f"files   {found.path} on {found.host}")
    if found.error:
        warn(f"the newest files are NOT active, since they have a mistake:\n{printable(found.error)}")


@policy.command()
def diff(
    old: Annotated[Path, typer.Argument(help="A policy file or folder.")],
    new: Annotated[Path, typer.Argument(help="The proposed one.")],
    file: FileOption = None,
    label: Annotated[
        list[str] | None, typer.Option(help="agent:name=value, for agents that are unknown now; may be repeated.")
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
