"""Who waits for which execution's end, in this orchestrator."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from tachikoma.models import ExecResponse

__all__ = ["Endings"]


class Endings:
    """Futures of executions' ends. Whoever learns of an end first resolves them."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[ExecResponse]]] = {}

    @contextmanager
    def expect(self, exec_id: str) -> Iterator[asyncio.Future[ExecResponse]]:
        """A future that gets the response when the execution ends, from when the block is entered."""
        future: asyncio.Future[ExecResponse] = asyncio.get_running_loop().create_future()
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
        """Whether somebody waits for it and was not told yet."""
        return any(not future.done() for future in self._waiting.get(exec_id, ()))

    def all_awaited(self) -> list[str]:
        """Every execution somebody waits for."""
        return list(self._waiting)

    def resolve(self, response: ExecResponse) -> None:
        """Tell everybody who waits."""
        for future in self._waiting.get(response.id, ()):
            if not future.done():
                future.set_result(response)
