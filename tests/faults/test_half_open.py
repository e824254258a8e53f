"""Peers that stop answering without closing: client, Redis and agent are noticed, and work goes on.

Connections that exist are swallowed by relays; new ones work. So nothing is noticed but by silence.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from support import AGENT, prepare, request, wait_until
from world import Job, Observer, World, end_of, submit

from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecState
from tachikoma.config.channels import KEEPALIVE_OPTIONS
from tachikoma.config.tasks import cancel_all
from tachikoma.redis.access import OPERATION_SECONDS
from tachikoma.redis.celery_broker import HEALTH_SECONDS
from tachikoma_orchestrator.processes import server, submitter_app
from tachikoma_orchestrator.store import subscriber
from tachikoma_worker.engine import control
from tachikoma_worker.settings import WorkerSettings

T = TypeVar("T")

#: In which a peer that is silent is noticed.
BOUND_SECONDS = 15


class TcpRelay:
    """A relay to an address, in a thread of its own, that can forget its connections. A context manager."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._upstream = host, int(port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._live: list[Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        #: Set when the server has closed a connection that was forgotten.
        self.closed_by_server = threading.Event()
        self.address = ""

    def __enter__(self) -> TcpRelay:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        async def close() -> None:
            self._server.close()
            await cancel_all(self._tasks)

        self._do(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_SECONDS)
        self._loop.close()

    def _do(self, action: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(action, self._loop).result(PATIENCE_SECONDS)

    def forget(self) -> None:
        """Swallow the bytes of every connection there is; new ones work."""
        for connection in self._live:
            connection.half_open = True

    @property
    def connections(self) -> int:
        """How many there have been."""
        return len(self._live)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        connection = Connection(self)
        self._live.append(connection)
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        try:
            # The end of the test is no error of the stream's callback.
            with suppress(asyncio.CancelledError):
                await asyncio.gather(
                    connection.pump(reader, up_writer, from_server=False),
                    connection.pump(up_reader, writer, from_server=True),
                )
        finally:
            writer.close()
            up_writer.close()
            self._tasks.discard(task)


class Connection:
    """A connection through a relay."""

    def __init__(self, relay: TcpRelay) -> None:
        self._relay = relay
        self.half_open = False

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_server: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if not self.half_open:
                    writer.write(data)
        if not self.half_open:
            writer.close()
        elif from_server:
            self._relay.closed_by_server.set()


def test_silence_is_noticed_within_the_bound_by_each_kind_of_connection() -> None:
    keepalive = dict(KEEPALIVE_OPTIONS)
    milliseconds = {
        "client": keepalive["grpc.keepalive_time_ms"] + keepalive["grpc.http2.ping_timeout_ms"],
        "server": server.KEEPALIVE_MS + server.KEEPALIVE_TIMEOUT_MS,
    }
    poll = WorkerSettings.model_fields["poll"].default
    assert isinstance(poll, timedelta)
    seconds = {
        "a command of asyncio": 2 * OPERATION_SECONDS,
        "the orchestrator's subscription": subscriber.IDLE_SECONDS + subscriber.ANSWER_SECONDS,
        "the agent's control channel": control.IDLE_SECONDS + control.ANSWER_SECONDS,
        "the agent's queue": poll.total_seconds() + 2 * HEALTH_SECONDS,
        "the submitter's queue": submitter_app.POLL_SECONDS + 2 * HEALTH_SECONDS,
    }
    assert {name: value for name, value in milliseconds.items() if value > BOUND_SECONDS * 1000} == {}
    assert {name: value for name, value in seconds.items() if value > BOUND_SECONDS} == {}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[World]:
    # What is queued waits, and the agent counts as online, until the silence is noticed.
    environment = {"TACHIKOMA_LEASE": "45s", "TACHIKOMA_POLL": "5s"}
    data = prepare(tmp_path_factory.mktemp("half-open"))
    with World(data, redis_server=redis_server, queue_timeout="60s", environment=environment) as running:
        yield running


def test_work_goes_on_when_every_connection_of_orchestrator_agent_and_client_is_half_open(
    world: World, tmp_path: Path
) -> None:
    go, later = tmp_path / "go", tmp_path / "later"
    watched, waiting = Job.make(tmp_path, "watched", go=later), Job.make(tmp_path, "waiting", go=go)
    queued = Job.make(tmp_path, "queued")
    cancelled = request("sleep", "600", id="cancelled", timeout="10m")
    with TcpRelay(world.address) as relay, Client(world.profile()) as direct, ThreadPoolExecutor(4) as threads:
        behind = Client(replace(world.profile(), address=relay.address))
        for job in (watched, waiting):
            submit(direct, job)
        direct.submit(cancelled)
        end_of_watched = threads.submit(end_of, behind, watched)
        for job in (watched, waiting):
            wait_until(lambda job=job: direct.status(job.id).state is ExecState.STARTED, f"{job.id} runs")
        wait_until(lambda: direct.status("cancelled").state is ExecState.STARTED, "it runs")
        wait_until(lambda: relay.connections > 0, "the watching client is connected")

        relay.forget()
        for name in ("orchestrator", AGENT):
            world.relays.do(world.relays[name].forget())
        go.touch()
        # Sent on the orchestrator's connections, taken from the agent's queue and from its control channel.
        submit(direct, queued)
        direct.cancel("cancelled")

        assert end_of(direct, queued) is ExecState.SUCCEEDED
        assert end_of(direct, waiting) is ExecState.SUCCEEDED
        wait_until(lambda: direct.status("cancelled").state is ExecState.CANCELLED, "it is cancelled")
        # The server closes its end by itself, and the client connects anew and gets the whole output.
        assert relay.closed_by_server.wait(PATIENCE_SECONDS)
        later.touch()
        assert end_of_watched.result(PATIENCE_SECONDS) is ExecState.SUCCEEDED
        assert relay.connections > 1
        behind.close()
    Observer(world, [watched, waiting, queued]).check()
