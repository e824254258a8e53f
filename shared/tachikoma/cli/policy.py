"""`tachikoma policy`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from tachikoma.cli.audit import trail_of
from tachikoma.cli.show import Output, OutputOption, as_json, clock, printable
from tachikoma.client.sync import Client
from tachikoma.errors import ConfigurationError, InvalidRequest
from tachikoma.policy.decide import SEARCH_PATH, PolicySet
from tachikoma.policy.decision import Decision
from tachikoma.policy.expectations import check as check_expectations
from tachikoma.policy.expectations import load_expectations
from tachikoma.policy.file import PolicyFile
from tachikoma.policy.replay import Replay
from tachikoma.vocabulary.model import describe_validation_error
from tachikoma.vocabulary.pairs import parse_pair, parse_pairs
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.types import parse_duration

__all__ = ["policy", "schema_text"]

policy = typer.Typer(no_args_is_help=True, help="Check, explain, test and compare policy files.")

FileArgument = Annotated[Path, typer.Argument(help="The policy file, or a folder of them.")]


@policy.command()
def check(
    file: FileArgument,
    strict: Annotated[bool, typer.Option("--strict", help="Fail also on warnings.")] = False,
) -> None:
    """Say whether a policy is right; each mistake with line and column, and what is hardly meant."""
    found = PolicySet.load(file)
    warnings = found.warnings()
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    number = len(found.policies)
    policies = "policy" if number == 1 else "policies"
    typer.echo(f"{file}: {number} {policies}, {'all right' if not warnings else 'valid'}")
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
    address: Annotated[str, typer.Option("--from", help="Address it is asked for from; not known by default.")] = "",
) -> None:
    """Say what policy decides of a request and why: what each policy that is for it says. Exits 1 if it is denied."""
    if command[0] == "--":
        command = command[1:]
    try:
        environment, labels = parse_pairs(env or []), parse_pairs(label or [])
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    try:
        request = ExecRequest(
            agent_id=agent, command=tuple(command), user=user, work_dir=cwd, environment=environment, tty=tty,
            timeout=None if timeout is None else parse_duration(timeout),
        )  # fmt: skip
    except ValidationError as error:
        raise InvalidRequest(describe_validation_error(error)) from None
    except ValueError as error:
        raise InvalidRequest(f"--timeout: {error}") from None
    found = PolicySet.load(file).explain(request, subject, SEARCH_PATH, labels, address)
    for verdict in found.verdicts:
        typer.echo(f"{verdict.policy:40} {_told(verdict)}")
    decision = found.decision
    outcome = "denied" if not decision.allowed else "allowed with an approval" if decision.approvers else "allowed"
    typer.echo(f"{outcome}: {decision.policy or decision.rule}")
    if decision.grant is None:
        typer.echo(f"  {decision.reason}")
        raise typer.Exit(1)
    for executable in decision.grant.executables:
        typer.echo(f"  may execute  {executable.path}")
    for approver in decision.approvers:
        typer.echo(f"  approved by  {approver}")
    limits = decision.grant.limits.model_dump(by_alias=True, exclude_none=True)
    if limits:
        typer.echo(f"  limits       {', '.join(f'{name} {value}' for name, value in limits.items())}")


def _told(verdict: Decision) -> str:
    if verdict.allowed:
        return "grants it with an approval" if verdict.approvers else "grants it"
    if verdict.rule.startswith("deniedCommands"):
        return f"denies it for all: {verdict.rule}"
    return f"does not grant it: {verdict.rule} ({verdict.reason})"


@policy.command("test")
def run_tests(
    file: FileArgument,
    expectations: Annotated[
        Path | None, typer.Argument(help="What is expected; by default the file beside it that ends in .test.yaml.")
    ] = None,
) -> None:
    """Check that a policy decides as its expectations say. Exits 1 if one is not met."""
    beside = file / "policy.test.yaml" if file.is_dir() else file.with_suffix(".test.yaml")
    path = expectations or beside
    if not path.exists():
        raise ConfigurationError(f"there are no expectations at {path}")
    outcomes = check_expectations(PolicySet.load(file), load_expectations(path))
    failed = 0
    for outcome in outcomes:
        if outcome.mistake:
            failed += 1
            wanted = outcome.expectation
            typer.echo(f"FAILED {wanted.subject} on {wanted.agent}: {shlex.join(wanted.command)} {outcome.mistake}")
    typer.echo(f"{len(outcomes) - failed} of {len(outcomes)} as expected")
    if failed:
        raise typer.Exit(1)


@policy.command()
def status(output: OutputOption = Output.TEXT) -> None:
    """Say which policy is in force. Exits 1 if a newer one is wrong and therefore is not."""
    with Client() as client:
        found = client.policy_status()
    if output is Output.JSON:
        as_json(found)
    else:
        typer.echo(f"in force  {found.digest[:12]} since {clock(found.since)}, {found.policies} policies")
        typer.echo(f"files     {found.path} on {found.host}")
        if found.error:
            typer.echo(f"NOT in force, for the files as they are now are wrong:\n{printable(found.error)}", err=True)
    if found.error:
        raise typer.Exit(1)


@policy.command()
def diff(
    old: Annotated[Path, typer.Argument(help="A policy file or folder.")],
    new: Annotated[Path, typer.Argument(help="The one proposed.")],
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Replay this audit log, or folder, instead of asking the orchestrator."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="agent:name=value, for agents that are not there now; may be repeated.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Decide on the requests of the audit trail by two policies, and list what would change; exits 1 if any does."""
    labels: dict[str, dict[str, str]] = {}
    if file is None:
        with Client() as client:
            labels = {agent.id: agent.labels for agent in client.agents()}
    for item in label or []:
        agent, colon, pair = item.partition(":")
        try:
            name, value = parse_pair(pair)
        except ValueError:
            colon = ""
        if not agent or not colon:
            raise InvalidRequest(f"--label: {item!r} is not agent:name=value")
        labels.setdefault(agent, {})[name] = value
    replay = Replay(PolicySet.load(old), PolicySet.load(new), labels)
    for event in trail_of(file):
        replay.add(event)
    if output is Output.JSON:
        typer.echo(
            json.dumps({"requests": replay.requests, "changes": [c.to_dict() for c in replay.changes]}, indent=2)
        )
    else:
        for change in replay.changes:
            masked = "; part of it is masked in the trail" if change.masked else ""
            typer.echo(
                f"{change.subject} on {change.agent}: {shlex.join(change.command)} ({change.times} times{masked})"
            )
            typer.echo(f"  was {change.before}")
            typer.echo(f"  now {change.after}")
        typer.echo(f"{replay.requests} requests, {len(replay.changes)} different ones would be decided otherwise")
    if replay.changes:
        raise typer.Exit(1)


@policy.command()
def schema() -> None:
    """Print the JSON schema of policy files, for editors."""
    typer.echo(schema_text(), nl=False)


def schema_text() -> str:
    """The JSON schema of policy files, as it is shipped."""
    content = PolicyFile.model_json_schema(by_alias=True)
    content |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Tachikoma policy"}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
