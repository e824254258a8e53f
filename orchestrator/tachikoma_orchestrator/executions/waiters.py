"""Callers of this orchestrator that wait for an execution's final state, or for its approval."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from tachikoma_orchestrator.executions.final_state import FinalState

__all__ = ["Completions", "Waiters"]

T = TypeVar("T")


class Waiters(Generic[T]):
    """Futures of an event that happens once to an execution. The first part that observes the event resolves them."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[T]]] = {}

    @contextmanager
    def expect(self, exec_id: str) -> Iterator[asyncio.Future[T]]:
        """Return a future that is resolved when the event happens, from the start of the block."""
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
            future.cancel()

    def awaited(self, exec_id: str) -> bool:
        """Return True if a caller waits for the execution and has no answer yet."""
        return any(not future.done() for future in self._waiting.get(exec_id, ()))

    def all_awaited(self) -> list[str]:
        """Return every execution that a caller waits for."""
        return list(self._waiting)

    def resolve(self, exec_id: str, value: T) -> None:
        """Give every waiting caller the value."""
        for future in self._waiting.get(exec_id, ()):
            if not future.done():
                future.set_result(value)


class Completions(Waiters[FinalState]):
    """Callers that wait for an execution's final state."""

    def __init__(self) -> None:
        super().__init__()
        #: Callers that wait for an execution's approval.
        self.approvals: Waiters[None] = Waiters()

    def deliver(self, final: FinalState) -> None:
        """Deliver a final state to every waiting caller; it also ends the wait for an approval."""
        self.resolve(final.exec_id, final)
        self.approvals.resolve(final.exec_id, None)
