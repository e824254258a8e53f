"""Callers of this orchestrator that wait for an execution's final state, or for its approval."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from tachikoma.errors import ResultUnknown, Unavailable
from tachikoma.identity.signed_messages import Receipt
from tachikoma_orchestrator.executions.final_state import FinalState, VerifiedReceipt

__all__ = ["AwaitedOrder", "Completions", "Waiters"]

T = TypeVar("T")

#: Longest wait of a reader for a final state that is being recorded.
RECORDED_SECONDS = 5.0


class Waiters(Generic[T]):
    """Futures of an event that happens once to an execution. The first part that observes the event resolves them."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[T]]] = {}

    @contextmanager
    def expect(self, exec_id: str) -> Iterator[asyncio.Future[T]]:
        """Yield a future of the event. It also resolves if the event happens before the block awaits it."""
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


@dataclass(frozen=True, slots=True)
class AwaitedOrder:
    """The order whose result a caller waits for. It is known without the ledger, which may lose its record."""

    agent: str
    #: SHA-256 of the signed order; empty if the execution was accepted and its order is not known.
    order_sha256: str
    #: Whether the agent reports its result to this process, since this process sent it.
    reports_here: bool = False

    def answered_by(self, agent: str, receipt: Receipt) -> bool:
        """Return True if an agent's verified receipt answers this order."""
        return bool(self.order_sha256) and (agent, receipt.order_sha256) == (self.agent, self.order_sha256)


class Completions(Waiters[FinalState]):
    """Callers that wait for an execution's final state."""

    def __init__(self) -> None:
        super().__init__()
        #: Callers that wait for an execution's approval.
        self.approvals: Waiters[None] = Waiters()
        #: The order of each waiting caller; callers whose request was not accepted yet have none.
        self._orders: dict[asyncio.Future[FinalState], AwaitedOrder] = {}
        #: By execution: its final state was delivered, and is being recorded in the ledger.
        self._recordings: dict[str, asyncio.Future[bool]] = {}

    @contextmanager
    def expect(self, exec_id: str) -> Iterator[asyncio.Future[FinalState]]:
        """Return a future that is resolved with the final state, from the start of the block."""
        with super().expect(exec_id) as future:
            try:
                yield future
            finally:
                self._orders.pop(future, None)

    def note_recording(self, exec_id: str, recording: asyncio.Future[bool]) -> None:
        """Remember that a final state is being recorded while its callers already get the answer."""
        self._recordings[exec_id] = recording

        def forget(ended: asyncio.Future[bool]) -> None:
            if self._recordings.get(exec_id) is ended:
                del self._recordings[exec_id]

        recording.add_done_callback(forget)

    async def recorded(self, exec_id: str) -> None:
        """Wait until a delivered final state is recorded, so that the caller's next call returns it."""
        recording = self._recordings.get(exec_id)
        if recording is not None:
            await asyncio.wait([recording], timeout=RECORDED_SECONDS)

    def note_order(self, exec_id: str, order: AwaitedOrder) -> None:
        """Remember the order of an execution for its waiting callers, unless they wait for an earlier order."""
        for future in self._waiting.get(exec_id, ()):
            known = self._orders.get(future)
            if known is None or not known.order_sha256:
                self._orders[future] = order

    def orders(self, exec_id: str) -> set[AwaitedOrder]:
        """Return the orders of the execution's accepted callers that have no answer yet."""
        return {
            self._orders[future]
            for future in self._waiting.get(exec_id, ())
            if not future.done() and future in self._orders
        }

    def deliver(self, final: FinalState, order_sha256: str = "") -> None:
        """Deliver a final state to the waiting callers; it also ends the wait for an approval.

        Args:
            final: the final state.
            order_sha256: SHA-256 of the order that it belongs to; empty if there is none. A caller that waits for
                another order of the same id does not get it.
        """

        def concerned(order: AwaitedOrder | None) -> bool:
            return order is None or "" in (order_sha256, order.order_sha256) or order_sha256 == order.order_sha256

        self._resolve_where(final, concerned)
        self.approvals.resolve(final.exec_id, None)

    def answer(self, agent: str, verified: VerifiedReceipt) -> bool:
        """Deliver a verified receipt to the callers whose order it answers, whatever the ledger says.

        Returns:
            True if there was such a caller.
        """
        receipt = verified.receipt

        def concerned(order: AwaitedOrder | None) -> bool:
            return order is not None and order.answered_by(agent, receipt)

        return self._resolve_where(FinalState.with_receipt(agent, verified), concerned)

    def give_up(self, exec_id: str, current_order: str, why: str) -> bool:
        """Answer the callers whose execution the ledger does not have with ResultUnknown.

        Args:
            exec_id: the execution.
            current_order: SHA-256 of the order in the ledger's record; empty if the ledger has no record.
            why: the reason for the callers.

        Returns:
            True if there was such a caller.
        """

        def concerned(order: AwaitedOrder | None) -> bool:
            if order is None:
                return False
            return not current_order or order.order_sha256 not in ("", current_order)

        error = ResultUnknown(
            f"whether {exec_id} ran is unknown: {why}; look at its effects, then use a new id", metadata={"id": exec_id}
        )
        given_up = self._resolve_where(FinalState(exec_id, error), concerned)
        if given_up:
            self.approvals.resolve(exec_id, None)
        return given_up

    def interrupt(self, exec_id: str, why: str) -> bool:
        """Answer the callers of an execution with Unavailable. The execution continues, and they may attach again.

        Returns:
            True if there was such a caller.
        """
        error = Unavailable(f"the result of {exec_id} is not known yet: {why}; call again", metadata={"id": exec_id})
        return self._resolve_where(FinalState(exec_id, error), lambda _: True)

    def _resolve_where(self, final: FinalState, concerned: Callable[[AwaitedOrder | None], bool]) -> bool:
        """Resolve the waiting callers of an execution whose order, None if unknown, meets a condition."""
        resolved = False
        for future in self._waiting.get(final.exec_id, ()):
            if not future.done() and concerned(self._orders.get(future)):
                future.set_result(final)
                resolved = True
        return resolved
