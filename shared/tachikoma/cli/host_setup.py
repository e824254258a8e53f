"""The results of the commands that set up a host, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from tachikoma.cli.output import Output, show_value
from tachikoma.vocabulary.model import Model

__all__ = ["HostSetup", "JoinedAgent", "report_steps"]


class HostSetup(Model):
    """The result of setting up an orchestrator or an agent on this host."""

    #: What was done, in words; with `--dry-run`, what would be done.
    steps: tuple[str, ...]
    #: What is left to the operator, and notices, in words.
    left: tuple[str, ...]


class JoinedAgent(Model):
    """The identity that an agent got with its token."""

    #: SPIFFE ID of the agent.
    spiffe_id: str
    #: Folder of the identity.
    identity: str
    #: File with the agent's Redis password; empty if it did not get one.
    redis_password_file: str


def report_steps(steps: Iterable[str], left: Iterable[str], output: Output, *, none: str = "") -> None:
    """Do steps and print them: for people one by one, for programs all in one document.

    Args:
        steps: does a step each time that the next one is asked for, and yields it in words.
        left: what is left to the operator, in words; read when all steps are done.
        output: the form.
        none: what people read if there are no steps; empty for nothing.
    """
    done = []
    for words in steps:
        if output is Output.TEXT:
            typer.echo(words)
        done.append(words)
    if not done and none and output is Output.TEXT:
        typer.echo(none)
    show_value(HostSetup(steps=tuple(done), left=tuple(left)), output, text=_show_left)


def _show_left(report: HostSetup) -> None:
    for words in report.left:
        typer.echo(words)
