"""One execution, from a signed order to a signed receipt, in the order in which it happens.

verify → claim in journal and Redis, and beside it check and prepare what is to run → spool → start → pump and wait for
exit, timeout, cancel or shutdown → kill what is left → receipt. What an order asks for is taken from inside the
verified order and from nowhere else. A worker that was started again goes on from the spool (`Execution.resume`).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import structlog
from pydantic import ByteSize
from redis.exceptions import RedisError

from tachikoma.identity.signed_messages import (
    CancelOrder,
    InvalidSignature,
    OutputDigest,
    Receipt,
    WorkOrder,
    sign,
    verify,
)
from tachikoma.identity.spiffe import InvalidIdentity, agent_id, service_id
from tachikoma.identity.svid import Svid, SvidSource
from tachikoma.policy.watch import PolicyWatch
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.streams.frames import STDERR, STDOUT
from tachikoma.streams.heartbeat import Started
from tachikoma.vocabulary.limits import ResourceUsage, WhenFull
from tachikoma.vocabulary.requests import DEFAULT_TIMEOUT
from tachikoma.vocabulary.results import KillReceipt
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker.cgroups.cgroups import Cgroup, Hierarchy
from tachikoma_worker.confinement.prepare import CannotExecute, Prepared, Refused, narrowed, prepare, start
from tachikoma_worker.confinement.spawner import Exit, Held, Process, Spawner, SpawnerGone, SpawnFailed
from tachikoma_worker.execution.journal import Journal, JournalError
from tachikoma_worker.output.excerpt import Excerpt
from tachikoma_worker.output.pump import OutputLog, Pump
from tachikoma_worker.output.spool import End, Spool, SpoolError, Start, Totals
from tachikoma_worker.settings import WorkerSettings

__all__ = ["SPOOL", "Context", "Execution", "Stop"]

log = structlog.get_logger(__name__)

#: A claim outlives every order: its queue timeout and clock skew.
CLAIM_SECONDS = 15 * 24 * 3600
#: A start is told only of commands that run longer; a shorter one's receipt says it all.
STARTED_NOTICE_SECONDS = 0.02
#: After the command's own end, how long its leftovers may hold the pipes before they are killed, and after that.
DRAIN_SECONDS = 0.2
KILLED_DRAIN_SECONDS = 1.0
#: Between attempts to deliver a receipt, at first and at the most.
RETRY_SECONDS = (0.05, 2.0)
#: Folder of the spools, in the agent's data.
SPOOL = "spool"

#: Of what nobody knows the output of.
_NO_OUTPUT = OutputDigest(
    total_bytes=0,
    sha256="",
    truncated=True,
    excerpt_sha256=hashlib.sha256().hexdigest(),
)


class Stop(StrEnum):
    """Why a command is ended before its time."""

    CANCELLED = "cancelled"
    TIMED_OUT = "timed out"
    SHUTDOWN = "the agent is shutting down"


@dataclass(frozen=True, slots=True)
class Context:
    """What all executions of an agent share."""

    settings: WorkerSettings
    redis: Redis
    journal: Journal
    spawner: Spawner
    cgroups: Hierarchy
    #: The agent's own, which can only take away.
    local_policy: PolicyWatch | None
    identity: SvidSource
    #: Names the agent's journal; the value of its claims.
    boot: str
    #: This run of the host.
    host: str
    #: Lets something be done that nobody waits for.
    behind: Callable[[Coroutine[Any, Any, object]], None]


class Execution:
    """One delivery of an order."""

    def __init__(self, context: Context, exec_id: str, token: str) -> None:
        self._context = context
        self.exec_id = exec_id
        self._token = token
        self._order_sha256 = hashlib.sha256(token.encode()).hexdigest()
        self._agent = context.settings.agent_id
        #: By the order; empty where a worker that did not keep it was the one that verified it.
        self._requested_by = ""
        self._process: Process | None = None
        self._spool: Spool | None = None
        self._left = False
        self._stop: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
        #: Once there is something to write to it.
        self._output: OutputLog | None = None

    def _log(self, facts: Start, resumed: Totals | None = None) -> OutputLog:
        return OutputLog(
            self._context.redis, self._agent, self.exec_id,
            log_bytes=facts.log_bytes, waits=facts.waits, excerpt_bytes=self._context.settings.excerpt_bytes,
            resumed=resumed,
        )  # fmt: skip

    # --- from outside -------------------------------------------------------------------------------------------------

    def stop(self, why: Stop) -> None:
        """Ask for the end; the first reason counts."""
        if not self._stop.done():
            self._stop.set_result(why)

    async def run(self) -> None:
        """Run it, if it is genuine and was never started before."""
        try:
            order = self._verify()
        except (InvalidSignature, InvalidIdentity) as error:
            # Nobody we trust asked for it, so nobody gets a receipt.
            log.warning("order.refused", id=self.exec_id, reason=str(error))
            return
        self._requested_by = order.sub
        if order.journal != self._context.boot:
            # Another journal was there when it was sent: who knows whether it was started with that one?
            log.warning("order.of_another_journal", id=self.exec_id)
            why = "the agent lost its journal, and does not know whether it was started before"
            receipt = lost_receipt(self._context, self.exec_id, self._order_sha256, why)
            await deliver(self._context, receipt, b"", b"", again=True)
            return
        # Meanwhile: it waits for disks and kernel locks, as the claim does for Redis and the journal.
        preparing = asyncio.ensure_future(asyncio.to_thread(self._prepare, order))
        try:
            claimed = await self._claim()
        except JournalError as error:
            await self._discard(preparing)
            # A copy of the order must not run later, when there is room again.
            with suppress(RedisError, OSError):
                await self._context.redis.set(keys.claim(self._agent, self.exec_id), "rejected", ex=CLAIM_SECONDS)
            end = End(state=ExecState.REJECTED, error=f"the agent's journal cannot be written: {error}")
        else:
            if not claimed:
                await self._discard(preparing)
                return
            try:
                end = await self._start(preparing, order)
            except Exception as error:
                # A mistake of ours must not leave an execution without its end.
                log.exception("execution.failed", id=self.exec_id)
                end = End(state=ExecState.LOST, error=f"the agent failed: {type(error).__name__}: {error}"[:1000])
        await self._deliver(end)

    async def resume(self, spool: Spool, held: Held | None) -> None:
        """Go on with what an earlier worker started.

        Args:
            spool: what it left.
            held: the command, where the spawner has it.
        """
        self._spool, self._order_sha256 = spool, spool.start.order_sha256
        self._requested_by = spool.start.requested_by
        output = self._output = self._log(spool.start, spool.start.totals)
        self._context.behind(self._look_for_cancel())
        end = spool.end
        cgroup = await asyncio.to_thread(self._context.cgroups.open, self.exec_id)
        try:
            if held is not None:
                self._process = await self._context.spawner.take(held)
            if end is None and self._process is not None:
                log.info("execution.taken_back", id=self.exec_id, pid=self._process.pid)
                end = await self._watch(self._process, cgroup)
            else:
                # Nobody is made to wait any more.
                output.hurry()
                await Pump(output, spool, {}).run()
        except (SpawnFailed, SpawnerGone) as error:
            end = End(state=ExecState.LOST, error=f"its end is not known: {error}")
        except asyncio.CancelledError:
            self._leave()
            raise
        if end is None:
            await self._context.spawner.sweep(cgroup.fds)
            why = "its end is not known: the agent's worker and its spawner were both killed"
            end = End(state=ExecState.LOST, error=why, started_ms=spool.start.started_ms)
        self._context.behind(self._give_back(cgroup.remove))
        await self._deliver(end, again=True)

    async def _look_for_cancel(self) -> None:
        """What was published while no worker listened stands in its key."""
        delay, most = RETRY_SECONDS
        while not self._stop.done():
            try:
                token = await self._context.redis.get(keys.cancel(self._agent, self.exec_id))
            except (RedisError, OSError):
                await asyncio.sleep(delay)
                delay = min(2 * delay, most)
                continue
            if token is not None:
                self.cancel(token.decode("ascii", "replace"))
            return

    # --- before the start ---------------------------------------------------------------------------------------------

    def _verify(self) -> WorkOrder:
        svid = self._context.identity.current()
        domain = svid.spiffe_id.trust_domain
        issuer = service_id(domain, self._context.settings.orchestrator)
        order = verify(self._token, WorkOrder, svid.bundle, issuer)
        if order.aud != str(agent_id(domain, self._agent)):
            raise InvalidSignature(f"is for {order.aud}, not for this agent")
        if order.jti != self.exec_id or order.request.id != self.exec_id or order.request.agent_id != self._agent:
            raise InvalidSignature("is for another execution than its message says")
        if time.time() >= order.exp:
            raise InvalidSignature("has expired")
        return order

    def _prepare(self, order: WorkOrder) -> Prepared:
        context = self._context
        if order.labels != context.settings.labels:
            raise Refused("policy took the agent for one with other labels than it has")
        if context.local_policy is not None:
            order = narrowed(order, context.local_policy.current, context.settings.labels)
        return prepare(order, context.settings, context.spawner.uid, context.cgroups)

    @staticmethod
    async def _discard(preparing: asyncio.Future[Prepared]) -> None:
        with suppress(Refused, CannotExecute):
            await asyncio.to_thread((await preparing).discard)

    async def _claim(self) -> bool:
        """Whether this delivery, and no other ever, may start the command.

        Raises:
            JournalError: the claim cannot be made safe on disk.
        """
        # First on disk: a worker killed in between then reports what it claimed. The other way round nobody would know
        # of it, neither the next worker nor, since the claim is this agent's, the reaper.
        on_disk: bool | JournalError
        try:
            on_disk = await self._context.journal.claim(self.exec_id, self._order_sha256)
        except JournalError as error:
            on_disk = error
        if not await self._claim_in_redis():
            log.info("order.not_ours", id=self.exec_id)
            if on_disk is True:
                # Fenced, or claimed by another: there is nothing that a later run would have to report.
                self._context.journal.finish(self.exec_id)
            return False
        if isinstance(on_disk, JournalError):
            raise on_disk
        if not on_disk:
            log.info("order.repeated", id=self.exec_id)
        return on_disk

    async def _claim_in_redis(self) -> bool:
        key = keys.claim(self._agent, self.exec_id)
        delay, most = RETRY_SECONDS
        while True:
            try:
                async with self._context.redis.pipeline(transaction=False) as pipe:
                    pipe.set(key, self._context.boot, nx=True, ex=CLAIM_SECONDS)
                    pipe.get(key)
                    pipe.get(keys.cancel(self._agent, self.exec_id))
                    _, holder, cancel = await pipe.execute()
            except (RedisError, OSError) as error:
                if wrong_type(error):
                    # Neither an agent nor the orchestrator put that there; it would stay for ever.
                    log.warning("claim.unreadable", id=self.exec_id, error=str(error))
                    return False
                # Whether the claim was made is unknown until Redis answers; asking again is safe.
                log.warning("claim.waiting", id=self.exec_id, error=str(error))
                await asyncio.sleep(delay)
                delay = min(2 * delay, most)
                continue
            if cancel is not None:
                self.cancel(cancel.decode("ascii", "replace"))
            return bool(holder == self._context.boot.encode())

    def cancel(self, token: str) -> bool:
        """Take a signed cancel. False when it is not genuine, or for another execution."""
        svid = self._context.identity.current()
        domain = svid.spiffe_id.trust_domain
        try:
            issuer = service_id(domain, self._context.settings.orchestrator)
            # It may be read long after it was written: by a worker that is started again, of a command of days.
            order = verify(token, CancelOrder, svid.bundle, issuer, kept=True)
            if order.aud != str(agent_id(domain, self._agent)) or order.jti != self.exec_id:
                raise InvalidSignature("is for another agent or execution")
            if order.requested_by and self._requested_by and order.requested_by != self._requested_by:
                raise InvalidSignature(f"is by {order.sub}, whose execution it is not")
        except (InvalidSignature, InvalidIdentity) as error:
            log.warning("cancel.refused", id=self.exec_id, reason=str(error))
            return False
        self.stop(Stop.CANCELLED)
        return True

    # --- while it runs ------------------------------------------------------------------------------------------------

    async def _start(self, preparing: asyncio.Future[Prepared], order: WorkOrder) -> End:
        try:
            prepared = await preparing
        except Refused as error:
            return End(state=ExecState.REJECTED, error=str(error))
        except CannotExecute as error:
            return End(state=ExecState.FAILED, exit_code=error.exit_code, error=str(error))
        try:
            if time.time() >= order.exp:
                # Redis took so long with the claim; the orchestrator may have said by now that it never started.
                return End(state=ExecState.EXPIRED, error="not started: its claim came after its queue timeout")
            if self._stop.done():
                return self._stopped_early(self._stop.result())
            return await self._run(prepared)
        except asyncio.CancelledError:
            self._leave()
            raise
        finally:
            if not self._left:
                self._context.behind(self._give_back(prepared.discard))

    def _leave(self) -> None:
        """The worker ends, and leaves the command to the next one."""
        self._left = True
        if self._process is not None:
            self._process.leave()
        if self._spool is not None:
            self._spool.close()

    async def _give_back(self, discard: Callable[[], object]) -> None:
        """Behind: removing a cgroup may wait for the kernel."""
        if self._process is not None:
            await self._process.close()
        await asyncio.to_thread(discard)

    async def _run(self, prepared: Prepared) -> End:
        order, settings = prepared.order, self._context.settings
        grace = order.grant.kill_grace
        facts = Start(
            host=self._context.host,
            order_sha256=self._order_sha256,
            requested_by=order.sub,
            executable=prepared.executable.path,
            started_ms=time.time_ns() // 1_000_000,
            began_ns=time.monotonic_ns(),
            timeout=(order.request.timeout or DEFAULT_TIMEOUT).total_seconds(),
            kill_grace=settings.kill_grace.total_seconds() if grace is None else grace,
            memory=order.grant.limits.memory,
            log_bytes=min(order.grant.output.limit or settings.log_bytes, settings.log_bytes),
            waits=order.grant.output.when_full is WhenFull.WAIT,
        )
        self._output = self._log(facts)
        try:
            # One that waits for readers is not to run far ahead of them.
            most = min(settings.spool_bytes, facts.log_bytes) if facts.waits else settings.spool_bytes
            self._spool = Spool.create(settings.data / SPOOL, self.exec_id, facts, most=most)
        except SpoolError as error:
            return End(state=ExecState.REJECTED, error=f"the agent's spool cannot be written: {error}")
        try:
            process = self._process = await start(prepared, self._context.spawner)
        except Refused as error:
            return End(state=ExecState.REJECTED, error=str(error))
        except CannotExecute as error:
            return End(state=ExecState.FAILED, exit_code=error.exit_code, error=str(error))
        except SpawnerGone as gone:
            return End(state=ExecState.LOST, error=f"whether it started is not known: {gone}")
        notice = asyncio.get_running_loop().call_later(STARTED_NOTICE_SECONDS, self._announce, facts.started_ms)
        try:
            return await self._watch(process, prepared.cgroup)
        finally:
            notice.cancel()

    async def _watch(self, process: Process, cgroup: Cgroup) -> End:
        """From a running command to its end."""
        assert self._spool is not None
        facts = self._spool.start
        base: dict[str, Any] = {"executable": facts.executable, "started_ms": facts.started_ms}
        try:
            stopped, survivors = await self._attend(process, cgroup, facts)
            exited = await process.exited if not survivors or process.exited.done() else None
        except SpawnerGone as gone:
            return End(state=ExecState.LOST, error=f"its end is not known: {gone}", **base)
        except Exception:
            await process.kill_all()
            raise
        usage = cgroup.usage()
        if usage.cpu_seconds is None and exited is not None:
            usage = usage.model_copy(update={"cpu_seconds": exited.cpu_seconds})
        if exited is not None:
            base |= {"exit_code": exited.exit_code, "signal": exited.signal}
        state, error_text = _verdict(stopped, exited, usage, facts)
        if survivors:
            told = ", ".join(map(str, survivors))
            if stopped or exited is None:
                state = ExecState.LOST
            error_text = f"{error_text}; could not kill all of it: processes {told} are still there".lstrip("; ")
        if stopped or survivors:
            signals = (signal.SIGTERM, signal.SIGKILL) if stopped else (signal.SIGKILL,)
            base["kill"] = KillReceipt(
                empty=not survivors, whole=bool(cgroup.fds), signals=signals, survivors=tuple(survivors)
            )
        duration_us = (time.monotonic_ns() - facts.began_ns) // 1000
        end = End(state=state, error=error_text, duration_us=duration_us, usage=usage, **base)
        # Before the spawner forgets it.
        self._spool.finish(end)
        return end

    @staticmethod
    def _stopped_early(why: Stop) -> End:
        if why is Stop.CANCELLED:
            return End(state=ExecState.CANCELLED, error="cancelled before it started")
        return End(state=ExecState.REJECTED, error=f"not started: {why}")

    async def _attend(self, process: Process, cgroup: Cgroup, facts: Start) -> tuple[Stop | None, list[int]]:
        """Pump until the command has ended by itself or was made to.

        Returns:
            Why it was made to end, if so, and the processes of it that could not be killed.
        """
        assert self._spool is not None
        assert self._output is not None
        pump = Pump(self._output, self._spool, {process.stdout: STDOUT, process.stderr: STDERR})
        left_seconds = facts.timeout - (time.monotonic_ns() - facts.began_ns) / 1e9
        pumping = asyncio.create_task(pump.run())
        try:
            await asyncio.wait(
                (process.exited, self._stop), timeout=max(0, left_seconds), return_when=asyncio.FIRST_COMPLETED
            )
            stopped: Stop | None = None
            survivors: list[int] = []
            if not process.exited.done():
                stopped = self._stop.result() if self._stop.done() else Stop.TIMED_OUT
                survivors = await process.kill(facts.kill_grace)
            return stopped, await self._drain(process, cgroup, pump, pumping) or survivors
        finally:
            if not pumping.done():
                pumping.cancel()
                await asyncio.gather(pumping, return_exceptions=True)

    async def _drain(self, process: Process, cgroup: Cgroup, pump: Pump, pumping: asyncio.Task[None]) -> list[int]:
        """Take the rest of the output. The execution ends with its command: what it left behind is killed."""
        taken = asyncio.ensure_future(pump.taken.wait())
        await asyncio.wait((pumping, taken), timeout=DRAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        survivors: list[int] = []
        # Also when the pipes are closed: a leftover may have closed its own.
        if not cgroup.fds or cgroup.populated() or not taken.done():
            survivors = await process.kill_all()
        await asyncio.wait((pumping, taken), timeout=KILLED_DRAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        # Without a cgroup, who left the group may hold the pipes for ever; what is in them now is still taken, then
        # they are closed. While Redis is away this waits, so that no byte is lost.
        pump.stop()
        taken.cancel()
        await pumping
        return survivors

    def _announce(self, started_ms: int) -> None:
        """Tell that it runs. May be lost without harm."""
        notice = Started(id=self.exec_id, started_ms=started_ms).model_dump_json()
        task = asyncio.ensure_future(self._context.redis.publish(keys.events(self._agent), notice))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _deliver(self, end: End, *, again: bool = False) -> None:
        excerpts = self._output.excerpts if self._output else {STDOUT: Excerpt(0), STDERR: Excerpt(0)}
        out, err = excerpts[STDOUT], excerpts[STDERR]
        receipt = Receipt(
            iss=str(self._context.identity.current().spiffe_id),
            iat=int(time.time()),
            jti=self.exec_id,
            order_sha256=self._order_sha256,
            state=end.state,
            exit_code=end.exit_code,
            signal=end.signal,
            error=end.error,
            executable=end.executable,
            started_ms=end.started_ms,
            ended_ms=time.time_ns() // 1_000_000,
            duration_us=end.duration_us,
            chunks=self._output.seq if self._output else 0,
            stdout=out.digest(),
            stderr=err.digest(),
            usage=end.usage,
            kill=end.kill,
        )
        await deliver(self._context, receipt, out.content(), err.content(), again=again)
        if self._spool is not None:
            self._spool.remove()


def _verdict(stopped: Stop | None, exited: Exit | None, usage: ResourceUsage, facts: Start) -> tuple[ExecState, str]:
    """The state that an end is, and why, for people."""
    if stopped is Stop.CANCELLED:
        return ExecState.CANCELLED, "cancelled"
    if stopped is Stop.TIMED_OUT:
        return ExecState.TIMED_OUT, f"killed at its timeout of {facts.timeout:g} s"
    if stopped is Stop.SHUTDOWN:
        return ExecState.FAILED, "killed: the agent was shut down"
    if exited is None:
        return ExecState.LOST, "its end is not known"
    if not exited.exit_code:
        return ExecState.SUCCEEDED, ""
    if usage.oom_kills:
        what = (
            f"more than its {ByteSize(facts.memory).human_readable()} of memory"
            if facts.memory
            else "more memory than there was"
        )
        return ExecState.OUT_OF_MEMORY, f"killed: it used {what}"
    return ExecState.FAILED, f"killed by {_signal_name(exited.signal)}" if exited.signal else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def lost_receipt(context: Context, exec_id: str, order_sha256: str, why: str) -> Receipt:
    """The receipt of an execution that an earlier run claimed and nobody can tell the end of."""
    return Receipt(
        iss=str(context.identity.current().spiffe_id),
        iat=int(time.time()),
        jti=exec_id,
        order_sha256=order_sha256,
        state=ExecState.LOST,
        exit_code=-1,
        signal=0,
        error=why,
        executable="",
        started_ms=0,
        ended_ms=time.time_ns() // 1_000_000,
        duration_us=0,
        chunks=0,
        stdout=_NO_OUTPUT,
        stderr=_NO_OUTPUT,
    )


def _is_receipt(context: Context, raw: bytes, receipt: Receipt) -> bool:
    """Whether a Celery result holds a receipt of this agent for the same order as another one."""
    svid = context.identity.current()
    try:
        token = json.loads(raw)["result"]["receipt"]
        there = verify(token, Receipt, svid.bundle, svid.spiffe_id, kept=True)
    except (InvalidSignature, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    return (there.jti, there.order_sha256) == (receipt.jti, receipt.order_sha256)


async def deliver(context: Context, receipt: Receipt, stdout: bytes, stderr: bytes, *, again: bool = False) -> None:
    """Sign a receipt and leave it as the Celery result, in Celery's own encoding; however long Redis is away.

    With `again`, an earlier worker may have done so already; then that result stands, and is what is told once more:
    the ledger must take no other receipt than the one beside which the output is kept. So none is ever written over,
    neither by an attempt that was thought to have failed and arrives late.

    Celery's status is SUCCESS whatever the command came to: the task delivered a result, and `AsyncResult.get` returns
    it instead of raising (docs/decisions/0004).
    """
    agent, exec_id = context.settings.agent_id, receipt.jti
    task_id = keys.task_id(agent, exec_id)
    meta: dict[str, Any] = {
        "status": "SUCCESS",
        "result": {
            "id": exec_id,
            "agentId": agent,
            "state": receipt.state,
            "exitCode": receipt.exit_code,
            "error": receipt.error,
            "stdout": base64.b64encode(stdout).decode(),
            "stderr": base64.b64encode(stderr).decode(),
        },
        "traceback": None,
        "children": [],
        "date_done": datetime.now(UTC).isoformat(),
        "task_id": task_id,
    }
    key = keys.result(agent, exec_id)
    seconds = round(context.settings.output_retention.total_seconds())
    delay, most = RETRY_SECONDS
    signer: Svid | None = None
    raw = ""
    while True:
        svid = context.identity.current()
        if svid is not signer:
            # While Redis was away, the identity may have become another.
            meta["result"]["receipt"] = sign(svid, receipt.model_copy(update={"iat": int(time.time())}))
            signer, raw = svid, json.dumps(meta)
        try:
            there: bytes | None = None
            if again:
                there = await context.redis.set(key, raw, ex=seconds, nx=True, get=True)
                if there is not None and not _is_receipt(context, there, receipt):
                    # Nobody who may say how it ended put that there.
                    there = None
                    await context.redis.set(key, raw, ex=seconds)
            async with context.redis.pipeline(transaction=False) as pipe:
                if not again:
                    pipe.set(key, raw, ex=seconds, nx=True)
                pipe.expire(keys.output(agent, exec_id), seconds)
                pipe.publish(key, there or raw)
                answers = await pipe.execute()
            if again or answers[0]:
                break
            again = True
        except (RedisError, OSError) as error:
            # Whether it came through is not known.
            again = True
            log.warning("receipt.waiting", id=exec_id, error=str(error))
            await asyncio.sleep(delay)
            delay = min(2 * delay, most)
    context.journal.finish(exec_id)
