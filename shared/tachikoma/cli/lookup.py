"""Ids that people write: beginnings of execution ids, and agents that do not exist."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeVar

from tachikoma.errors import AgentUnknown, InvalidRequest, NotFound

if TYPE_CHECKING:
    from tachikoma.client.aio import AsyncClient
    from tachikoma.client.sync import Client
    from tachikoma.vocabulary.results import ExecStatus

__all__ = ["similar_agents", "with_full_id", "with_full_id_async"]

R = TypeVar("R")

#: Least characters of a beginning, so that a short word is no accident.
LEAST_CHARACTERS = 4
#: Pages that are searched for a beginning, and executions of a page.
PAGES, PAGE = 20, 1000
#: Ids that the message about an ambiguous beginning names.
NAMED = 3


def with_full_id(client: Client, exec_id: str, call: Callable[[str], R]) -> R:
    """Make a call with an execution's id, or with the id that begins with the given text.

    Raises:
        NotFound: there is no such execution.
        InvalidRequest: several ids begin with the text.
    """
    try:
        return call(exec_id)
    except NotFound:
        if len(exec_id) < LEAST_CHARACTERS:
            raise
        found: list[str] = []
        token = ""
        for _ in range(PAGES):
            page, token = client.list_page(include_ended=True, page_size=PAGE, page_token=token)
            found += _matching(page, exec_id)
            if not token:
                break
        full = _only(found, exec_id)
        if full is None:
            raise
    return call(full)


async def with_full_id_async(client: AsyncClient, exec_id: str, call: Callable[[str], Awaitable[R]]) -> R:
    """Do the same as `with_full_id` for a coroutine."""
    try:
        return await call(exec_id)
    except NotFound:
        if len(exec_id) < LEAST_CHARACTERS:
            raise
        found: list[str] = []
        token = ""
        for _ in range(PAGES):
            page, token = await client.list_page(include_ended=True, page_size=PAGE, page_token=token)
            found += _matching(page, exec_id)
            if not token:
                break
        full = _only(found, exec_id)
        if full is None:
            raise
    return await call(full)


def _matching(page: Iterable[ExecStatus], beginning: str) -> list[str]:
    return [item.id for item in page if item.id.startswith(beginning)]


def _only(found: list[str], beginning: str) -> str | None:
    """Return the only id, or None if there is none.

    Raises:
        InvalidRequest: there are several.
    """
    if len(found) > 1:
        named = ", ".join(found[:NAMED]) + (", …" if len(found) > NAMED else "")
        raise InvalidRequest(f"{len(found)} executions begin with {beginning!r}: {named}; write more of the id")
    return found[0] if found else None


def similar_agents(error: AgentUnknown, agent: str, known: Iterable[str]) -> AgentUnknown:
    """Return the error about an unknown agent, with the agents that its name resembles.

    The orchestrator's message already says where the agents are listed.
    """
    close = get_close_matches(agent, list(known), n=2, cutoff=0.6)
    if not close:
        return error
    return AgentUnknown(f"{error}; did you mean {' or '.join(close)}?", metadata=error.metadata)
