"""`tachikoma dev`: the stack in the foreground."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import platformdirs
import typer

from tachikoma.client.profile import PROFILE_VARIABLE, Profile, default_profile_path
from tachikoma.dev.files import FLOWER_USER
from tachikoma.dev.stack import APPLICATION, Stack
from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.agents import AgentInfo

__all__ = ["run_dev"]

#: Between two checks of the parts, in seconds.
CHECK_SECONDS = 0.5


def run_dev(
    *,
    agents: int,
    data: str | None,
    listen: str,
    flower: str | None = None,
    schedules: str | None = None,
    submitter: bool = True,
) -> None:
    """Run a stack until Ctrl-C, SIGTERM, or the end of its terminal.

    Args:
        agents: number of agents.
        data: folder for all state; None for the user's data folder (XDG).
        listen: address of the orchestrator.
        flower: address of a Flower, or None for none.
        schedules: file of schedules, or module:app; None for none.
        submitter: whether to run a submitter, for Celery applications.

    Raises:
        ConfigurationError: a part did not start, or ended by itself.
    """
    stop = _set_by_signals()
    folder = Path(data) if data else platformdirs.user_data_path("tachikoma")
    stack = Stack(folder, agents=agents, listen=listen, flower=flower, schedules=schedules, submitter=submitter)
    typer.echo(f"starting in {stack.data} …")
    with stack:
        path, usual = write_profile(stack)
        isolation = _isolation(stack)
        for line in introduction(stack, stack.running_agents(), path, usual=usual, isolation=isolation):
            typer.echo(line)
        while not stop.wait(CHECK_SECONDS):
            failed = stack.failed_part()
            if failed is not None:
                raise ConfigurationError(failed.failure())
            stack.renew_identities()
        _report("\nstopping …")
    _report("stopped")


def _set_by_signals() -> threading.Event:
    """Return an event that Ctrl-C, SIGTERM, and the end of the terminal set."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # As `nohup` relies on.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: stop.set())
    return stop


def _report(text: str) -> None:
    """Print a line, unless the terminal is gone."""
    with suppress(OSError):
        typer.echo(text)


def write_profile(stack: Stack) -> tuple[Path, bool]:
    """Write the client profile to the usual place, unless another orchestrator's profile is there.

    Returns:
        The path of the profile, and whether it is the usual place, where clients find it by themselves.
    """
    profile, usual = stack.profile(), default_profile_path()
    ours = _may_replace(usual, profile)
    path = usual if ours else stack.data / "profile.json"
    profile.save(path)
    return path, ours


def _may_replace(path: Path, profile: Profile) -> bool:
    """Return whether the profile in a file is missing, broken, this stack's own, or of a stack that is gone."""
    try:
        place = Profile.load(path).identity
    except ConfigurationError:
        return True
    return place == profile.identity or (isinstance(place, Path) and not place.exists())


def _isolation(stack: Stack) -> str:
    """Choose the isolation of a new policy, and return a line about it; empty for the developer's own policy."""
    if not stack.has_new_policy:
        return ""
    if stack.isolate():
        return "private: commands of different requesters do not reach each other"
    return "shared, since an agent cannot do more: commands of one user reach each other"


def introduction(
    stack: Stack, agents: Sequence[AgentInfo], profile: Path, *, usual: bool, isolation: str = ""
) -> Iterator[str]:
    """Yield the lines with the places of all files and addresses, and the next steps."""
    yield f"orchestrator  {stack.address} (gRPC, mTLS)"
    yield f"agents        {', '.join(agent.id for agent in agents)}"
    yield f"you           {stack.user}"
    yield f"policy        {stack.policy}"
    if isolation:
        yield f"isolation     {isolation}"
    yield f"profile       {profile}"
    yield f"logs          {stack.data / 'logs'}"
    yield f"audit log     {stack.data / 'audit' / 'audit.jsonl'}"
    if stack.submitter is not None:
        yield f"celery        {stack.celery_url} (application {APPLICATION})"
    if stack.flower_url:
        yield f"flower        {stack.flower_url} (user {FLOWER_USER}, password in {stack.flower_users})"
    for warning in sorted({warning for agent in agents for warning in agent.warnings}):
        yield f"not enforced  {warning}"
    yield ""
    if not usual:
        yield "Your own client profile belongs to another orchestrator and was not changed."
    prefix = "" if usual else f"{PROFILE_VARIABLE}={profile} "
    yield "In another terminal:"
    yield f"  {prefix}tachikoma exec {agents[0].id} -- uname -a"
    yield "Ctrl-C stops everything."
