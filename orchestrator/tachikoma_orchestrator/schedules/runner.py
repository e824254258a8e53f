"""Schedules at work: due times are accounted for, and runs are asked for like anybody else's requests.

Celery beat nudges (`nudge`), and the submitter also looks by itself (`keep`). Whoever looks takes these steps for each
due time, and a process that ends between two of them is followed by another one that goes on where it was:

1. One script puts on the record what becomes of it, if nobody else has meanwhile. What runs is *taken* now.
2. It is asked for under an id made of schedule and due time, so that twice is once.
3. Another script settles it. If it was not accepted, the same script sees to it that it never can run.

What stays taken is found at the next look: asked for again, or given up as missed where that would be too late. That is
decided anew, and by the id that the due time must have: what Redis says was taken, somebody may have put there.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import datetime
from itertools import islice

import structlog
from redis.exceptions import RedisError

from tachikoma.errors import (
    AgentDraining,
    AgentOffline,
    FailedPrecondition,
    RecordAltered,
    TachikomaError,
    Unavailable,
)
from tachikoma.identity.spiffe import schedule_id
from tachikoma.identity.svid import SvidSource
from tachikoma.schedules.file import Schedule, ScheduleSet
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.clock import from_ms, to_ms
from tachikoma.vocabulary.requests import new_id
from tachikoma.vocabulary.schedules import DueOutcome, Overlap, ScheduledRun, ScheduleStatus
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.schedules.planner import Plan, State, account, plan
from tachikoma_orchestrator.schedules.sources import SchedulesInForce
from tachikoma_orchestrator.schedules.store import BookEntry, ScheduleBook

__all__ = ["Scheduling"]

log = structlog.get_logger(__name__)

#: The Celery task that beat sends to the submitter.

#: How often the file is looked at.
FILE_SECONDS = 1.0
#: How often all schedules are looked at without a nudge, which may have been lost.
LOOK_SECONDS = 10.0
#: A nudge that comes so long before its time, by the clock of Redis, is waited for; clocks differ.
EARLY_MS = 2000
#: A run that was taken and not settled for so long was left by somebody who ended.
ABANDONED_MS = 5000
#: Steps of one look, and taken runs that it takes up; the next look goes on.
MAX_STEPS = 400
MAX_TAKEN = 100
#: Due times that are told at once.
MAX_NEXT = 1000


class Scheduling:
    """Keeps schedules. For one event loop."""

    def __init__(
        self, source: SchedulesInForce, book: ScheduleBook, ledger: Ledger, trail: AuditTrail, admitter: Admitter,
        identity: SvidSource,
    ) -> None:  # fmt: skip
        self._source = source
        self._book = book
        self._ledger = ledger
        self._trail = trail
        self._admitter = admitter
        self._identity = identity
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._changed = asyncio.Event()

    # --- at work ------------------------------------------------------------------------------------------------------

    async def watch_file(self) -> None:
        """Take the file when it changes."""
        while True:
            await asyncio.sleep(FILE_SECONDS)
            if not self._source.reload():
                continue
            if self._source.error:
                log.error("schedules.kept", reason=self._source.error, in_force=self._source.current.digest[:12])
            else:
                log.info("schedules.changed", digest=self._source.current.digest[:12])
                self._changed.set()

    async def keep(self) -> None:
        """Look at all schedules now, whenever the file has changed, and every while."""
        while True:
            self._changed.clear()
            try:
                await self.look_at_all()
            except (RedisError, OSError) as error:
                log.warning("schedules.wait", reason=str(error))
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def look_at_all(self) -> None:
        """Account for what is due of all schedules, also of those that are gone from the file. Raises redis errors."""
        for name in {*self._schedules, *await self._book.names()}:
            await self.look(name)

    async def nudge(self, name: object, due_ms: object) -> None:
        """Account for what is due of a schedule. Anybody may have sent this; nothing of it is believed."""
        if not isinstance(name, str) or name not in self._schedules:
            log.warning("nudge.unknown", schedule=str(name)[:80])
            return
        try:
            if isinstance(due_ms, int):
                early_ms = due_ms - await self._ledger.now_ms()
                if 0 < early_ms <= EARLY_MS:
                    await asyncio.sleep(early_ms / 1000)
            await self.look(name)
        except (RedisError, OSError) as error:
            # `keep` looks again.
            log.warning("schedules.wait", schedule=name, reason=str(error))

    async def look(self, name: str) -> None:
        """Account for what is due of a schedule, and ask for what is to run. Raises redis errors."""
        async with self._locks[name]:
            schedule = self._schedules.get(name)
            try:
                state = await self._book.state(name)
                await self._take_up(name, schedule, state)
                for _ in range(MAX_STEPS):
                    step = plan(schedule, state, await self._ledger.now_ms(), await self._busy(schedule, state))
                    if step is None:
                        return
                    await self._account(name, schedule, state, step)
                    state = await self._book.state(name)
            except RecordAltered as error:
                # One that somebody broke must not hide the others.
                log.error("schedule.unreadable", schedule=name, reason=str(error))

    async def _take_up(self, name: str, schedule: Schedule | None, state: State) -> None:
        """Go on with what somebody else left in the middle."""
        now_ms = await self._ledger.now_ms() if state.taken else 0
        for key, run in islice(state.taken.items(), MAX_TAKEN):
            if now_ms - to_ms(run.time) < ABANDONED_MS:
                continue
            # Where it was asked for, that is found by the script.
            due_ms = to_ms(run.due)
            if schedule is not None and key == str(due_ms) and run.id == self._run_id(name, due_ms):
                last = next(schedule.timing.after(due_ms), now_ms + 1) > now_ms
                entry = account(schedule, state, due_ms, now_ms, "", last=last)
                if entry.outcome is DueOutcome.TAKEN and due_ms <= now_ms:
                    await self._ask(schedule, key, run)
                    continue
            why = "it was to run, and could not be asked for in time"
            await self._settle(name, key, run, DueOutcome.MISSED, why)

    async def _busy(self, schedule: Schedule | None, state: State) -> str:
        """The execution of the last run, if that has not ended and it counts."""
        if schedule is None or schedule.overlap is not Overlap.SKIP or not state.last_exec:
            return ""
        if any(run.id == state.last_exec for run in state.taken.values()):
            return state.last_exec
        record = await self._ledger.record(state.last_exec)
        return state.last_exec if record is not None and not record.state.terminal else ""

    async def _account(self, name: str, schedule: Schedule | None, state: State, step: Plan) -> None:
        now = from_ms(await self._ledger.now_ms())
        entries = []
        for item in step.entries:
            taken = item.outcome is DueOutcome.TAKEN
            run = ScheduledRun(
                due=from_ms(item.due_ms),
                time=now,
                outcome=item.outcome,
                id=self._run_id(name, item.due_ms) if taken else "",
                agent_id=schedule.agent_id if schedule is not None else "",
                reason=item.reason,
                count=item.count,
                first=None if item.first_ms is None else from_ms(item.first_ms),
            )
            code = None
            if item.outcome is DueOutcome.MISSED:
                code = AuditCode.SCHEDULE_MISSED
            elif item.outcome is DueOutcome.SKIPPED and not state.paused_at(item.due_ms):
                # The trail has begin and end of a pause.
                code = AuditCode.SCHEDULE_SKIPPED
            entries.append(BookEntry(str(item.due_ms), run, code))
        if not await self._book.record(name, self._subject(name), state, step, entries):
            return
        for entry in entries:
            log.info("schedule.due", schedule=name, due=entry.key, outcome=entry.run.outcome, id=entry.run.id)
        if step.runs and schedule is not None:
            await self._ask(schedule, entries[-1].key, entries[-1].run)

    async def _ask(self, schedule: Schedule, key: str, run: ScheduledRun) -> ScheduledRun | None:
        """Ask for a run that is taken, and settle it. Returns what `ScheduleBook.settle` does."""
        peer = Peer(schedule_id(self._trust_domain, schedule.name), "")
        try:
            await self._admitter.admit(schedule.exec_request(run.id), peer)
        except Unavailable as error:
            if not isinstance(error, (AgentOffline, AgentDraining)):
                log.warning("schedule.wait", schedule=schedule.name, id=run.id, reason=str(error))
                return run
            return await self._settle(schedule.name, key, run, DueOutcome.REFUSED, str(error))
        except TachikomaError as error:
            return await self._settle(schedule.name, key, run, DueOutcome.REFUSED, str(error))
        return await self._settle(schedule.name, key, run, DueOutcome.RUN)

    async def _settle(
        self, name: str, key: str, run: ScheduledRun, outcome: DueOutcome, reason: str = ""
    ) -> ScheduledRun | None:
        settled = await self._book.settle(name, self._subject(name), key, run, outcome, reason)
        if settled is not None:
            log.info("schedule.settled", schedule=name, id=run.id, outcome=settled.outcome, reason=settled.reason)
        return settled

    # --- for operators ------------------------------------------------------------------------------------------------

    @property
    def error(self) -> str:
        """Why the file as it is now is not in force, or empty."""
        return self._source.error

    async def statuses(self) -> list[ScheduleStatus]:
        """All schedules, by name. Raises redis errors."""
        return [await self.status(name) for name in self._schedules]

    async def status(self, name: str) -> ScheduleStatus:
        """A schedule, and how it stands.

        Raises:
            NotFound: there is none of that name.
            RecordAltered: what Redis has of it is not ours.
        """
        schedule = self._set.get(name)
        state = await self._book.state(name)
        runs = await self.runs(name, limit=1)
        # What is due and was not looked at yet is next, too.
        begin_ms = state.cursor_ms if state.cursor_ms is not None else await self._ledger.now_ms()
        return ScheduleStatus(
            name=name, when=schedule.when, agent_id=schedule.agent_id,
            command=self._admitter.shown(schedule.exec_request("shown")),
            enabled=schedule.enabled, missed=schedule.missed, overlap=schedule.overlap,
            paused=state.paused,
            paused_by=state.paused_by if state.paused else "",
            paused_at=from_ms(state.paused_ms) if state.paused and state.paused_ms is not None else None,
            pause_reason=state.pause_reason if state.paused else "",
            next_due=next(iter(self._next(schedule, max(begin_ms, 0), 1)), None),
            last=runs[0] if runs else None,
        )  # fmt: skip

    async def next_due(self, name: str, *, limit: int) -> list[datetime]:
        """The next due times from now on. Raises NotFound."""
        return self._next(self._set.get(name), await self._ledger.now_ms(), min(limit, MAX_NEXT))

    @staticmethod
    def _next(schedule: Schedule, begin_ms: int, limit: int) -> list[datetime]:
        if not schedule.enabled:
            return []
        return [from_ms(due) for due in islice(schedule.timing.after(begin_ms), limit)]

    async def runs(self, name: str, *, limit: int) -> list[ScheduledRun]:
        """What became of the latest due times, newest first, with the states of their executions.

        Raises:
            NotFound: there is no schedule of that name, and never was.
            RecordAltered: what Redis has of it is not ours.
        """
        if name not in self._schedules and name not in await self._book.names():
            self._set.get(name)
        found = await self._book.runs(name, limit=limit)
        records = await self._ledger.records([run.id for run in found if run.id])
        states = {record.exec_id: record.state for record in records}
        return [run.model_copy(update={"state": states.get(run.id)}) for run in found]

    async def pause(self, name: str, *, by: str, reason: str) -> ScheduleStatus:
        """Let a schedule ask for nothing until it is resumed. Raises NotFound."""
        return await self._set_paused(name, AuditCode.SCHEDULE_PAUSED, by, reason)

    async def resume(self, name: str, *, by: str) -> ScheduleStatus:
        """Let a schedule go on. What was due meanwhile stays skipped. Raises NotFound."""
        return await self._set_paused(name, AuditCode.SCHEDULE_RESUMED, by, "")

    async def _set_paused(self, name: str, code: AuditCode, by: str, reason: str) -> ScheduleStatus:
        self._set.get(name)
        # What was due before is accounted for as it was then: only the last pause is remembered.
        await self.look(name)
        await self._book.pause(name, code, self._subject(name), by=by, reason=reason)
        return await self.status(name)

    async def run_now(self, name: str, *, by: str) -> ScheduledRun:
        """Ask for a run beside its due times, paused or not.

        Raises:
            NotFound: there is no schedule of that name.
            FailedPrecondition: it is accounted for by somebody else just now.
        """
        schedule = self._set.get(name)
        for _ in range(MAX_STEPS):
            state = await self._book.state(name)
            now_ms = await self._ledger.now_ms()
            run = ScheduledRun(
                due=from_ms(now_ms), time=from_ms(now_ms), outcome=DueOutcome.TAKEN, id=new_id(),
                agent_id=schedule.agent_id, requested_by=by,
            )  # fmt: skip
            same = Plan((), now_ms if state.cursor_ms is None else state.cursor_ms, state.rule)
            if state.cursor_ms is None:
                same = plan(schedule, state, now_ms) or same
            entry = BookEntry(f"{now_ms}-{run.id}", run, AuditCode.SCHEDULE_RUN)
            if await self._book.record(name, self._subject(name), state, same, [entry]):
                break
        else:
            raise FailedPrecondition(f"the schedule {name} is busy; try again")
        settled = await self._ask(schedule, entry.key, run)
        if settled is None:
            settled = next((item for item in await self.runs(name, limit=MAX_TAKEN) if item.id == run.id), run)
        record = await self._ledger.record(run.id)
        return settled.model_copy(update={"state": record.state if record is not None else None})

    # --- names --------------------------------------------------------------------------------------------------------

    @property
    def _set(self) -> ScheduleSet:
        return self._source.current

    @property
    def _schedules(self) -> dict[str, Schedule]:
        return self._source.current.schedules

    @property
    def _trust_domain(self) -> str:
        return self._identity.current().spiffe_id.trust_domain

    def _subject(self, name: str) -> str:
        return str(schedule_id(self._trust_domain, name))

    def _run_id(self, name: str, due_ms: int) -> str:
        """The id of the execution of a due time: always the same, and for who has no key not to be guessed."""
        return self._trail.keyed("schedule", self._subject(name), str(due_ms))[:24]
