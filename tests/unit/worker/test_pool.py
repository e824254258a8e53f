"""The Celery pool hands orders to the engine, and never raises into Celery's loop."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import WorkerShutdown
from celery.worker import state
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.redis import keys
from tachikoma_worker.pool import EnginePool, queue_of, read_order
from tachikoma_worker.turns import Turns

TASK_ID = keys.task_id("web-1", "job-7")


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

    def submit(self, exec_id: str, token: str, done: Callable[[], None]) -> None:
        self.calls.append(("submit", exec_id, token))
        done()


class Hub:
    """Celery's hub, which records what it was asked to call."""

    def __init__(self) -> None:
        self.called: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.called.append(callback)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def pool(engine: Engine, hub: Hub) -> EnginePool:
    made = EnginePool(5, app=SimpleNamespace(tachikoma_engine=engine, tachikoma_turns=Turns(5)))
    made.register_with_event_loop(hub)
    return made


def test_an_order_is_accepted_and_handed_over(pool: EnginePool, engine: Engine, hub: Hub) -> None:
    accepted: list[int] = []
    results: list[object] = []
    arguments = (keys.EXECUTE_TASK, TASK_ID, {"args": ["token"]})
    pool.on_apply(print, arguments, callback=results.append, accept_callback=lambda pid, _: accepted.append(pid))
    assert engine.calls == [("submit", "job-7", "token")]
    assert len(accepted) == 1
    # Through the hub, which it wakes: the engine is done on another thread.
    assert results == []
    (ended,) = hub.called
    ended()
    assert results == [(False, None, 0.0)]


def test_a_slot_counts_for_the_queue_of_its_order_until_the_hub_learns_of_its_end(hub: Hub) -> None:
    turns = Turns(16)
    pool = EnginePool(16, app=SimpleNamespace(tachikoma_engine=Engine(), tachikoma_turns=turns))
    pool.register_with_event_loop(hub)
    request = {"args": ["token"], "delivery_info": {"routing_key": "busy"}}
    for _ in range(15):
        pool.on_apply(print, (keys.EXECUTE_TASK, TASK_ID, request))
    assert turns.open(["busy", "other"]) == ["other"]
    for ended in hub.called:
        ended()
    assert turns.open(["busy", "other"]) == ["busy", "other"]


@pytest.mark.parametrize("arguments", [None, (), ("task", TASK_ID, None), ("task", TASK_ID, {"delivery_info": 7})])
def test_a_message_without_a_queue_counts_for_none(arguments: Any) -> None:
    assert queue_of(arguments) == ""


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        (),
        ("task", TASK_ID),
        ("task", TASK_ID, None),
        ("task", TASK_ID, {}),
        ("task", TASK_ID, {"args": []}),
        ("task", TASK_ID, {"args": ["a", "b"]}),
        ("task", TASK_ID, {"args": [7]}),
        ("task", "no-dot", {"args": ["token"]}),
        ("task", 7, {"args": ["token"]}),
    ],
)
def test_a_message_that_is_no_order_is_done_at_once(pool: EnginePool, engine: Engine, hub: Hub, arguments: Any) -> None:
    pool.on_apply(print, arguments, callback=print)
    assert engine.calls == []
    assert len(hub.called) == 1


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


@given(st.text(), st.lists(st.text() | st.integers(), max_size=3))
def test_no_task_id_and_no_arguments_raise_anything_else(task_id: str, args: list[Any]) -> None:
    try:
        exec_id, token = read_order(("task", task_id, {"args": args}))
    except (ValueError, TypeError):
        return
    assert task_id.endswith(exec_id)
    assert token == args[0]
