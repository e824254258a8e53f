"""One attachment of a caller to a session: its epochs in the ledger, and its events in the audit trail.

The record names the attachment that has the session's place. Each epoch is begun in the step that checks this name, so
an answer of Redis that is lost costs a number and nothing else.
"""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NoReturn

from redis.exceptions import RedisError

from tachikoma.errors import FailedPrecondition, NotFound
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.store.scripts import Runner, Script, flat

__all__ = [
    "ENTRY_SECONDS",
    "MAX_REASON",
    "OPEN",
    "Attachment",
    "ExecutionEnded",
    "SessionCaller",
]

#: States of an execution whose session can change.
OPEN = tuple(state for state in ExecState if not state.terminal)
#: Seconds for which the record names a caller that is not reported again: one of an orchestrator that was killed.
ENTRY_SECONDS = 60
#: Seconds between two such reports.
RENEW_SECONDS = 20.0
#: Largest number of events of one code for each attachment; further ones are counted in the event of its end.
MAX_EVENTS = 20
#: Longest description of what a caller did, in characters.
MAX_REASON = 500


class ExecutionEnded(FailedPrecondition):
    """The execution of a session has ended, so no caller can attach to it."""


class SessionCaller(ABC):
    """A caller of a session, as the ledger and the audit trail name it. Not shared between callers."""

    #: The script that records the caller.
    _script: ClassVar[Script]

    def __init__(self, redis: Redis, agent: str, exec_id: str, peer: Peer) -> None:
        """Prepare it; nothing is recorded yet.

        Args:
            redis: the connections.
            agent, exec_id: the execution.
            peer: the caller.
        """
        self._runner = Runner(redis)
        self._agent = agent
        self._exec_id = exec_id
        self._peer = peer
        #: Name of this caller in the record.
        self._name = secrets.token_hex(8)

    @abstractmethod
    async def renew(self) -> None:
        """Report that the caller is still there. Raises redis errors."""

    async def keep_renewed(self) -> NoReturn:
        """Report it again and again until cancelled. The record of a caller of a killed process expires."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            with suppress(RedisError, OSError):
                await self.renew()

    def _event(self, code: AuditCode, reason: str = "") -> dict[str, str]:
        by = f"from {self._peer.address}" if self._peer.address else "from an unknown address"
        return {
            "event": code, "id": self._exec_id, "agent_id": self._agent, "authorized": "1",
            "actor": str(self._peer), "reason": f"{by}{f': {reason}' if reason else ''}"[:MAX_REASON],
        }  # fmt: skip


class _Outcome(StrEnum):
    """Answers of the script."""

    DONE = "DONE"
    MISSING = "MISSING"
    STATE = "STATE"
    OWNER = "OWNER"


@dataclass(frozen=True, slots=True)
class _Answer:
    outcome: _Outcome
    epoch: int


class Attachment(SessionCaller):
    """An attachment, from its first epoch to its end."""

    _script = Script("session")

    def __init__(self, redis: Redis, agent: str, exec_id: str, peer: Peer) -> None:
        """Prepare an attachment; nothing is recorded yet. The arguments are those of `SessionCaller`."""
        super().__init__(redis, agent, exec_id, peer)
        #: Number of the latest epoch that this attachment began.
        self.epoch = 0
        #: Events by their code, those left out included.
        self._events: Counter[AuditCode] = Counter()

    async def begin(self, *, opened: bool, sizes: str = "") -> None:
        """Record that the caller attaches, and begin the first epoch.

        Args:
            opened: True if the caller has just requested the execution.
            sizes: the history of the terminal's sizes; empty to leave it as it is.

        Raises:
            NotFound: the execution is gone.
            ExecutionEnded: the execution has ended.
            redis errors: it could not be recorded.
        """
        fields = self._place() | ({"sizes": sizes} if sizes else {})
        code = AuditCode.SESSION_OPENED if opened else AuditCode.SESSION_ATTACHED
        self.epoch = await self._begin(take=True, fields=fields, event=self._event(code))

    async def next_epoch(self) -> int:
        """Begin a further epoch of this attachment, with new keys.

        Raises:
            NotFound: the execution is gone.
            ExecutionEnded: the execution has ended.
            FailedPrecondition: another caller has attached.
            redis errors: it could not be counted.
        """
        self.epoch = await self._begin(take=False, fields=self._place(), event={})
        return self.epoch

    async def renew(self) -> None:
        """Report that the caller is still attached. Does nothing if another one is. Raises redis errors."""
        await self._change(seconds=ENTRY_SECONDS, fields=self._place(), event={})

    def _place(self) -> dict[str, str]:
        """Return the fields of an attached session. A record that was lost and rebuilt lacks them."""
        return {"attached_by": str(self._peer)}

    async def note(self, code: AuditCode, reason: str, *, sizes: str = "") -> None:
        """Record an event of this attachment, unless it has too many of the code.

        Args:
            code: of the event.
            reason: what the caller did.
            sizes: the new history of the terminal's sizes, which is always recorded; empty if it has not changed.

        Raises:
            redis errors: it could not be recorded.
        """
        self._events[code] += 1
        event = self._event(code, reason) if self._events[code] <= MAX_EVENTS else {}
        fields = {"sizes": sizes} if sizes else {}
        if event or fields:
            await self._change(fields=fields, event=event)

    async def end(self, reason: str) -> None:
        """Record the end of the attachment; the session is detached, unless another caller has attached.

        Args:
            reason: why it ended.

        Raises:
            redis errors: it could not be recorded.
        """
        left_out = {code: number - MAX_EVENTS for code, number in self._events.items() if number > MAX_EVENTS}
        if left_out:
            counted = ", ".join(f"{number} more {code}" for code, number in left_out.items())
            reason = f"{reason}; without events of their own: {counted}"
        await self._change(fields={"attached_by": ""}, event=self._event(AuditCode.SESSION_DETACHED, reason))

    async def _begin(self, *, take: bool, fields: Mapping[str, str], event: Mapping[str, str]) -> int:
        answer = await self._change(take=take, begin=True, seconds=ENTRY_SECONDS, fields=fields, event=event)
        if answer.outcome is _Outcome.OWNER:
            raise taken_over(self._exec_id)
        if answer.outcome is _Outcome.MISSING:
            raise NotFound(f"the execution {self._exec_id} is gone")
        if answer.outcome is not _Outcome.DONE:
            raise ExecutionEnded(f"the execution {self._exec_id} has ended")
        return answer.epoch

    async def _change(
        self,
        *,
        take: bool = False,
        begin: bool = False,
        seconds: int = 0,
        fields: Mapping[str, str],
        event: Mapping[str, str],
    ) -> _Answer:
        call = self._script(
            keys=[keys.execution(self._exec_id), keys.AUDIT],
            args={
                "agent": self._agent, "states": list(OPEN), "owner": self._name, "take": take, "begin": begin,
                "epoch": self.epoch, "seconds": seconds,
                "fields": flat(fields), "event": flat(event),
            },
        )  # fmt: skip
        outcome, epoch = await self._runner.run(call)
        return _Answer(_Outcome(outcome.decode()), int(epoch))


def taken_over(exec_id: str) -> FailedPrecondition:
    """Return the error for a caller whose place another one took."""
    return FailedPrecondition(
        f"another caller has attached to {exec_id}; attach again to take the session back",
        metadata={"session": "taken-over"},
    )
