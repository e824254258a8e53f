"""What Redis has of schedules: how far each is, and what became of its due times; changed only by scripts."""

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
from tachikoma.vocabulary.clock import to_ms
from tachikoma.vocabulary.schedules import DueOutcome, ScheduledRun
from tachikoma_orchestrator.executions.ledger import FENCE
from tachikoma_orchestrator.schedules.planner import Plan, State
from tachikoma_orchestrator.store.scripts import Runner, Script

__all__ = ["BookEntry", "ScheduleBook"]

#: Runs of each schedule that are kept.
MAX_RUNS = 1000
#: Longest reason kept.
MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class BookEntry:
    """A run as it is put on the record."""

    #: Its id in the schedule.
    key: str
    run: ScheduledRun
    #: Its audit event; None for none.
    code: AuditCode | None = None


class ScheduleBook:
    """Reads and changes it. All methods raise redis errors when Redis is away."""

    def __init__(self, redis: Redis, *, retention: timedelta) -> None:
        """Prepare a book; `retention` is how long it must hold that something did not run."""
        self._redis = redis
        self._runner = Runner(redis)
        self._schedule = Script("schedule")
        self._settle = Script("settle_run")
        self._pause = Script("pause")
        self._fence_seconds = round(retention.total_seconds())

    async def names(self) -> list[str]:
        """Every schedule that was ever looked at."""
        return [name.decode("utf-8", "replace") for name in await self._redis.hkeys(keys.SCHEDULES)]

    async def state(self, name: str) -> State:
        """How far a schedule is.

        Raises:
            RecordAltered: what stands there is not ours.
        """
        try:
            fields = await self._redis.hgetall(keys.schedule(name))
        except ResponseError as error:
            if wrong_type(error):
                raise RecordAltered(f"what Redis has of the schedule {name} is none of ours: {error}") from None
            raise
        return State.parse(name, fields)

    async def record(
        self, name: str, subject: str, state: State, plan: Plan, entries: Sequence[BookEntry]
    ) -> bool:  # fmt: skip
        """Put what became of due times on the record, unless somebody else was there first.

        Args:
            name: the schedule.
            subject: its SPIFFE ID.
            state: how far it was.
            plan: how far it is now.
            entries: runs for the record. What is taken is then to be settled.
        """
        words: list[str | int] = []
        last_exec = ""
        for entry in entries:
            run = entry.run
            taken = run.outcome is DueOutcome.TAKEN
            event = self._event(entry.code, name, subject, run) if entry.code else []
            words += (entry.key, to_ms(run.due), "1" if taken else "0", run.to_json(), len(event), *event)
            if taken:
                last_exec = run.id
        call = self._schedule(
            keys=[
                keys.schedule(name), keys.schedule_runs(name), keys.schedule_order(name), keys.SCHEDULES, keys.AUDIT,
            ],
            args=[
                name, state.version, plan.cursor_ms, plan.rule, MAX_RUNS, last_exec, len(entries), *words,
            ],
        )  # fmt: skip
        return bool(await self._runner.run(call))

    async def settle(
        self, name: str, subject: str, key: str, run: ScheduledRun, outcome: DueOutcome, reason: str = ""
    ) -> ScheduledRun | None:
        """Say what became of a run that was taken. One that did not run never will.

        Returns:
            What is on the record of it now; None where that was settled before.
        """
        there = run.model_copy(update={"outcome": DueOutcome.RUN})
        other = run.model_copy(update={"outcome": outcome, "reason": reason[:MAX_REASON]})
        event: list[str] = []
        if outcome is DueOutcome.MISSED:
            event = self._event(AuditCode.SCHEDULE_MISSED, name, subject, other)
        call = self._settle(
            keys=[
                keys.schedule(name), keys.schedule_runs(name), keys.execution(run.id),
                keys.claim(run.agent_id, run.id), keys.AUDIT,
            ],
            args=[
                key, subject, "1" if outcome is DueOutcome.RUN else "0", there.to_json(), other.to_json(),
                FENCE, self._fence_seconds, *event,
            ],
        )  # fmt: skip
        answer = int(await self._runner.run(call))
        return None if answer < 0 else there if answer else other

    @staticmethod
    def _event(code: AuditCode, name: str, subject: str, run: ScheduledRun) -> list[str]:
        due = f"schedule {name}, due {run.due:%Y-%m-%dT%H:%M:%S}.{run.due.microsecond // 1000:03}Z"
        if run.count > 1 and run.first is not None:
            due = f"{due} and {run.count - 1} times since {run.first:%Y-%m-%dT%H:%M:%S}Z"
        words = [
            "event", code, "agent_id", run.agent_id, "requested_by", subject, "authorized", "1",
            "reason", f"{due}: {run.reason}"[:MAX_REASON],
        ]  # fmt: skip
        if run.id:
            words += ("id", run.id)
        return words + (["actor", run.requested_by] if run.requested_by else [])

    async def pause(self, name: str, code: AuditCode, subject: str, *, by: str, reason: str) -> bool:
        """Pause a schedule, or let it go on, by the code of its event.

        Returns:
            Whether that changed anything.
        """
        what = "pause" if code is AuditCode.SCHEDULE_PAUSED else "resume"
        event = [
            "event", code, "requested_by", subject, "authorized", "1", "actor", by,
            "reason", f"schedule {name}{f': {reason}' if reason else ''}"[:MAX_REASON],
        ]  # fmt: skip
        call = self._pause(keys=[keys.schedule(name), keys.AUDIT], args=[what, by, reason[:MAX_REASON], *event])
        return bool(await self._runner.run(call))

    async def runs(self, name: str, *, limit: int) -> list[ScheduledRun]:
        """What became of the latest due times, newest first."""
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
                raise RecordAltered(f"the runs of the schedule {name} cannot be read: {str(error)[:200]}") from None
        return found
