"""The records of schedules in Redis: progress, and the outcome of each scheduled time. Only scripts change them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from pydantic import ValidationError
from redis.exceptions import ResponseError

from tachikoma.errors import RecordAltered
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.clock import text_of_ms, to_ms
from tachikoma.vocabulary.schedules import DueOutcome, ScheduledRun
from tachikoma_orchestrator.executions.transitions import FENCE
from tachikoma_orchestrator.schedules.pauses import Pauses
from tachikoma_orchestrator.schedules.planner import Plan, ScheduleState
from tachikoma_orchestrator.store.scripts import JsonObject, Runner, Script

__all__ = ["RunEntry", "ScheduleStore"]

#: Runs of each schedule that are retained.
MAX_RUNS = 1000
#: Longest reason, in characters.
MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A run to be recorded."""

    #: Its id in the schedule: the scheduled time in ms; of a manual run, the time and the execution.
    key: str
    run: ScheduledRun
    #: The code of its audit event; None for no event.
    code: AuditCode | None = None


class ScheduleStore:
    """The records of all schedules. All methods raise RedisError or OSError if Redis is unavailable."""

    def __init__(self, redis: Redis, *, retention: timedelta) -> None:
        """Prepare the store.

        Args:
            redis: the connections.
            retention: for how long a run that was settled as not run can never start.
        """
        self._redis = redis
        self._runner = Runner(redis)
        self._schedule = Script("schedule")
        self._settle = Script("settle_run")
        self._pause = Script("pause")
        self._fence_seconds = round(retention.total_seconds())
        #: The last pause of each schedule that was read.
        self.pauses = Pauses()

    async def names(self) -> list[str]:
        """Return the names of all schedules that have a record."""
        return [name.decode("utf-8", "replace") for name in await self._redis.hkeys(keys.SCHEDULES)]

    async def state(self, name: str) -> ScheduleState:
        """Return the progress of a schedule.

        Raises:
            RecordAltered: the record was not written by this program.
        """
        try:
            fields = await self._redis.hgetall(keys.schedule(name))
        except ResponseError as error:
            if wrong_type(error):
                raise RecordAltered(f"the record of the schedule {name} in Redis cannot be read: {error}") from None
            raise
        state = ScheduleState.parse(name, fields)
        self.pauses.note(name, state)
        return state

    async def record(
        self, name: str, subject: str, state: ScheduleState, plan: Plan, entries: Sequence[RunEntry]
    ) -> bool:  # fmt: skip
        """Record the outcome of scheduled times, unless another process changed the record since it was read.

        Args:
            name: the schedule.
            subject: its SPIFFE ID.
            state: its progress as it was read.
            plan: its new progress.
            entries: the runs to be recorded. The caller settles those that are taken.

        Returns:
            False if another process changed the record first; nothing is recorded then.
        """
        runs: list[JsonObject] = [
            {
                "id": entry.key,
                "due_ms": to_ms(entry.run.due),
                "taken": entry.run.outcome is DueOutcome.TAKEN,
                "entry": entry.run.to_json(),
                "event": self._event(entry.code, name, subject, entry.run) if entry.code else [],
            }
            for entry in entries
        ]
        taken = [entry.run.id for entry in entries if entry.run.outcome is DueOutcome.TAKEN]
        call = self._schedule(
            keys=[
                keys.schedule(name), keys.schedule_runs(name), keys.schedule_order(name), keys.SCHEDULES, keys.AUDIT,
            ],
            args={
                "name": name, "version": str(state.version), "cursor_ms": plan.cursor_ms, "rule": plan.rule,
                "max_runs": MAX_RUNS, "last_exec": taken[-1] if taken else "", "runs": runs,
            },
        )  # fmt: skip
        return bool(await self._runner.run(call, confirmed=True))

    async def settle(
        self, name: str, subject: str, key: str, run: ScheduledRun, outcome: DueOutcome, reason: str = ""
    ) -> ScheduledRun | None:
        """Record the outcome of a taken run. A run that is settled as not run can never start.

        Args:
            name: the schedule.
            subject: its SPIFFE ID.
            key: the run's id in the schedule.
            run: the taken run.
            outcome: the outcome, unless the ledger has an execution or a batch of the run: then it is RUN.
            reason: the reason of an outcome other than RUN.

        Returns:
            The recorded run; None if it was settled before.
        """
        accepted = run.model_copy(update={"outcome": DueOutcome.RUN})
        other = run.model_copy(update={"outcome": outcome, "reason": reason[:MAX_REASON]})
        event: list[str] = []
        if outcome is DueOutcome.MISSED:
            event = self._event(AuditCode.SCHEDULE_MISSED, name, subject, other)
        record = (keys.execution(run.id), keys.claim(run.agent_id, run.id))
        if run.is_batch:
            record = (keys.batch(run.id)[0],) * 2
        call = self._settle(
            keys=[keys.schedule(name), keys.schedule_runs(name), *record, keys.AUDIT],
            args={
                "run": key, "subject": subject, "batch": run.is_batch, "executed": outcome is DueOutcome.RUN,
                "entry_if_run": accepted.to_json(), "entry_if_not": other.to_json(),
                "fence": FENCE, "keep_seconds": self._fence_seconds, "event": event,
            },
        )  # fmt: skip
        answer = int(await self._runner.run(call, confirmed=True))
        return None if answer < 0 else accepted if answer else other

    @staticmethod
    def _event(code: AuditCode, name: str, subject: str, run: ScheduledRun) -> list[str]:
        due = f"schedule {name}, due {text_of_ms(to_ms(run.due))}"
        if run.count > 1 and run.first is not None:
            due = f"{due} and {run.count - 1} times since {run.first:%Y-%m-%dT%H:%M:%S}Z"
        words = [
            "event", code, "agent_id", run.agent_id, "requested_by", subject, "authorized", "1",
            "reason", f"{due}: {run.reason}"[:MAX_REASON],
        ]  # fmt: skip
        if run.id:
            words += ("batch" if run.is_batch else "id", run.id)
        return words + (["actor", run.requested_by] if run.requested_by else [])

    async def pause(self, name: str, code: AuditCode, subject: str, *, by: str, reason: str) -> bool:
        """Pause or resume a schedule.

        Args:
            name: the schedule.
            code: SCHEDULE_PAUSED or SCHEDULE_RESUMED.
            subject: its SPIFFE ID.
            by: SPIFFE ID of the operator.
            reason: the reason of a pause.

        Returns:
            False if the schedule was paused or resumed already.
        """
        event = [
            "event", code, "requested_by", subject, "authorized", "1", "actor", by,
            "reason", f"schedule {name}{f': {reason}' if reason else ''}"[:MAX_REASON],
        ]  # fmt: skip
        call = self._pause(
            keys=[keys.schedule(name), keys.AUDIT],
            args={
                "pause": code is AuditCode.SCHEDULE_PAUSED, "by": by, "reason": reason[:MAX_REASON], "event": event,
            },
        )  # fmt: skip
        return bool(await self._runner.run(call, confirmed=True))

    async def runs(self, name: str, *, limit: int) -> list[ScheduledRun]:
        """Return the latest recorded runs, newest first, at most `limit`.

        Raises:
            RecordAltered: a record was not written by this program.
        """
        ids = await self._redis.zrevrangebyscore(keys.schedule_order(name), "+inf", "-inf", start=0, num=limit)
        if not ids:
            return []
        found = []
        for raw in await self._redis.hmget(keys.schedule_runs(name), ids):
            if raw is None:
                continue
            try:
                found.append(ScheduledRun.model_validate_json(raw))
            except ValidationError as error:
                raise RecordAltered(
                    f"the runs of the schedule {name} in Redis cannot be read: {str(error)[:200]}"
                ) from None
        return found
