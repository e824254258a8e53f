"""Of a message, only its order and its task id reach Celery."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.redis.keys import EXECUTE_TASK
from tachikoma_worker.transport import plain

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def message(body: Any = None, **headers: Any) -> dict[str, Any]:
    return {
        "body": json.dumps([["order"], {}, {}] if body is None else body),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": EXECUTE_TASK, "id": "web-1.job-7", **headers},
        "properties": {"reply_to": "x", "delivery_info": {"routing_key": "agent.web-2"}},
    }


def test_order_and_task_id_are_passed_on() -> None:
    found = plain(message(), "agent.web-1")
    assert json.loads(found["body"]) == [["order"], {}, {}]
    assert found["headers"]["id"] == "web-1.job-7"
    assert found["properties"]["delivery_info"] == {"exchange": "", "routing_key": "agent.web-1"}


def test_everything_else_in_a_message_is_left_out() -> None:
    hostile = message(
        [["order"], {"x": 1}, {"chord": {}, "callbacks": [{"task": "evil"}]}],
        eta="2030-01-01", compression="zlib", group="g", retries=3, timelimit=[1, 1], expires="x",
    )  # fmt: skip
    found = plain(hostile, "agent.web-1")
    assert set(found["headers"]) == {"task", "id", "lang", "ignore_result"}
    assert json.loads(found["body"]) == [["order"], {}, {}]
    assert "reply_to" not in found["properties"]


def test_each_message_has_a_tag_of_its_own() -> None:
    tags = {plain(message(), "q")["properties"]["delivery_tag"] for _ in range(20)}
    assert len(tags) == 20


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
        {**message(), "body": "["},
        {"body": ""},
        {**message(), "headers": None},
    ],
)
def test_a_message_that_the_orchestrator_does_not_make_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        plain(wrong, "agent.web-1")


@given(JSON, st.dictionaries(st.sampled_from(["task", "id", "eta", "x"]), JSON, max_size=4))
def test_no_body_and_no_header_gets_anything_else_through(body: Any, headers: dict[str, Any]) -> None:
    try:
        found = plain(message(body, **headers), "q")
    except (ValueError, TypeError, KeyError):
        return
    (order,), arguments, options = json.loads(found["body"])
    assert isinstance(order, str)
    assert arguments == options == {}
    assert found["headers"]["task"] == EXECUTE_TASK
