"""Completion of names in the shell: agents, executions, batches, recordings, schedules, people, from the orchestrator.

The user waits after a key press, so the answer takes a bounded time. An orchestrator that is unavailable, or that
refuses the caller, completes nothing and prints nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import typer

from tachikoma.client import PROFILE_VARIABLE
from tachikoma.errors import TachikomaError

if TYPE_CHECKING:
    from tachikoma.client.aio import AsyncClient

__all__ = [
    "agents",
    "batches",
    "executions",
    "open_executions",
    "recordings",
    "retried",
    "schedules",
    "sessions",
    "target_states",
    "users",
    "waiting",
    "waiting_batches",
]

#: Longest wait for the orchestrator. Before a second is over, the client also logs nothing.
SECONDS = 0.9
#: Largest number of executions or batches that are offered.
PAGE = 100


def agents(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of agents."""

    async def names(client: AsyncClient) -> Iterable[str]:
        return [agent.id for agent in await client.agents()]

    return _offered(ctx, incomplete, names)


def executions(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of the latest executions."""

    async def names(client: AsyncClient) -> Iterable[str]:
        page, _ = await client.list_page(include_ended=True, page_size=PAGE)
        return [item.id for item in page]

    return _offered(ctx, incomplete, names)


def open_executions(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of executions that have not ended."""

    async def names(client: AsyncClient) -> Iterable[str]:
        page, _ = await client.list_page(page_size=PAGE)
        return [item.id for item in page]

    return _offered(ctx, incomplete, names)


def sessions(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of interactive executions that have not ended."""

    async def names(client: AsyncClient) -> Iterable[str]:
        page, _ = await client.list_page(page_size=PAGE)
        return [item.id for item in page if item.interactive]

    return _offered(ctx, incomplete, names)


def waiting(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of executions that wait for an approval."""

    async def names(client: AsyncClient) -> Iterable[str]:
        return [item.id for item in await client.approvals()]

    return _offered(ctx, incomplete, names)


def batches(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of the latest batches."""

    async def names(client: AsyncClient) -> Iterable[str]:
        return [item.id for item in await client.batches(limit=PAGE)]

    return _offered(ctx, incomplete, names)


def waiting_batches(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of batches that wait for an approval."""

    async def names(client: AsyncClient) -> Iterable[str]:
        return [item.id for item in await client.batch_approvals()]

    return _offered(ctx, incomplete, names)


def schedules(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of schedules."""

    async def names(client: AsyncClient) -> Iterable[str]:
        found, _ = await client.schedules()
        return [item.name for item in found]

    return _offered(ctx, incomplete, names)


def recordings(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of the latest recordings."""

    async def names(client: AsyncClient) -> Iterable[str]:
        return [item.id for item in await client.recordings(limit=PAGE)]

    return _offered(ctx, incomplete, names)


def users(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of people."""

    async def names(client: AsyncClient) -> Iterable[str]:
        return [user.name for user in await client.users()]

    return _offered(ctx, incomplete, names)


def target_states(incomplete: str) -> list[str]:
    """Return the words of final states of a batch's targets."""
    # Imported here: the other names come from the orchestrator.
    from tachikoma.vocabulary.batches import TargetState

    states = [state.lower() for state in TargetState if state not in (TargetState.PENDING, TargetState.RUNNING)]
    return [state for state in states if state.startswith(incomplete)]


def retried(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return ids of batches and words of states: the shell does not say which value of `--retry` is at the cursor."""
    return [*batches(ctx, incomplete), *target_states(incomplete)]


def _offered(
    ctx: typer.Context, incomplete: str, names: Callable[[AsyncClient], Awaitable[Iterable[str]]]
) -> list[str]:
    """Return the names that begin with the text at the cursor; none if the orchestrator does not answer in time."""
    # The shell runs no callback of an option.
    if profile := ctx.find_root().params.get("profile"):
        os.environ[PROFILE_VARIABLE] = str(profile)
    try:
        found = asyncio.run(_asked(names))
    except (TachikomaError, TimeoutError, OSError):
        return []
    return [name for name in found if name.startswith(incomplete)]


async def _asked(names: Callable[[AsyncClient], Awaitable[Iterable[str]]]) -> list[str]:
    # Imported here, since commands import this module and most runs complete nothing.
    from tachikoma.client.aio import AsyncClient

    async with asyncio.timeout(SECONDS), AsyncClient() as client:
        return list(await names(client))
