"""The engine starts and stops with Celery's worker."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from celery.exceptions import WorkerShutdown
from celery.worker import state

from tachikoma_worker.pool import EnginePool
from tachikoma_worker.turns import Turns


class Engine:
    """Records what it was asked, and is done at once."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def start(self) -> None:
        self.calls.append(("start",))

    def wait_for_lease(self, check: Callable[[], None]) -> None:
        self.calls.append(("wait",))
        check()

    def stop(self) -> None:
        self.calls.append(("stop",))


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def pool(engine: Engine) -> EnginePool:
    return EnginePool(5, app=SimpleNamespace(tachikoma_engine=engine, tachikoma_turns=Turns(5)))


def test_a_stop_that_is_requested_while_the_lease_is_awaited_stops_the_engine(
    pool: EnginePool, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "should_stop", 0)
    with pytest.raises(WorkerShutdown):
        pool.on_start()
    assert engine.calls == [("start",), ("wait",), ("stop",)]


def test_the_engine_starts_and_stops_with_the_pool(pool: EnginePool, engine: Engine) -> None:
    pool.on_start()
    pool.on_stop()
    pool.on_terminate()
    assert engine.calls == [("start",), ("wait",), ("stop",), ("stop",)]


def test_the_turns_wake_the_hub_of_the_latest_connection(pool: EnginePool) -> None:
    woken: list[str] = []
    for name in ("first", "second"):
        pool.register_with_event_loop(SimpleNamespace(call_later=lambda *_, name=name: woken.append(name)))
        pool._turns.wake_after(1)
    assert woken == ["first", "second"]
