"""The worker's engine: one asyncio loop on a thread of its own, in which each execution is one coroutine.

Celery's hub only receives messages and hands their orders over. So output flows while Celery reconnects to its broker,
and a running command occupies no thread.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic_ns

import structlog
from redis.exceptions import RedisError

from tachikoma.client.membership.joining import REJOIN
from tachikoma.client.membership.renewal import Renewal
from tachikoma.config import error_reporting
from tachikoma.config.tasks import supervised
from tachikoma.identity.open import open_identity
from tachikoma.policy.watch import PolicyWatch
from tachikoma.redis.access import RedisAccess, connect
from tachikoma.streams.heartbeat import Heartbeat
from tachikoma_worker.cgroups.detect import detect
from tachikoma_worker.confinement.isolation.enclosures import Enclosures
from tachikoma_worker.confinement.protocol import SpawnerGone
from tachikoma_worker.engine.certificates import check_identity
from tachikoma_worker.engine.control import Control
from tachikoma_worker.engine.descriptors import raise_limit
from tachikoma_worker.engine.folder_lock import FolderLock
from tachikoma_worker.engine.heartbeat import Run, describe, logged_warnings
from tachikoma_worker.engine.lease import POLL_SECONDS, Lease
from tachikoma_worker.engine.takeover import GivenUp, Resumable, connect_spawner, find_spool, lost_reason, sweep_all
from tachikoma_worker.engine.tasks import PartFailed, TrackedTasks, end_worker, named
from tachikoma_worker.engine.tmp_folders import drop_unused_tmp
from tachikoma_worker.execution.context import Context, sent_output
from tachikoma_worker.execution.execution import Execution
from tachikoma_worker.execution.journal import Journal, Unfinished
from tachikoma_worker.execution.lives import Lives
from tachikoma_worker.execution.reserve import DiskReserve
from tachikoma_worker.execution.verdict import Stop
from tachikoma_worker.execution.write_back import WriteBack
from tachikoma_worker.output.spool import host_boot
from tachikoma_worker.settings import WorkerSettings

__all__ = ["Engine"]

log = structlog.get_logger(__name__)

#: Delay between two checks of the agent's own policy file.
POLICY_SECONDS = 1.0
#: After the stop grace, the time for delivering receipts, and the time for each further step of closing.
DELIVER_SECONDS = 5.0
#: Connections for the input of sessions: as many as the largest number of slots, and as many of an earlier worker.
MAX_SESSIONS = 8192


@dataclass(frozen=True, slots=True)
class Order:
    """An order as the pool hands it over, not yet verified."""

    exec_id: str
    #: Compact JWS.
    token: str
    #: Called on the engine's thread when the engine has no more work for the order.
    done: Callable[[], None]
    #: When it was handed over, in nanoseconds of CLOCK_MONOTONIC.
    since_ns: int = field(default_factory=monotonic_ns)


class Engine:
    """Runs the agent's executions. Its public methods may be called from other threads."""

    def __init__(
        self, context: Context, access: RedisAccess, cleaning: TrackedTasks, renewal: Renewal | None,
        warnings: tuple[str, ...], lock: FolderLock | None = None,
    ) -> None:  # fmt: skip
        """Prepare an engine; use `open`. Nothing runs before `start`.

        Args:
            context: the parts that executions share.
            access: the access to Redis, for further connections.
            cleaning: the background tasks that executions start.
            renewal: renews the agent's identity; None for an identity that another process renews.
            warnings: limitations of the host, for people.
            lock: the lock of the data folder, released with the engine; None if the caller holds it.
        """
        self.access = access
        self._context = context
        self._settings = context.settings
        self._renewal = renewal
        self._lock = lock
        self._this_run = Run(context.journal.boot, secrets.token_hex(8), warnings, context.enclosures.possible())
        self._running: dict[str, Execution] = {}
        self._subscriptions = connect(access, name=f"agent-{context.agent}-control", max_connections=2)
        self._control = Control(context, self._subscriptions, self._running)
        self._lease = Lease(context.settings, access, self.heartbeat)
        self._write_back = WriteBack(context, self._lease.renew_soon)
        self._restoring = connect(access, name=f"agent-{context.agent}-restore", max_connections=2)
        context.lives.on_new_life(lambda: context.sent.restore(self._restoring))
        self._executions = TrackedTasks("execution.failed")
        self._cleaning = cleaning
        #: Orders that arrived before the take-over was prepared, at most one for each slot; None afterwards.
        self._early_orders: list[Order] | None = []
        self._stop_requested = asyncio.Event()
        #: True once the running executions were waited for, so that nothing starts any more.
        self._drained = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def open(cls, settings: WorkerSettings) -> Engine:
        """Open what an engine needs: identity, journal, cgroups, and the spawner, which is started if needed.

        Raises:
            ConfigurationError: one of them cannot be used, the identity is that of another agent, or another worker
                uses the data folder.
        """
        lock = FolderLock.acquire(settings.data)
        try:
            return cls._open(settings, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _open(cls, settings: WorkerSettings, lock: FolderLock) -> Engine:
        """Open what an engine needs in a locked data folder. Raises as `open`."""
        joined = Renewal.prepare(settings.identity)
        identity = open_identity(settings.identity)
        check_identity(identity, settings, remedy=f"; {REJOIN}" if joined is not None else "")
        access = settings.redis(identity)
        reserve = DiskReserve(settings.data)
        journal = Journal(settings.data, reserve)
        lives = Lives(journal, identity, settings.orchestrator)
        cgroups = detect(settings.agent_id, name=settings.cgroup_name, where=settings.cgroup)
        spawner = connect_spawner(settings)
        raise_limit()
        abilities = spawner.abilities()
        warnings = logged_warnings(cgroups, spawner.uid, abilities)
        cleaning = TrackedTasks("cleaning.failed")
        context = Context(
            settings=settings,
            redis=connect(access, name=f"agent-{settings.agent_id}", gate=lives),
            waiting_redis=connect(access, name=f"agent-{settings.agent_id}-input", max_connections=MAX_SESSIONS),
            journal=journal,
            reserve=reserve,
            lives=lives,
            sent=sent_output(settings),
            spawner=spawner,
            cgroups=cgroups,
            enclosures=Enclosures(settings, abilities),
            local_policy=PolicyWatch(settings.local_policy) if settings.local_policy else None,
            identity=identity,
            host=host_boot(),
            background=cleaning.start,
        )
        context.spools.mkdir(exist_ok=True, mode=0o700)
        context.sessions.mkdir(exist_ok=True, mode=0o700)
        renewal = None if joined is None else Renewal(Path(settings.identity or ""), joined, identity)
        return cls(context, access, cleaning, renewal, warnings, lock)

    # --- called from other threads ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the loop and the lease. Executions of an earlier run are taken over, or killed and reported."""
        unfinished = self._context.journal.unfinished()
        # Listed before any order creates a spool of its own.
        known = {execution.exec_id for execution in unfinished}
        for folder in (self._context.spools, self._context.sessions):
            for path in folder.iterdir():
                if path.name not in known:
                    path.unlink()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run_loop, args=(self._loop, unfinished), name="engine", daemon=True
        )
        self._thread.start()
        self._lease.start()

    def submit(self, exec_id: str, token: str, done: Callable[[], None]) -> None:
        """Run an order.

        Args:
            exec_id: the execution that the message names.
            token: the signed order.
            done: called on the engine's thread when the engine has no more work for the order.
        """
        assert self._loop is not None, "start first"
        self._loop.call_soon_threadsafe(self._accept, Order(exec_id, token, done))

    def wait_for_lease(self, check: Callable[[], None]) -> None:
        """Block until this worker holds its agent's lease; call `check` meanwhile, whose error ends the wait."""
        while not self._lease.held.wait(POLL_SECONDS):
            check()

    @property
    def stop_seconds(self) -> float:
        """Longest time that `stop` waits for running commands and their receipts."""
        graces = self._settings.stop_grace + self._settings.kill_grace
        return graces.total_seconds() + 2 * DELIVER_SECONDS

    def stop(self) -> None:
        """Wait for running commands, then kill them, report them, and close. Bounded, and safe to repeat."""
        if self._thread is None or self._loop is None:
            self._context.spawner.close()
            self._release()
            return
        for action, seconds in ((self._stop_requested.set, self.stop_seconds), (self._cancel, DELIVER_SECONDS)):
            if self._thread.is_alive():
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(action)
                self._thread.join(seconds)
        self._release()

    def _release(self) -> None:
        """Close the parts that need no event loop."""
        self._context.journal.close()
        self._context.reserve.close()
        self._context.identity.close()
        if self._lock is not None:
            self._lock.release()

    # --- the engine's thread ------------------------------------------------------------------------------------------

    def _run_loop(self, loop: asyncio.AbstractEventLoop, unfinished: list[Unfinished]) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                runner.run(self._serve(unfinished))
            except asyncio.CancelledError:
                log.error("engine.stop_timed_out", seconds=self.stop_seconds)
            except Exception:
                log.critical("engine.failed", exc_info=True)
                end_worker()

    def _cancel(self) -> None:
        """Cancel everything, because stopping took too long."""
        for task in asyncio.all_tasks():
            task.cancel()

    async def _serve(self, unfinished: list[Unfinished]) -> None:
        """Run until a stop is requested, then wait for running executions and close everything.

        A part that fails ends the worker: Celery's worker is asked to stop, and requests the stop of its pool.
        """
        try:
            async with supervised(*self._parts(unfinished)):
                await self._stop_requested.wait()
                await self._drain()
        except PartFailed:
            if not self._stop_requested.is_set():
                end_worker()
            await self._stop_requested.wait()
            await self._drain()
        await self._close()

    def _parts(self, unfinished: list[Unfinished]) -> list[Coroutine[object, object, object]]:
        """Return the background parts. The worker cannot do its work without any one of them."""
        self._context.spawner.attach()
        parts = {
            "takeover": self._take_over(unfinished),
            "control": self._control.run(),
            "policy": self._watch_policy(),
            "lease": self._lease.watch(),
            "lives": self._context.lives.watch(self._subscriptions, self._context.agent),
            "write-back": self._write_back.run(),
            "spawner": self._watch_spawner(),
            "tmp": drop_unused_tmp(self._context),
        }
        if self._renewal is not None:
            parts["renewal"] = self._renewal.run()
        return [named(name, part) for name, part in parts.items()]

    async def _drain(self) -> None:
        """Wait for running executions; kill those that run longer than the grace, and report them."""
        if not self._settings.leave_running:
            await self._executions.wait(self._settings.stop_grace.total_seconds())
            for execution in list(self._running.values()):
                execution.stop(Stop.SHUTDOWN)
            await self._executions.wait(self._settings.kill_grace.total_seconds() + DELIVER_SECONDS)
        # The rest is left to the next worker.
        self._drained = True
        await self._executions.cancel()

    async def _close(self) -> None:
        """Release everything, connections last."""
        # 1. The agent counts as offline from here on.
        await asyncio.to_thread(self._lease.stop)
        # 2. Cgroups and processes that are being released.
        await self._cleaning.wait(DELIVER_SECONDS)
        await self._cleaning.cancel()
        # 3. The spawner, if it holds no commands, and the agent's cgroups, unless another worker has the lease.
        await self._context.spawner.stop()
        if self._lease.held.is_set():
            self._context.cgroups.close()
        # 4. The journal's last rows, and the connections.
        await self._context.journal.flush()
        with suppress(RedisError, OSError):
            for redis in (self._subscriptions, self._restoring, self._context.waiting_redis, self._context.redis):
                await redis.aclose()

    # --- executions ---------------------------------------------------------------------------------------------------

    def _accept(self, order: Order) -> None:
        """Run an order, unless its execution runs already, or the engine is closing."""
        if self._early_orders is not None:
            self._early_orders.append(order)
            return
        if self._drained:
            # Nothing has claimed it, so the reaper ends it when its wait is over.
            log.warning("order.too_late", id=order.exec_id)
            order.done()
            return
        execution = Execution.of_order(self._context, order.exec_id, order.token)
        running = self._running.get(order.exec_id)
        if running is not None:
            # Not even prepared: the prepared cgroup has the name of the first delivery's.
            log.info("order.repeated", id=order.exec_id)
            if running.order_sha256 != execution.order_sha256:
                self._executions.start(execution.report_other_order(), name=order.exec_id)
            order.done()
            return
        self._track(execution, execution.run(order.since_ns), order.done)

    def _track(
        self, execution: Execution, work: Coroutine[object, object, None], done: Callable[[], None] | None = None
    ) -> None:
        """Start the work of an execution, and count it as running until it ends."""
        self._running[execution.exec_id] = execution

        async def run() -> None:
            error_reporting.concerns(execution.exec_id)
            try:
                await work
            finally:
                del self._running[execution.exec_id]
                if done is not None:
                    done()

        self._executions.start(run(), name=execution.exec_id)

    async def _take_over(self, unfinished: list[Unfinished]) -> None:
        """Continue the executions of an earlier run; kill and report those that cannot be continued.

        Args:
            unfinished: executions in the journal without a delivered receipt.
        """
        # Listed before any order creates a cgroup of its own.
        cgroups = self._context.cgroups.leftovers()
        held = {item.name: item for item in await self._context.spawner.held()}
        found = [find_spool(self._context, execution, held) for execution in unfinished]
        resumable = [item for item in found if isinstance(item, Resumable)]
        for item in resumable:
            self._resume(item)
        # From here on orders start commands, and none of those is in the lists above.
        early, self._early_orders = self._early_orders or [], None
        for order in early:
            self._accept(order)
        resumed = {item.unfinished.exec_id for item in resumable}
        spawner, hierarchy = self._context.spawner, self._context.cgroups
        await sweep_all(spawner, hierarchy, held.keys() - resumed, held)
        if others := {*cgroups} - resumed - held.keys():
            # Until this worker holds the lease, they may be those of another worker on this host that holds it.
            await self._lease.wait_until_held()
            await sweep_all(spawner, hierarchy, others, {})
        for given_up in found:
            if isinstance(given_up, GivenUp):
                self._executions.start(self._report_lost(given_up), name=given_up.unfinished.exec_id)

    def _resume(self, item: Resumable) -> None:
        execution = Execution.of_earlier_worker(self._context, item.unfinished.exec_id, item.unfinished.order_sha256)
        self._track(execution, execution.resume(item.spool, item.held))

    async def _report_lost(self, given_up: GivenUp) -> None:
        """Report an execution that cannot be continued as lost, and remove its spool."""
        exec_id = given_up.unfinished.exec_id
        error_reporting.concerns(exec_id)
        log.warning("execution.given_up", id=exec_id, reason=given_up.reason)
        execution = Execution.of_earlier_worker(self._context, exec_id, given_up.unfinished.order_sha256)
        await execution.report_lost(lost_reason(given_up))
        # A damaged one, or one whose first record a killed worker had not completed.
        (self._context.spools / exec_id).unlink(missing_ok=True)

    # --- other parts --------------------------------------------------------------------------------------------------

    def heartbeat(self) -> Heartbeat:
        """Return the agent's heartbeat of this moment. Called on other threads."""
        self._context.reserve.refill()
        # Before the take-over it is not known which executions the agent holds.
        held = None if self._early_orders is not None else list(self._running)
        identity, life = self._context.identity.current(), self._write_back.done
        return describe(self._settings, self._this_run, identity, len(self._running), held, life)

    async def _watch_policy(self) -> None:
        """Load the agent's own policy again whenever its file changes."""
        policies = self._context.local_policy
        while policies is not None:
            await asyncio.sleep(POLICY_SECONDS)
            if not await asyncio.to_thread(policies.reload):
                continue
            if policies.error:
                log.error("policy.kept", error=policies.error)
            else:
                log.info("policy.changed", digest=policies.current.digest)

    async def _watch_spawner(self) -> None:
        """Wait until the connection to the spawner is lost. The next start of the worker cleans up what it left.

        Raises:
            SpawnerGone: nothing can be started or ended without the spawner.
        """
        assert self._context.spawner.gone is not None
        await asyncio.shield(self._context.spawner.gone)
        raise SpawnerGone("the spawner is gone")
