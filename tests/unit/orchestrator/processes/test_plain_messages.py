"""Messages of the submitter's queues, reduced to their trusted parts."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.celery import TASK_NAME
from tachikoma.redis import keys
from tachikoma.redis.keys import DUE_TASK
from tachikoma_orchestrator.processes.plain_messages import plain

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


def message(queue: str = keys.SUBMIT, body: Any = None, **changes: Any) -> dict[str, Any]:
    """A message as Celery makes it."""
    content = [["token"], {"check": False}, {"callbacks": ["c"], "chord": None}] if body is None else body
    headers = {"id": "t1", "task": TASK_NAME if queue == keys.SUBMIT else DUE_TASK, "root_id": "r", "group": None}
    return {
        "body": base64.b64encode(json.dumps(content).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers | changes.pop("headers", {}),
        "properties": {"body_encoding": "base64", "delivery_info": {}} | changes.pop("properties", {}),
        **changes,
    }


def test_a_request_keeps_its_arguments_its_workflow_and_its_follow_ups() -> None:
    found = plain(message(), keys.SUBMIT)
    assert json.loads(found["body"]) == [
        ["token"],
        {"check": False},
        {"callbacks": ["c"], "errbacks": None, "chain": None, "chord": None},
    ]
    assert found["headers"] == {
        "id": "t1", "task": TASK_NAME, "root_id": "r", "lang": "py", "argsrepr": "...", "kwargsrepr": "...",
    }  # fmt: skip


def test_nothing_else_of_a_message_reaches_celery() -> None:
    """Each of these would make Celery do something in the name of the submitter."""
    harmful = {"eta": "2030-01-01T00:00:00", "expires": 1, "retries": 99, "timelimit": [1, 1], "shadow": "x"}
    found = plain(
        message(
            headers=harmful,
            properties={"reply_to": "orders", "correlation_id": "x", "priority": 9, "delivery_tag": "forged"},
            **{"content-encoding": "utf-7"},
        ),
        keys.SUBMIT,
    )
    assert not found["headers"].keys() & harmful.keys()
    assert found["properties"].keys() == {"delivery_mode", "delivery_tag", "delivery_info"}
    assert found["properties"]["delivery_tag"] != "forged"
    assert found["properties"]["delivery_info"] == {"exchange": "", "routing_key": keys.SUBMIT, "redelivered": False}
    assert found["content-encoding"] == "utf-8"


def test_nothing_follows_a_hint_of_beat() -> None:
    found = plain(message(keys.BATCH), keys.BATCH)
    assert json.loads(found["body"])[2] == {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    assert "root_id" not in found["headers"]


@pytest.mark.parametrize(("given_", "kept"), [(True, True), (False, False), ("yes", False), (1, False), (None, False)])
def test_a_redelivered_message_stays_one(given_: object, kept: bool) -> None:
    found = plain(message(properties={"delivery_info": {"redelivered": given_}}), keys.SUBMIT)
    assert found["properties"]["delivery_info"]["redelivered"] is kept


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (message(**{"content-type": "application/x-python-serialize"}), "is not JSON"),
        (message(headers={"task": "os.system"}), "is not a task of"),
        (message(headers={"task": DUE_TASK}), "is not a task of"),
        (message(headers={"id": 7}), "has no id"),
        (message(body=[{}, {}, {}]), "has no arguments"),
        (message(body=[[], [], {}]), "has no arguments"),
        (message(body=7), "cannot unpack"),
        ({**message(), "body": "%%%"}, ""),
        ({"body": ""}, "headers"),
    ],
)
def test_a_message_of_another_kind_is_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)) as caught:
        plain(wrong, keys.SUBMIT)
    assert reason in str(caught.value)


@given(JSON, JSON, JSON)
def test_any_message_is_plain_or_refused(body: Any, headers: Any, properties: Any) -> None:
    wrong = {"body": json.dumps(body), "content-type": "application/json", "headers": headers, "properties": properties}
    with pytest.raises((ValueError, TypeError, KeyError)):
        plain(wrong, keys.SUBMIT)
    found = plain(message(body=[[body], {"k": headers}, {}]), keys.SUBMIT)
    assert json.loads(found["body"])[:2] == [[body], {"k": headers}]
