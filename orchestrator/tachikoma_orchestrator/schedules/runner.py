"""The runner of schedules: records every scheduled time once, and requests the runs like any other requester.

Celery beat sends hints (`hint`), and the runner also checks all schedules by itself (`run`). Each scheduled time takes
the following steps. If a process ends between two of them, another process continues with the next step:

1. One script records the outcome of the scheduled time, unless another process did so first. A run is now *taken*.
2. The run is requested under an id made of schedule and scheduled time, so a repeated request is the same execution.
3. Another script settles it. If the run was not accepted, the same script ensures that it can never start.

The next check finds each run that is still taken. It requests the run again, or settles it as missed if it is too late.
It first verifies the id of the run, because an attacker may have written the record in Redis.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
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
from tachikoma.vocabulary.clock import from_ms, optional_from_ms, seconds_of_ms, to_ms
from tachikoma.vocabulary.identifiers import new_id
from tachikoma.vocabulary.schedules import DueOutcome, Overlap, ScheduledRun, ScheduleStatus
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.batches.room import Batches
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.schedules.planner import Plan, PlannedRun, ScheduleState, decide, plan
from tachikoma_orchestrator.schedules.requests import RunRequests
from tachikoma_orchestrator.schedules.sources import ActiveSchedules, log_reload
from tachikoma_orchestrator.schedules.store import RunEntry, ScheduleStore

__all__ = ["ScheduleRunner"]

log = structlog.get_logger(__name__)

#: Time between two checks of the file, in seconds.
FILE_SECONDS = 1.0
#: Time between two checks of all schedules, in seconds: a hint may be lost.
CHECK_SECONDS = 10.0
#: A hint that arrives this early by the clock of Redis is waited for; clocks differ.
EARLY_MS = 2000
#: A run that was taken this long ago and is not settled was left by a process that ended.
ABANDONED_MS = 5000
#: Steps of one check, and abandoned runs that it resumes; the next check continues.
MAX_STEPS = 400
MAX_TAKEN = 100
#: Longest list of the next scheduled times.
MAX_NEXT = 1000


class ScheduleRunner:
    """The schedules of a process: its active set, their records in Redis, and the requests. For one event loop."""

    def __init__(
        self, source: ActiveSchedules, store: ScheduleStore, ledger: Ledger, trail: AuditTrail, admitter: Admitter,
        identity: SvidSource, batches: Batches,
    ) -> None:  # fmt: skip
        self._source = source
        self._store = store
        self._ledger = ledger
        self._trail = trail
        self._requests = RunRequests(admitter, ledger, trail, batches)
        self._identity = identity
        #: Two checks of one schedule in one process would only lose against each other in Redis.
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._changed = asyncio.Event()

    # --- background parts ---------------------------------------------------------------------------------------------

    async def watch_file(self) -> None:
        """Reload the schedules after each change of their file, until cancelled."""
        while True:
            await asyncio.sleep(FILE_SECONDS)
            # A large file takes seconds to parse; calls go on meanwhile.
            if await asyncio.to_thread(self._source.reload):
                log_reload(self._source)
                if not self._source.error:
                    self._changed.set()

    async def run(self) -> None:
        """Check all schedules now, after each change of the file, and every `CHECK_SECONDS`, until cancelled."""
        while True:
            self._changed.clear()
            try:
                await self.advance_all()
            except (RedisError, OSError) as error:
                log.warning("schedules.redis_unavailable", reason=str(error))
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def advance_all(self) -> None:
        """Decide and record all scheduled times of all schedules, also of removed ones. Raises redis errors."""
        for name in {*self._schedules, *await self._store.names()}:
            await self.advance(name)

    async def hint(self, name: object, due_ms: object) -> None:
        """Check a schedule that is due according to a message. The sender is unknown and its content is not trusted."""
        if not isinstance(name, str) or name not in self._schedules:
            log.warning("schedules.unknown_hint", schedule=str(name)[:80])
            return
        try:
            if isinstance(due_ms, int):
                early_ms = due_ms - await self._ledger.now_ms()
                if 0 < early_ms <= EARLY_MS:
                    await asyncio.sleep(seconds_of_ms(early_ms))
            await self.advance(name)
        except (RedisError, OSError) as error:
            # `run` checks again.
            log.warning("schedules.redis_unavailable", schedule=name, reason=str(error))

    async def advance(self, name: str) -> None:
        """Decide and record the scheduled times of a schedule, and request its runs. Raises redis errors."""
        async with self._locks[name]:
            schedule = self._schedules.get(name)
            try:
                state = await self._store.state(name)
                await self._resume(name, schedule, state)
                for _ in range(MAX_STEPS):
                    now_ms = await self._ledger.now_ms()
                    step = plan(schedule, state, now_ms, await self._unfinished(schedule, state))
                    if step is None:
                        return
                    await self._carry_out(name, schedule, state, step)
                    state = await self._store.state(name)
            except RecordAltered as error:
                # One broken record must not hide the other schedules.
                log.error("schedules.record_unreadable", schedule=name, reason=str(error))

    # --- the steps of a scheduled time --------------------------------------------------------------------------------

    async def _resume(self, name: str, schedule: Schedule | None, state: ScheduleState) -> None:
        """Request or settle the runs that another process left taken."""
        now_ms = await self._ledger.now_ms() if state.taken else 0
        for key, run in islice(state.taken.items(), MAX_TAKEN):
            if now_ms - to_ms(run.time) < ABANDONED_MS:
                continue
            # The script finds out whether the run was requested before.
            if schedule is not None and self._may_still_run(schedule, state, key, run, now_ms):
                await self._request(schedule, key, run)
            else:
                reason = "the run was due, and could not be requested in time"
                await self._settle(name, key, run, DueOutcome.MISSED, reason)

    def _may_still_run(
        self, schedule: Schedule, state: ScheduleState, key: str, run: ScheduledRun, now_ms: int
    ) -> bool:
        """Return True if a taken run is a scheduled time of the schedule, under its own id, and not too late."""
        due_ms = to_ms(run.due)
        if key != str(due_ms) or run.id != self._run_id(schedule.name, due_ms) or due_ms > now_ms:
            return False
        last = next(schedule.timing.after(due_ms), now_ms + 1) > now_ms
        return decide(schedule, state, due_ms, now_ms, "", last=last).outcome is DueOutcome.TAKEN

    async def _unfinished(self, schedule: Schedule | None, state: ScheduleState) -> str:
        """Return the id of the last run if it has not finished and the schedule waits for it; else empty."""
        if schedule is None or schedule.overlap is not Overlap.SKIP or not state.last_exec:
            return ""
        if any(run.id == state.last_exec for run in state.taken.values()):
            return state.last_exec
        return state.last_exec if await self._requests.unfinished(state.last_exec) else ""

    async def _carry_out(self, name: str, schedule: Schedule | None, state: ScheduleState, step: Plan) -> None:
        """Record a plan, and request its run unless another process recorded the scheduled times first."""
        now = from_ms(await self._ledger.now_ms())
        entries = [self._entry(name, schedule, state, planned, now) for planned in step.entries]
        if not await self._store.record(name, self._subject(name), state, step, entries):
            return
        for entry in entries:
            log.info("schedules.recorded", schedule=name, due=entry.key, outcome=entry.run.outcome, id=entry.run.id)
        if step.runs and schedule is not None:
            await self._request(schedule, entries[-1].key, entries[-1].run)

    def _entry(
        self, name: str, schedule: Schedule | None, state: ScheduleState, planned: PlannedRun, now: datetime
    ) -> RunEntry:
        """Return the record of a decision, with the code of its audit event."""
        run = ScheduledRun(
            due=from_ms(planned.due_ms),
            time=now,
            outcome=planned.outcome,
            id=self._run_id(name, planned.due_ms) if planned.outcome is DueOutcome.TAKEN else "",
            agent_id=(schedule.agent_id or "") if schedule is not None else "",
            reason=planned.reason,
            count=planned.count,
            first=None if planned.first_ms is None else from_ms(planned.first_ms),
        )
        code = None
        if planned.outcome is DueOutcome.MISSED:
            code = AuditCode.SCHEDULE_MISSED
        elif planned.outcome is DueOutcome.SKIPPED and not state.paused_at(planned.due_ms):
            # The trail has an event for the beginning and the end of each pause, so none for each run in between.
            code = AuditCode.SCHEDULE_SKIPPED
        return RunEntry(str(planned.due_ms), run, code)

    async def _request(self, schedule: Schedule, key: str, run: ScheduledRun) -> ScheduledRun | None:
        """Request a taken run, and settle it. Returns as `ScheduleStore.settle` does."""
        peer = Peer(schedule_id(self._trust_domain, schedule.name), "")
        try:
            await self._requests.request(schedule, run.id, peer)
        except Unavailable as error:
            if not isinstance(error, (AgentOffline, AgentDraining)):
                # The run stays taken, and the next check requests it again.
                log.warning("schedules.request_delayed", schedule=schedule.name, id=run.id, reason=str(error))
                return run
            return await self._settle(schedule.name, key, run, DueOutcome.REFUSED, str(error))
        except TachikomaError as error:
            return await self._settle(schedule.name, key, run, DueOutcome.REFUSED, str(error))
        return await self._settle(schedule.name, key, run, DueOutcome.RUN)

    async def _settle(
        self, name: str, key: str, run: ScheduledRun, outcome: DueOutcome, reason: str = ""
    ) -> ScheduledRun | None:
        settled = await self._store.settle(name, self._subject(name), key, run, outcome, reason)
        if settled is not None:
            log.info("schedules.settled", schedule=name, id=run.id, outcome=settled.outcome, reason=settled.reason)
        return settled

    # --- for operators ------------------------------------------------------------------------------------------------

    @property
    def error(self) -> str:
        """The mistake in the current file, which keeps the previous schedules active; empty for none."""
        return self._source.error

    async def statuses(self) -> list[ScheduleStatus]:
        """Return the status of all schedules, by name. Raises as `status` does, except for NotFound."""
        # The file may lose a schedule between two of these calls.
        return [await self._status(schedule) for schedule in self._schedules.values()]

    async def status(self, name: str) -> ScheduleStatus:
        """Return a schedule with its pause, its next scheduled time and its last run.

        Raises:
            NotFound: there is no schedule of that name.
            RecordAltered: its record in Redis was not written by this program.
            RedisError, OSError: Redis is unavailable.
        """
        return await self._status(self._set.get(name))

    async def _status(self, schedule: Schedule) -> ScheduleStatus:
        name = schedule.name
        state = await self._store.state(name)
        runs = await self._recorded_runs(name, limit=1)
        # A scheduled time that has come and is not decided yet is still the next one.
        begin_ms = state.cursor_ms if state.cursor_ms is not None else await self._ledger.now_ms()
        status = ScheduleStatus(
            name=name, when=schedule.when, agent_id=schedule.agent_id or "", targets=schedule.targets,
            command=self._requests.shown(schedule),
            enabled=schedule.enabled, missed=schedule.missed, overlap=schedule.overlap,
            next_due=next(iter(_next(schedule, max(begin_ms, 0), 1)), None),
            last=runs[0] if runs else None,
        )  # fmt: skip
        if not state.paused:
            return status
        pause = {"paused_by": state.paused_by, "paused_at": optional_from_ms(state.paused_ms or 0)}
        return status.model_copy(update={"paused": True, "pause_reason": state.pause_reason, **pause})

    async def next_due(self, name: str, *, limit: int) -> list[datetime]:
        """Return the next scheduled times from now on, at most `limit`. Raises NotFound, redis errors."""
        return _next(self._set.get(name), await self._ledger.now_ms(), min(limit, MAX_NEXT))

    async def runs(self, name: str, *, limit: int) -> list[ScheduledRun]:
        """Return the latest recorded scheduled times, newest first, with the states of their executions.

        Raises:
            NotFound: there is no schedule of that name, and never was one.
            RecordAltered: its record in Redis was not written by this program.
            RedisError, OSError: Redis is unavailable.
        """
        if name not in self._schedules and name not in await self._store.names():
            self._set.get(name)
        return await self._recorded_runs(name, limit=limit)

    async def _recorded_runs(self, name: str, *, limit: int) -> list[ScheduledRun]:
        return await self._requests.with_states(await self._store.runs(name, limit=limit))

    async def pause(self, name: str, *, by: str, reason: str) -> ScheduleStatus:
        """Pause a schedule: until it is resumed, its scheduled times are skipped. Raises as `status` does."""
        return await self._set_paused(name, AuditCode.SCHEDULE_PAUSED, by, reason)

    async def resume(self, name: str, *, by: str) -> ScheduleStatus:
        """Resume a schedule; the scheduled times during the pause stay skipped. Raises as `status` does."""
        return await self._set_paused(name, AuditCode.SCHEDULE_RESUMED, by, "")

    async def _set_paused(self, name: str, code: AuditCode, by: str, reason: str) -> ScheduleStatus:
        schedule = self._set.get(name)
        # Only the last pause is recorded, so scheduled times before this change are decided now.
        await self.advance(name)
        await self._store.pause(name, code, self._subject(name), by=by, reason=reason)
        return await self._status(schedule)

    async def run_now(self, name: str, *, by: str) -> ScheduledRun:
        """Request a run outside the scheduled times, also while the schedule is paused.

        Args:
            name: the schedule.
            by: SPIFFE ID of the operator.

        Raises:
            NotFound: there is no schedule of that name.
            FailedPrecondition: another process changes the record all the time.
            RecordAltered: its record in Redis was not written by this program.
            RedisError, OSError: Redis is unavailable.
        """
        schedule = self._set.get(name)
        entry = await self._record_manual_run(schedule, by)
        settled = await self._request(schedule, entry.key, entry.run)
        if settled is None:
            recorded: Sequence[ScheduledRun] = await self._recorded_runs(name, limit=MAX_TAKEN)
            settled = next((run for run in recorded if run.id == entry.run.id), entry.run)
        return (await self._requests.with_states([settled]))[0]

    async def _record_manual_run(self, schedule: Schedule, by: str) -> RunEntry:
        """Record a run outside the scheduled times as taken. Raises as `run_now` does."""
        name = schedule.name
        for _ in range(MAX_STEPS):
            state = await self._store.state(name)
            now_ms = await self._ledger.now_ms()
            run = ScheduledRun(
                due=from_ms(now_ms), time=from_ms(now_ms), outcome=DueOutcome.TAKEN, id=new_id(),
                agent_id=schedule.agent_id or "", requested_by=by,
            )  # fmt: skip
            unchanged = Plan((), now_ms if state.cursor_ms is None else state.cursor_ms, state.rule)
            if state.cursor_ms is None:
                unchanged = plan(schedule, state, now_ms) or unchanged
            entry = RunEntry(f"{now_ms}-{run.id}", run, AuditCode.SCHEDULE_RUN)
            if await self._store.record(name, self._subject(name), state, unchanged, [entry]):
                return entry
        raise FailedPrecondition(f"the schedule {name} is busy; try again")

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
        """Return the execution id of a scheduled time: always the same, and not predictable without the audit key."""
        return self._trail.keyed("schedule", self._subject(name), str(due_ms))[:24]


def _next(schedule: Schedule, begin_ms: int, limit: int) -> list[datetime]:
    if not schedule.enabled:
        return []
    return [from_ms(due) for due in islice(schedule.timing.after(begin_ms), limit)]
