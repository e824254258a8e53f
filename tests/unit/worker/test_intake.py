"""Of a message, only its order and its execution id reach the engine, and each order occupies a slot until its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.redis.keys import EXECUTE_TASK
from tachikoma_worker.intake import Intake, read_order
from tachikoma_worker.turns import Turns

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


class Engine:
    """Records the orders that it gets, and is done with them when a test says so."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, str]] = []
        self.done: list[Callable[[], None]] = []

    def submit(self, exec_id: str, token: str, done: Callable[[], None]) -> None:
        self.orders.append((exec_id, token))
        self.done.append(done)


class Hub:
    """Celery's hub, which calls nothing before a test lets it."""

    def __init__(self) -> None:
        self.called: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        self.called.append(lambda: callback(*args))


def message(body: Any = None, **headers: Any) -> dict[str, Any]:
    return {
        "body": json.dumps([["order"], {}, {}] if body is None else body),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": EXECUTE_TASK, "id": "web-1.job-7", **headers},
        "properties": {"reply_to": "x", "delivery_info": {"routing_key": "agent.web-2"}},
    }


def test_order_and_execution_are_passed_on() -> None:
    engine = Engine()
    Intake(engine, Turns(16)).take(message(), "agent.web-1")
    assert engine.orders == [("job-7", "order")]


def test_everything_else_in_a_message_is_left_out() -> None:
    hostile = message(
        [["order"], {"x": 1}, {"chord": {}, "callbacks": [{"task": "evil"}]}],
        eta="2030-01-01", compression="zlib", group="g", retries=3, timelimit=[1, 1], expires="x",
    )  # fmt: skip
    assert read_order(hostile) == ("job-7", "order")


def test_an_order_occupies_a_slot_until_the_hub_learns_of_its_end() -> None:
    engine, turns, hub = Engine(), Turns(16), Hub()
    turns.use(hub)
    intake = Intake(engine, turns)
    for _ in range(15):
        intake.take(message(), "busy")
    assert turns.open(["busy", "other"]) == ["other"]
    # On the engine's thread; the slots belong to the hub's.
    for done in engine.done:
        done()
    assert turns.open(["busy", "other"]) == ["other"]
    for callback in hub.called:
        callback()
    assert turns.open(["busy", "other"]) == ["busy", "other"]


@pytest.mark.parametrize(
    "wrong",
    [
        message(task="other"),
        {**message(), "content-type": "application/x-python-serialize"},
        message([["a", "b"], {}, {}]),
        message([[1], {}, {}]),
        message([["\xe9"], {}, {}]),
        message([["order"], {}]),
        message(id=None),
        message(id=["x"]),
        message(id="no-dot"),
        {**message(), "body": "["},
        {"body": ""},
        {**message(), "headers": None},
    ],
)
def test_a_message_that_the_orchestrator_does_not_make_is_refused_and_occupies_no_slot(wrong: dict[str, Any]) -> None:
    engine, turns = Engine(), Turns(1)
    with pytest.raises((ValueError, TypeError, KeyError)):
        Intake(engine, turns).take(wrong, "agent.web-1")
    assert engine.orders == []
    assert turns.open(["agent.web-1"]) == ["agent.web-1"]


@given(JSON, st.dictionaries(st.sampled_from(["task", "id", "eta", "x"]), JSON, max_size=4))
def test_no_body_and_no_header_gets_anything_else_through(body: Any, headers: dict[str, Any]) -> None:
    try:
        exec_id, order = read_order(message(body, **headers))
    except (ValueError, TypeError, KeyError):
        return
    assert isinstance(exec_id, str)
    assert isinstance(order, str)
    assert headers.get("task", EXECUTE_TASK) == EXECUTE_TASK
