"""`tachikoma dev`: the stack in the foreground."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import platformdirs
import typer

from tachikoma.client.profile import PROFILE_VARIABLE, Profile, default_profile_path
from tachikoma.client.sync import Client
from tachikoma.dev.stack import FLOWER_USER, Stack
from tachikoma.errors import ConfigurationError

__all__ = ["run_dev"]

#: How often the parts are looked at.
CHECK_SECONDS = 0.5


def _write_profile(stack: Stack) -> tuple[Path, bool]:
    """Write the profile where clients look for it, unless it would replace one that leads elsewhere.

    Returns:
        Where it was written, and whether clients find it there by themselves.
    """
    profile, usual = stack.profile(), default_profile_path()
    try:
        existing = Profile.load(usual)
    except ConfigurationError:
        ours = True
    else:
        place = existing.identity
        ours = place == profile.identity or (isinstance(place, Path) and not place.exists())
    path = usual if ours else stack.data / "profile.json"
    profile.save(path)
    return path, ours


def run_dev(
    *, agents: int, data: str | None, listen: str, flower: str | None = None, schedules: str | None = None
) -> None:
    """Run until Ctrl-C or SIGTERM.

    Raises:
        ConfigurationError: a part did not come up, or ended by itself.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    folder = Path(data) if data else platformdirs.user_data_path("tachikoma")
    stack = Stack(folder, agents=agents, listen=listen, flower=flower, schedules=schedules)
    typer.echo(f"starting in {stack.data} …")
    with stack:
        path, usual = _write_profile(stack)
        _introduce(stack, path, usual=usual)
        while not stop.wait(CHECK_SECONDS):
            failed = stack.failed_part()
            if failed is not None:
                raise ConfigurationError(failed.failure())
            stack.renew_identities()
        typer.echo("\nstopping …")
    typer.echo("stopped")


def _introduce(stack: Stack, profile: Path, *, usual: bool) -> None:
    with Client(stack.profile()) as client:
        found = client.agents()
    prefix = "" if usual else f"{PROFILE_VARIABLE}={profile} "
    typer.echo(f"orchestrator  {stack.address} (gRPC, mTLS)")
    typer.echo(f"agents        {', '.join(agent.id for agent in found)}")
    typer.echo(f"you           {stack.user}")
    typer.echo(f"policy        {stack.policy}")
    typer.echo(f"profile       {profile}")
    typer.echo(f"logs          {stack.data / 'logs'}")
    typer.echo(f"audit log     {stack.data / 'audit' / 'audit.jsonl'}")
    if stack.flower_url:
        typer.echo(f"flower        {stack.flower_url} (user {FLOWER_USER}, its password is in {stack.flower_users})")
    for warning in sorted({warning for agent in found for warning in agent.warnings}):
        typer.echo(f"not enforced  {warning}")
    typer.echo("")
    if not usual:
        typer.echo("Your own profile leads elsewhere and was left alone.")
    typer.echo("In another terminal:")
    typer.echo(f"  {prefix}tachikoma exec {found[0].id} -- uname -a")
    typer.echo("Ctrl-C stops everything.")
