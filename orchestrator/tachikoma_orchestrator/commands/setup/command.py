"""The command `tachikoma setup`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tachikoma.cli.host_setup import report_steps
from tachikoma.cli.output import Output, OutputOption
from tachikoma.setup.layout import Layout
from tachikoma.setup.steps import Host, apply, pending
from tachikoma_orchestrator.commands.setup.choices import Choices
from tachikoma_orchestrator.commands.setup.plan import OrchestratorPlan
from tachikoma_orchestrator.commands.setup.redis_steps import waits_for_disk

__all__ = ["setup"]

setup = typer.Typer(
    invoke_without_command=True, help="Set up an orchestrator on this host, with its Redis; safe to repeat."
)

#: What people read if no step is due.
NOTHING = "nothing to do"

RedisUrlOption = Annotated[
    str | None, typer.Option(help="URL of an existing Redis, without credentials; by default one on this host.")
]
PartsOption = Annotated[
    str | None,
    typer.Option(
        metavar="PART,...", help="Further parts of this host: submitter, beat and flower; 'none' removes them again."
    ),
]
RenewOption = Annotated[bool, typer.Option("--renew", help="Only renew certificates that are due; a timer does this.")]


@setup.callback()
def run(
    host: Annotated[str | None, typer.Option(help="Name of this host, as agents and people reach it.")] = None,
    trust_domain: Annotated[str | None, typer.Option(help="Trust domain; by default the host's domain.")] = None,
    operator: Annotated[str | None, typer.Option(help="Name of the first operator; by default yours.")] = None,
    bind: Annotated[str | None, typer.Option(help="Address to listen on; by default all.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the gRPC server, 8534.")] = None,
    join_port: Annotated[int | None, typer.Option(help="Port on which hosts and people join, 8535.")] = None,
    redis_url: RedisUrlOption = None,
    redis_port: Annotated[int | None, typer.Option(help="Port of the Redis on this host, 6379.")] = None,
    redis_server: Annotated[str | None, typer.Option(help="Program of the Redis on this host, redis-server.")] = None,
    parts: PartsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
    renew: RenewOption = False,
    root: Annotated[Path, typer.Option(help="Folder below which everything is written, instead of /.")] = Path("/"),
    output: OutputOption = Output.TEXT,
) -> None:
    """Set up an orchestrator on this host, with its Redis. Choices are kept for the next time; safe to repeat."""
    layout = Layout(root.absolute())
    given = {
        "host": host, "trust_domain": trust_domain, "operator": operator, "bind": bind, "port": port,
        "join_port": join_port, "redis_url": redis_url, "redis_port": redis_port,
        "redis_server": redis_server, "parts": None if parts is None else _parts(parts),
    }  # fmt: skip
    stored = layout.settings / "setup.toml"
    choices = Choices.read(stored, **given)
    previous = Choices.read(stored) if stored.is_file() else choices
    program = shutil.which(choices.redis_server) or choices.redis_server
    durable = not choices.own_redis or waits_for_disk(program)
    plan = OrchestratorPlan(layout, choices, durable, program, previous)
    plan.further.check()
    steps = plan.certificates() if renew else plan.steps()
    here = Host.real(layout.root)
    if dry_run:
        waiting = [f"would {words}" for _, words in pending(steps, here)]
        total = [f"{len(waiting)} steps"] if waiting and output is Output.TEXT else []
        report_steps(waiting, total, output, none=NOTHING)
        return
    report_steps(apply(steps, here), _left(plan, here, renew=renew), output, none=NOTHING)


def _parts(text: str) -> list[str]:
    """Return the parts of a list with commas."""
    return [] if text == "none" else [part.strip() for part in text.split(",")]


def _left(plan: OrchestratorPlan, here: Host, *, renew: bool) -> Iterator[str]:
    """Yield what is left to the operator."""
    if notice := plan.authority().waits_for_root():
        yield notice
    if renew:
        return
    if not here.services:
        yield "start it:"
        for line in plan.units().commands():
            yield f"  {line}"
    if plan.lacks_operator():
        yield f"no policy in {plan.policy.parent} names {plan.operator_id}: add it to `operators`"
    for before, now in plan.moved():
        yield (
            f"agents and people that joined before use {before}, which is {now} now: docs/deployment.md, "
            "'Another name or port'"
        )
    if not plan.choices.own_redis and plan.redis_conf.is_file():
        yield (
            "this Redis is no longer used, and keeps its data: systemctl disable --now tachikoma-redis; "
            f"rm {plan.redis_conf}"
        )
    if not plan.choices.own_redis:
        acl = plan.layout.settings / "users.acl"
        yield f"load {acl} into {plan.choices.redis_url} (ACL LOAD), then: tachikoma redis check"
    yield from plan.further.notices()
    if advice := plan.authority().advice():
        yield advice
    yield "next: tachikoma agents enroll 'web-{1..3}'"
