"""Who waits for which execution's end, or for its approval, in this orchestrator."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from tachikoma.errors import TachikomaError
from tachikoma.vocabulary.results import ExecResponse

__all__ = ["Endings", "Waiters"]

T = TypeVar("T")


class Waiters(Generic[T]):
    """Futures of something that happens once to an execution. Whoever learns of it first resolves them."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[T]]] = {}

    @contextmanager
    def expect(self, exec_id: str) -> Iterator[asyncio.Future[T]]:
        """A future that is resolved when it happens, from when the block is entered."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(exec_id, set()).add(future)
        try:
            yield future
        finally:
            waiting = self._waiting.get(exec_id)
            if waiting is not None:
                waiting.discard(future)
                if not waiting:
                    del self._waiting[exec_id]
            if not future.cancel() and not future.cancelled():
                # Whoever waited may have left before it was told; that is no error of anybody.
                future.exception()

    def awaited(self, exec_id: str) -> bool:
        """Whether somebody waits for it and was not told yet."""
        return any(not future.done() for future in self._waiting.get(exec_id, ()))

    def all_awaited(self) -> list[str]:
        """Every execution somebody waits for."""
        return list(self._waiting)

    def tell(self, exec_id: str, value: T) -> None:
        """Tell everybody who waits."""
        for future in self._waiting.get(exec_id, ()):
            if not future.done():
                future.set_result(value)


class Endings(Waiters[ExecResponse]):
    """Who waits for an execution's end."""

    def __init__(self) -> None:
        super().__init__()
        #: Who waits for its approval.
        self.approvals: Waiters[None] = Waiters()

    def resolve(self, response: ExecResponse) -> None:
        """Tell everybody who waits for an end; it also ends the waiting for an approval."""
        self.tell(response.id, response)
        self.approvals.tell(response.id, None)

    def fail(self, exec_id: str, error: TachikomaError) -> None:
        """Tell everybody who waits for an end that it cannot be told."""
        for future in self._waiting.get(exec_id, ()):
            if not future.done():
                future.set_exception(error)
        self.approvals.tell(exec_id, None)
