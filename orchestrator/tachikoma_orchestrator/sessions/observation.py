"""One observer of a session: its entry in the ledger, which ends by itself, and its events in the audit trail."""

from __future__ import annotations

from enum import StrEnum

from tachikoma.errors import NotFound, ResourceExhausted
from tachikoma.redis import keys
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.sessions.attachment import ENTRY_SECONDS, OPEN, ExecutionEnded, SessionCaller
from tachikoma_orchestrator.store.scripts import Script, flat

__all__ = ["MAX_OBSERVERS", "Observation"]

#: Largest number of observers of one session.
MAX_OBSERVERS = 16


class _Outcome(StrEnum):
    """Answers of the script."""

    DONE = "DONE"
    MISSING = "MISSING"
    STATE = "STATE"
    FULL = "FULL"


class Observation(SessionCaller):
    """An observer of a session, from its first entry to its end."""

    _script = Script("observe")

    async def begin(self) -> None:
        """Record that the observer reads from now on.

        Raises:
            NotFound: the execution is gone.
            ExecutionEnded: the execution has ended.
            ResourceExhausted: it has too many observers.
            redis errors: it could not be recorded.
        """
        outcome = await self._change(ENTRY_SECONDS, self._event(AuditCode.SESSION_OBSERVED))
        if outcome is _Outcome.MISSING:
            raise NotFound(f"the execution {self._exec_id} is gone")
        if outcome is _Outcome.STATE:
            raise ExecutionEnded(f"the execution {self._exec_id} has ended")
        if outcome is _Outcome.FULL:
            raise ResourceExhausted(f"{self._exec_id} has {MAX_OBSERVERS} observers; try again when one has left")

    async def renew(self) -> None:
        """Renew the entry. Raises redis errors."""
        await self._change(ENTRY_SECONDS, {})

    async def end(self, reason: str) -> None:
        """Record why the observer reads no longer. Raises redis errors."""
        await self._change(0, self._event(AuditCode.SESSION_UNOBSERVED, reason))

    async def _change(self, seconds: int, event: dict[str, str]) -> _Outcome:
        call = self._script(
            keys=[keys.execution(self._exec_id), keys.AUDIT],
            args={
                "agent": self._agent, "states": list(OPEN), "name": self._name, "observer": str(self._peer),
                "seconds": seconds, "limit": MAX_OBSERVERS, "event": flat(event),
            },
        )  # fmt: skip
        return _Outcome((await self._runner.run(call)).decode())
