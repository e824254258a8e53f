"""What an event holds: nothing of what somebody wrote, and enough to find the mistake."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tachikoma.config import error_events
from tachikoma.config.error_events import EVENTS_PER_MINUTE, MAX_EXCEPTIONS, MAX_FRAMES
from tachikoma.errors import NotFound

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute that has just begun, no tags of a process that another test set up, and no settings of this machine."""
    monkeypatch.setattr(error_events, "budget", error_events.Budget())
    monkeypatch.setattr(error_events, "process_tags", {})
    for name in ("DSN", "DSN_FILE", "ENVIRONMENT"):
        monkeypatch.delenv(f"TACHIKOMA_SENTRY_{name}", raising=False)


def event_of(error: BaseException, **collected: Any) -> Any:
    """What becomes of an exception; everything that Sentry itself collects of it is thrown away."""
    collected = {
        "event_id": "1",
        "extra": {"argv": SECRET},
        "user": {"name": SECRET},
        "modules": {SECRET: "1"},
        **collected,
    }
    return error_events.before_send(collected, {"exc_info": (type(error), error, error.__traceback__)})


class CallFailed(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (ValueError(SECRET), ""),
        (KeyError(SECRET), ""),
        (OSError(SECRET), ""),
        (FileNotFoundError(2, SECRET, SECRET), "[Errno 2] No such file or directory"),
        (ResponseError(f"WRONGTYPE {SECRET}"), "WRONGTYPE"),
        (ResponseError(f"{SECRET} WRONGTYPE"), ""),
        (ResponseError("HUNTER2 is a word in capitals too"), ""),
        (RedisConnectionError(f"Error 111 connecting to {SECRET}"), ""),
        (NotFound(SECRET), "NOT_FOUND"),
        (CallFailed(SECRET), "UNAVAILABLE"),
        (grpc.RpcError(SECRET), ""),
    ],
)
def test_of_a_text_only_what_is_from_a_closed_list_is_told(error: BaseException, detail: str) -> None:
    event = event_of(error)
    assert [value["value"] for value in event["exception"]["values"]] == [detail]
    assert "hunter2" not in json.dumps(event).lower()


def test_an_error_of_sqlite_is_told_by_its_name() -> None:
    with sqlite3.connect(":memory:") as database, pytest.raises(sqlite3.Error) as caught:
        database.execute("SELECT hunter2")
    database.close()
    assert event_of(caught.value)["exception"]["values"][0]["value"] == "SQLITE_ERROR"


@given(st.text(min_size=6, alphabet=st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF)), st.data())
def test_whatever_is_in_texts_tags_and_variables_is_not_in_the_event(secret: str, data: st.DataObject) -> None:
    error_events.budget = error_events.Budget()
    kind = data.draw(st.sampled_from([ValueError, KeyError, OSError, ResponseError, RuntimeError, NotFound, Exception]))
    try:
        try:
            raise kind(secret)
        except Exception as error:
            raise ExceptionGroup(secret, [error, kind(secret)]) from error
    except Exception as error:
        event = event_of(
            error,
            tags={"execution": secret, "agent": secret, "event": secret, secret: secret},
            message=secret,
            breadcrumbs={"values": [{"message": secret}]},
            exception={
                "values": [{"value": secret, "mechanism": {"type": "excepthook", "handled": False, "data": secret}}]
            },
        )
    assert secret not in json.dumps(event, ensure_ascii=False)
    assert event["tags"] == {}
    assert event["exception"]["values"][-1]["mechanism"] == {"type": "excepthook", "handled": False}


def test_an_exception_is_told_with_its_causes_and_members_each_once() -> None:
    first, second = ValueError(), KeyError()
    first.__cause__ = second
    second.__context__ = first
    group = ExceptionGroup("", [first, second, TypeError()])
    kinds = [value["type"] for value in event_of(group)["exception"]["values"]]
    assert kinds == ["TypeError", "KeyError", "ValueError", "ExceptionGroup"]


def test_an_event_is_bounded() -> None:
    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        deep(3 * MAX_FRAMES)
    error: BaseException = caught.value
    for _ in range(2 * MAX_EXCEPTIONS):
        outer = RuntimeError()
        outer.__cause__, error = error, outer
    values = event_of(error)["exception"]["values"]
    assert len(values) == MAX_EXCEPTIONS
    (frames,) = [value["stacktrace"]["frames"] for value in event_of(caught.value)["exception"]["values"]]
    assert len(frames) == MAX_FRAMES


def test_what_is_reported_already_or_was_asked_for_is_no_event() -> None:
    error = ValueError()
    assert event_of(error) is not None
    assert event_of(error) is None
    assert event_of(KeyboardInterrupt()) is None


def test_a_minute_has_so_many_events_and_then_comes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("tachikoma.config.error_events.time.monotonic", lambda: now)
    told = [event_of(ValueError()) is not None for _ in range(2 * EVENTS_PER_MINUTE)]
    assert told == [True] * EVENTS_PER_MINUTE + [False] * EVENTS_PER_MINUTE
    now += 60
    assert event_of(ValueError()) is not None
