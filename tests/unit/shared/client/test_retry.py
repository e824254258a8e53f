"""How long one call waits, for a limit and for a connection that broke."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta

import grpc
import grpc.aio
import pytest

from tachikoma.client.retry import BROKEN, STEADY_SECONDS, Attempts
from tachikoma.client.rpc_errors import STATUS_DETAILS, error_to_details
from tachikoma.errors import (
    AgentOffline,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServerError,
    TachikomaError,
    Unavailable,
)


class Clock:
    """A clock that moves only while a call waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waits.append(round(seconds, 6))
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    return clock


def rpc_error(code: grpc.StatusCode, sent: TachikomaError | None = None) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*([] if sent is None else [(STATUS_DETAILS, error_to_details(sent))]))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing)


def attempts(patience: float = 0, reconnect: float = 60, *, reached: bool = True) -> Attempts:
    made = Attempts(timedelta(seconds=patience), timedelta(seconds=reconnect))
    made.connected(reached)
    return made


async def fail(made: Attempts, error: TachikomaError, *, accepted: bool = False) -> None:
    """Let an attempt end with an error that the server raised."""
    await made.wait_or_raise(rpc_error(grpc.StatusCode[error.code], error), error, accepted=accepted)


async def break_connection(made: Attempts, *, accepted: bool = False) -> None:
    await made.wait_or_raise(rpc_error(grpc.StatusCode.UNAVAILABLE), Unavailable("broken"), accepted=accepted)


async def count(step: Callable[[], object]) -> int:
    """The number of attempts that are made after the first one."""
    repeated = 0
    while True:
        try:
            await step()  # type: ignore[misc]
        except TachikomaError:
            return repeated
        repeated += 1


@pytest.mark.parametrize("code", BROKEN)
async def test_a_broken_connection_is_tried_again_with_growing_delays(clock: Clock, code: grpc.StatusCode) -> None:
    made = attempts(reconnect=10)
    assert await count(lambda: made.wait_or_raise(rpc_error(code), ServerError("broken"))) == len(clock.waits)
    assert clock.waits[:6] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert sum(clock.waits) <= 10
    assert sum(clock.waits) + 2 > 10


@pytest.mark.parametrize(
    ("reached", "error", "known"),
    [
        (True, Unavailable("broken"), True),
        (False, Unavailable("broken"), False),
        (True, Unavailable("no Redis", metadata={"dependency": "redis"}), True),
        (True, ServerError("failed"), True),
        (True, AgentOffline("agent-1 is offline"), False),
        (True, PermissionDenied("no"), False),
    ],
)
async def test_an_error_names_the_execution_if_its_request_was_sent_and_not_answered(
    clock: Clock, reached: bool, error: TachikomaError, known: bool
) -> None:
    made = Attempts(timedelta(0), timedelta(0), "5f3a")
    made.connected(reached)
    with pytest.raises(type(error)) as raised:
        await fail(made, error)
    assert raised.value.metadata.get("id") == ("5f3a" if known else None)


async def test_a_refusal_after_a_request_that_may_have_arrived_names_the_execution(clock: Clock) -> None:
    made = Attempts(timedelta(0), timedelta(seconds=60), "job-7")
    made.connected(True)
    await break_connection(made)
    with pytest.raises(PermissionDenied) as denied:
        await fail(made, PermissionDenied("alice is revoked"))
    assert denied.value.metadata == {"id": "job-7"}


async def test_after_a_success_the_whole_time_is_available_again(clock: Clock) -> None:
    made = attempts(reconnect=1)
    first = await count(lambda: break_connection(made))
    made.succeeded()
    assert await count(lambda: break_connection(made)) == first > 0
    assert clock.waits == clock.waits[:first] * 2


async def test_answers_without_anything_new_gain_no_time(clock: Clock) -> None:
    made = attempts(reconnect=10)

    async def answered_then_failed() -> None:
        made.answered()
        await fail(made, Unavailable("refuses"), accepted=True)

    repeated = await count(answered_then_failed)
    assert clock.waits[:3] == [0.1, 0.2, 0.4]
    assert 9 < sum(clock.waits) <= 10
    # A call that lasts shows that the connection works.
    made.answered()
    clock.now += STEADY_SECONDS
    assert await count(lambda: fail(made, Unavailable("refuses"), accepted=True)) == repeated


async def test_a_call_that_must_not_be_repeated_is_not(clock: Clock) -> None:
    with pytest.raises(Unavailable, match="broken"):
        await break_connection(attempts(reconnect=0))
    assert clock.waits == []


async def test_a_server_that_was_never_reached_is_not_waited_for(clock: Clock) -> None:
    made = attempts(reached=False)
    with pytest.raises(Unavailable):
        await break_connection(made)
    # Once there was a connection, it is.
    made.connected(True)
    made.connected(False)
    await break_connection(made)
    assert clock.waits == [0.1]


@pytest.mark.parametrize("error", [AgentOffline("offline"), Unavailable("stopping"), NotFound("gone")])
async def test_an_answer_of_the_server_is_final(clock: Clock, error: TachikomaError) -> None:
    with pytest.raises(type(error)) as raised:
        await fail(attempts(patience=60), error)
    assert raised.value is error
    assert isinstance(raised.value.__cause__, grpc.aio.AioRpcError)
    assert clock.waits == []


async def test_a_server_that_stops_is_waited_for_once_it_accepted_the_request(clock: Clock) -> None:
    await fail(attempts(), Unavailable("stopping"), accepted=True)
    await break_connection(attempts(reached=False), accepted=True)
    assert clock.waits == [0.1, 0.1]
    with pytest.raises(AgentOffline):
        await fail(attempts(), AgentOffline("offline"), accepted=True)


async def test_a_limit_is_waited_for_as_long_as_it_says(clock: Clock) -> None:
    made = attempts(patience=10)
    refusal = ResourceExhausted("limit", retry_after_seconds=3)
    assert await count(lambda: fail(made, refusal)) == 3
    assert clock.waits == [3, 3, 3]


async def test_a_limit_that_names_no_delay_is_asked_again_each_second(clock: Clock) -> None:
    made = attempts(patience=2.5)
    assert await count(lambda: fail(made, ResourceExhausted("limit"))) == 2
    assert clock.waits == [1, 1]


async def test_without_patience_a_limit_is_raised_at_once(clock: Clock) -> None:
    with pytest.raises(ResourceExhausted):
        await fail(attempts(), ResourceExhausted("limit", retry_after_seconds=0.1))
    assert clock.waits == []


async def test_no_limit_is_waited_for_after_the_request_was_accepted(clock: Clock) -> None:
    with pytest.raises(ResourceExhausted):
        await fail(attempts(patience=60), ResourceExhausted("limit"), accepted=True)
    assert clock.waits == []
