"""Ids that people write: beginnings of the ids of executions and batches, and agents that do not exist."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from tachikoma.errors import AgentUnknown, InvalidRequest, NotFound

if TYPE_CHECKING:
    from tachikoma.client.aio import AsyncClient
    from tachikoma.client.sync import Client
    from tachikoma.vocabulary.batches import BatchStatus
    from tachikoma.vocabulary.results import ExecStatus

    Named: TypeAlias = ExecStatus | BatchStatus

__all__ = ["similar_agents", "with_full_batch_id", "with_full_batch_id_async", "with_full_id", "with_full_id_async"]

R = TypeVar("R")

#: Least characters of a beginning, so that a short word is no accident.
LEAST_CHARACTERS = 4
#: Pages that are searched for a beginning, and entries of a page.
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
        search = _Search(exec_id, "executions")
        while search.goes_on:
            search.add(*client.list_page(include_ended=True, page_size=PAGE, page_token=search.token))
        if search.only is None:
            raise
    return call(search.only)


async def with_full_id_async(client: AsyncClient, exec_id: str, call: Callable[[str], Awaitable[R]]) -> R:
    """Do the same as `with_full_id` for a coroutine."""
    try:
        return await call(exec_id)
    except NotFound:
        search = _Search(exec_id, "executions")
        while search.goes_on:
            search.add(*await client.list_page(include_ended=True, page_size=PAGE, page_token=search.token))
        if search.only is None:
            raise
    return await call(search.only)


def with_full_batch_id(client: Client, batch_id: str, call: Callable[[str], R]) -> R:
    """Make a call with a batch's id, or with the id that begins with the given text; errors as `with_full_id`."""
    try:
        return call(batch_id)
    except NotFound:
        search = _Search(batch_id, "batches")
        if search.goes_on:
            search.add(client.batches(limit=PAGE))
        if search.only is None:
            raise
    return call(search.only)


async def with_full_batch_id_async(client: AsyncClient, batch_id: str, call: Callable[[str], Awaitable[R]]) -> R:
    """Do the same as `with_full_batch_id` for a coroutine."""
    try:
        return await call(batch_id)
    except NotFound:
        search = _Search(batch_id, "batches")
        if search.goes_on:
            search.add(await client.batches(limit=PAGE))
        if search.only is None:
            raise
    return await call(search.only)


class _Search:
    """The search for the only id that begins with a text, one page of a list at a time."""

    def __init__(self, beginning: str, nouns: str) -> None:
        self._beginning = beginning
        self._nouns = nouns
        self._found: list[str] = []
        self._pages_left = PAGES if len(beginning) >= LEAST_CHARACTERS else 0
        #: Token of the next page; empty for the first.
        self.token = ""

    @property
    def goes_on(self) -> bool:
        """True if another page must be read."""
        return self._pages_left > 0

    def add(self, page: Iterable[Named], token: str = "") -> None:
        """Take a page, and the token of the next one, which is empty on the last page."""
        self._found += (item.id for item in page if item.id.startswith(self._beginning))
        self.token = token
        self._pages_left = self._pages_left - 1 if token else 0

    @property
    def only(self) -> str | None:
        """The only id, or None if there is none.

        Raises:
            InvalidRequest: there are several.
        """
        if len(self._found) > 1:
            named = ", ".join(self._found[:NAMED]) + (", …" if len(self._found) > NAMED else "")
            number = f"{len(self._found)} {self._nouns}"
            raise InvalidRequest(f"{number} begin with {self._beginning!r}: {named}; write more of the id")
        return self._found[0] if self._found else None


def similar_agents(error: AgentUnknown, agent: str, known: Iterable[str]) -> AgentUnknown:
    """Return the error about an unknown agent, with the agents that its name resembles.

    The orchestrator's message already says where the agents are listed.
    """
    close = get_close_matches(agent, list(known), n=2, cutoff=0.6)
    if not close:
        return error
    return AgentUnknown(f"{error}; did you mean {' or '.join(close)}?", metadata=error.metadata)
