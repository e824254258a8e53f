"""Batches in Redis: pending, running and ended targets. Only the scripts in `store/lua/` change them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog
from pydantic import ValidationError

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.batches import (
    FAILURES,
    ApprovalNeed,
    BatchRequest,
    BatchResult,
    BatchState,
    BatchStatus,
    TargetState,
)
from tachikoma.vocabulary.clock import duration_ms, from_ms, optional_from_ms, redis_ms
from tachikoma.vocabulary.shares import share_of
from tachikoma_orchestrator.batches.grounds import Ended
from tachikoma_orchestrator.batches.reported import ReportedBatches
from tachikoma_orchestrator.store.scripts import Runner, Script, flat

__all__ = ["MAX_OPEN", "MAX_OPEN_OF_REQUESTER", "PAGE", "BatchProgress", "BatchStore"]

log = structlog.get_logger(__name__)

#: Largest number of batches of which something may start or run: in all, and of one requester.
MAX_OPEN, MAX_OPEN_OF_REQUESTER = 1000, 100
#: Waiting targets that are read at once.
PAGE = 400


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """The progress of a batch, as its driver needs it."""

    state: BatchState
    parallel: int
    #: Targets before this place may start.
    released: int
    failures: int
    running: int
    #: True if a released target waits for its turn.
    waiting: bool
    #: By the clock of Redis, in milliseconds since the epoch.
    now_ms: int
    deadline_ms: int
    #: When the pause before the next wave began; 0 if it has not.
    paused_ms: int


class BatchStore:
    """Reads and changes batches. All methods raise redis errors when Redis is unavailable."""

    def __init__(self, redis: Redis, *, retention: timedelta) -> None:
        """Prepare the store of batches.

        Args:
            redis: the connections.
            retention: time for which ended batches are retained.
        """
        self._redis = redis
        self._retention = retention
        self._runner = Runner(redis)
        self._submit = Script("batch_submit")
        self._approve = Script("batch_approve")
        self._release = Script("batch_release")
        self._halt = Script("batch_halt")
        self._target = Script("batch_target")
        #: The changes that were reported, to be written again if Redis loses them.
        self.reported = ReportedBatches()

    # --- changes ------------------------------------------------------------------------------------------------------

    async def submit(
        self, request: BatchRequest, targets: tuple[str, ...], signed: str, *,
        requested_by: str, shown: tuple[str, ...], digest: str, released: int, summary: str,
        needs: Sequence[ApprovalNeed] = (), approval_timeout: timedelta = timedelta(0),
    ) -> str:  # fmt: skip
        """Record a batch.

        Args:
            request: the request.
            targets: the agents, in the order in which they start.
            signed: the signed batch.
            requested_by: SPIFFE ID of the requester.
            shown: the argv with secrets masked.
            digest: digest of the request and its targets.
            released: targets before this place may start at once.
            summary: number and short form of the targets, for the audit event.
            needs: the policies that require an approval; empty to start at once.
            approval_timeout: longest wait for the approval.

        Returns:
            ADMITTED, DUPLICATE, CONFLICT, FULL or REQUESTER_FULL.
        """
        fields = {
            "requested_by": requested_by, "command": shlex.join(shown), "shown": json.dumps(shown),
            "released": str(released), "keep_seconds": str(round(self._retention.total_seconds())),
            **_bounds(request, len(targets)),
        }  # fmt: skip
        if needs:
            fields["needs"] = json.dumps([need.to_dict() for need in needs])
        batch, pending, _, _ = keys.batch(request.id)
        call = self._submit(
            keys=[batch, pending, keys.BATCHES, keys.BATCHES_OPEN, keys.BATCHES_CHANGED],
            args={
                "id": request.id, "digest": digest, "fields": flat(fields), "targets": list(targets),
                "state": BatchState.PENDING_APPROVAL if needs else BatchState.RUNNING, "most": MAX_OPEN,
                "requested_by": requested_by, "most_of_requester": MAX_OPEN_OF_REQUESTER,
                "wait_ms": duration_ms(approval_timeout if needs else request.deadline), "reason": summary,
            },
            payloads=[signed],
        )  # fmt: skip
        answer: bytes = await self._runner.run(call, confirmed=True)
        if answer in (b"ADMITTED", b"DUPLICATE"):
            self.reported.accepted(request.id, call)
        return answer.decode()

    async def approve(
        self, batch_id: str, approval: str, *, by: str, reason: str, digest: str, deadline: timedelta
    ) -> bool:
        """Start a batch that waits for its approval; return False if it no longer waits.

        Args:
            batch_id: the batch.
            approval: the signed approval.
            by: SPIFFE ID of the approver.
            reason: the approver's reason.
            digest: digest of the approved request, targets and grants.
            deadline: time from now after which no further target starts.
        """
        call = self._approve(
            keys=[keys.batch(batch_id)[0], keys.BATCHES_CHANGED],
            args={"id": batch_id, "by": by, "reason": reason, "digest": digest, "wait_ms": duration_ms(deadline)},
            payloads=[approval],
        )
        approved = bool(await self._runner.run(call, confirmed=True))
        if approved:
            self.reported.approved(batch_id, call)
        return approved

    async def release(self, batch_id: str, released: int, following: int, reason: str, *, evidence: str = "") -> bool:
        """Release the targets before a new place of the list. If the place is the same, begin the pause before it.

        Args:
            batch_id: the batch.
            released: the place as it was read; if it has changed since, nothing is changed.
            following: the new place.
            reason: which targets, for the audit event.
            evidence: SHA-256 of the receipt that it rests on, in hexadecimal; empty for none.
        """
        batch, _, running, _ = keys.batch(batch_id)
        call = self._release(
            keys=[batch, running, keys.BATCHES_CHANGED],
            args={"id": batch_id, "released": released, "next": following, "reason": reason, "evidence": evidence},
        )
        return bool(await self._runner.run(call))

    async def halt(
        self,
        batch_id: str,
        state: BatchState,
        code: AuditCode,
        reason: str,
        *,
        by: str = "",
        evidence: str = "",
        waiting: bool = False,
    ) -> bool:
        """Stop the start of further targets; return False if the batch was not running.

        Args:
            batch_id: the batch.
            state: STOPPED, CANCELLED, EXPIRED or REJECTED.
            code: code of the audit event.
            reason: why, in words.
            by: SPIFFE ID of the caller who cancelled or rejected; empty for none.
            evidence: SHA-256 of the receipt that it rests on, in hexadecimal; empty for none.
            waiting: True to halt it only while it waits for its approval.
        """
        call = self._halt(
            keys=[keys.batch(batch_id)[0]],
            args={
                "id": batch_id, "state": state, "code": code, "reason": reason, "actor": by, "evidence": evidence,
                "waiting": waiting,
            },
        )  # fmt: skip
        halted = bool(await self._runner.run(call, confirmed=bool(by)))
        if halted:
            self.reported.halted(batch_id, call)
        return halted

    async def deny_target(self, batch_id: str, agent: str, reason: str) -> None:
        """End a target that gets no execution, since it is denied."""
        call = self._target(
            keys=[keys.batch(batch_id)[0]],
            args={"id": batch_id, "agent": agent, "state": TargetState.DENIED, "reason": reason[:2000]},
        )
        await self._runner.run(call)

    async def lead(self, batch_id: str, name: str, *, lease_seconds: int) -> bool:
        """Return True if an orchestrator drives a batch for now. The lease only saves work: two drivers do no harm."""
        key = keys.batch_driver(batch_id)
        if await self._redis.set(key, name, nx=True, ex=lease_seconds):
            return True
        if await self._redis.get(key) != name.encode():
            return False
        await self._redis.expire(key, lease_seconds)
        return True

    # --- reads --------------------------------------------------------------------------------------------------------

    async def open_batches(self) -> list[str]:
        """Return the ids of batches that may still start or run a target."""
        return sorted(
            item.decode(errors="replace") for item in await self._redis.execute_command("SMEMBERS", keys.BATCHES_OPEN)
        )

    async def newest(self, limit: int) -> list[str]:
        """Return ids of batches, the newest first."""
        found = await self._redis.zrevrangebyscore(keys.BATCHES, "+inf", "-inf", start=0, num=limit)
        return [item.decode(errors="replace") for item in found]

    async def signed(self, batch_id: str) -> str | None:
        """Return the signed batch; None if it does not exist."""
        token: bytes | None = await self._redis.hget(keys.batch(batch_id)[0], "signed")
        return None if token is None else token.decode("ascii", "replace")

    async def approval(self, batch_id: str) -> str | None:
        """Return the signed approval of a batch; None if it has none."""
        token: bytes | None = await self._redis.hget(keys.batch(batch_id)[0], "approval")
        return None if token is None else token.decode("ascii", "replace")

    async def waiting(self) -> list[BatchStatus]:
        """Return the batches that wait for an approval, the nearest deadline first."""
        ids = await self.open_batches()
        async with self._redis.pipeline(transaction=False) as pipe:
            for batch_id in ids:
                pipe.hget(keys.batch(batch_id)[0], "state")
            states = await pipe.execute(raise_on_error=False)
        found = [
            await self.status(batch_id)
            for batch_id, state in zip(ids, states, strict=True)
            if state == BatchState.PENDING_APPROVAL.encode()
        ]
        waiting = [status for status in found if status and status.state is BatchState.PENDING_APPROVAL]
        return sorted(waiting, key=lambda status: (status.deadline or status.submit_time, status.id))

    async def progress(self, batch_id: str) -> BatchProgress | None:
        """Return the progress of a batch for its driver; None if the batch does not exist."""
        batch, pending, running, _ = keys.batch(batch_id)
        names = ("state", "parallel", "released", "failures", "deadline_ms")
        fields = [field.decode() for field in await self._redis.hmget(batch, names) if field is not None]
        if len(fields) < len(names):
            return None
        state, parallel, released, failures, deadline = fields
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.execute_command("TIME")
            pipe.execute_command("SCARD", running)
            pipe.execute_command("ZRANGE", pending, 0, int(released) - 1, "BYSCORE", "LIMIT", 0, 1)
            pipe.hget(batch, f"paused_ms:{released}")
            (seconds, micros), count, waiting, paused = await pipe.execute()
        return BatchProgress(
            BatchState(state), int(parallel), int(released), int(failures), int(count),
            bool(waiting), redis_ms(int(seconds), int(micros)), int(deadline), int(paused or 0),
        )  # fmt: skip

    async def pending(self, batch_id: str, first: int, end: int) -> list[str]:
        """Return targets that wait for their turn, from a place of the list up to another; at most `PAGE`."""
        return [
            item.decode(errors="replace")
            for item in await self._redis.execute_command(
                "ZRANGE", keys.batch(batch_id)[1], first, end - 1, "BYSCORE", "LIMIT", 0, PAGE
            )
        ]

    async def status(self, batch_id: str) -> BatchStatus | None:
        """Return the status of a batch as the ledger has it; None if it does not exist or cannot be read."""
        batch, pending, running, _ = keys.batch(batch_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(batch)
            pipe.zcard(pending)
            pipe.execute_command("SCARD", running)
            raw, waiting, count = await pipe.execute()
        # An id that a schedule gave up has a digest and nothing else.
        if b"state" not in raw:
            return None
        fields = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in raw.items()}
        try:
            return _status(batch_id, fields, waiting, count)
        except (KeyError, ValueError, OverflowError) as error:
            log.error("batch.unreadable", batch=batch_id, reason=str(error)[:300])
            return None

    async def results(self, batch_id: str, *, but: Container[str] = ()) -> dict[str, BatchResult]:
        """Return the ended targets of a batch by agent, as the ledger has them; without the agents in `but`."""
        found = {}
        for agent, raw in (await self._redis.hgetall(keys.batch(batch_id)[3])).items():
            name = agent.decode(errors="replace")
            if name in but:
                continue
            try:
                found[name] = BatchResult(agent_id=name, **_result(json.loads(raw)))
            except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
                log.error("batch.unreadable", batch=batch_id, agent=name[:64], reason=str(error)[:300])
        return found

    async def ends(self, batch_id: str, agents: Sequence[str]) -> list[Ended]:
        """Return the ended ones of the given targets, in the same order, with their receipts."""
        if not agents:
            return []
        found = []
        for agent, raw in zip(agents, await self._redis.hmget(keys.batch(batch_id)[3], agents), strict=True):
            try:
                entry = json.loads(raw or b"null")
                if entry is not None:
                    state = TargetState(entry["state"])
                    found.append(Ended(agent, state, str(entry.get("id", "")), str(entry.get("receipt", ""))))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                log.error("batch.unreadable", batch=batch_id, agent=agent, reason=str(error)[:300])
        return found

    async def not_ended(self, batch_id: str) -> tuple[list[str], list[str]]:
        """Return the agents that wait for their turn, and those whose execution has not ended."""
        _, pending, running, _ = keys.batch(batch_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.execute_command("ZRANGE", pending, 0, -1)
            pipe.execute_command("SMEMBERS", running)
            waiting, started = await pipe.execute()
        return (
            [item.decode(errors="replace") for item in waiting],
            [item.decode(errors="replace") for item in started],
        )


def _status(batch_id: str, fields: Mapping[str, str], waiting: int, running: int) -> BatchStatus:
    state = BatchState(fields["state"])
    totals = {TargetState(name[2:]): int(value) for name, value in fields.items() if name.startswith("n:")}
    if state in (BatchState.RUNNING, BatchState.PENDING_APPROVAL):
        totals[TargetState.PENDING] = waiting
    totals[TargetState.RUNNING] = running
    return BatchStatus(
        id=batch_id,
        state=state,
        requested_by=fields["requested_by"],
        command=tuple(json.loads(fields["shown"])),
        digest=fields["digest"],
        total=int(fields["total"]),
        totals={name: totals[name] for name in TargetState if totals.get(name)},
        failures=int(fields["failures"]),
        reason=fields.get("reason", ""),
        submit_time=from_ms(int(fields["submitted_ms"])),
        end_time=optional_from_ms(int(fields.get("ended_ms", "0"))),
        deadline=from_ms(int(fields["deadline_ms"])),
        needs=tuple(ApprovalNeed.from_dict(need) for need in json.loads(fields.get("needs", "[]"))),
        approved_by=fields.get("approved_by", ""),
        approval_reason=fields.get("approval_reason", ""),
    )


def _result(content: Mapping[str, str]) -> dict[str, object]:
    """Return the attributes of a result, from an entry that `lua/batches.lua` wrote."""
    return {
        "exec_id": content.get("id", ""),
        "state": TargetState(content["state"]),
        "exit_code": int(content.get("exit_code", -1)),
        "error": content.get("error", ""),
        "stdout_sha256": content.get("stdout_sha256", ""),
        "stderr_sha256": content.get("stderr_sha256", ""),
        "stdout_bytes": int(content.get("stdout_bytes", 0)),
        "stderr_bytes": int(content.get("stderr_bytes", 0)),
    }


def _bounds(request: BatchRequest, total: int) -> dict[str, str]:
    """Return the fields that bound how a batch runs on a number of targets."""
    counted = FAILURES | {TargetState(cause) for cause in request.stop_on}
    return {
        "parallel": str(request.parallel_of(total)),
        "stop_after": str(share_of(request.stop_after, total) if request.stop_after else 0),
        "counted": f" {' '.join(sorted(counted))} ",
    }
