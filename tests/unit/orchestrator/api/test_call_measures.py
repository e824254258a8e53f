"""Calls are counted by RPC and by the status code with which they end."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from metric_values import value
from tachikoma.errors import NotFound, Unavailable
from tachikoma_orchestrator.api.call_measures import measured


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, "OK"),
        (NotFound("no such execution"), "NOT_FOUND"),
        (Unavailable("no Redis"), "UNAVAILABLE"),
        (RedisConnectionError("refused"), "UNAVAILABLE"),
        (OSError("reset"), "UNAVAILABLE"),
        (ValueError("a defect"), "INTERNAL"),
        (asyncio.CancelledError(), "CANCELLED"),
        (GeneratorExit(), "CANCELLED"),
    ],
)
def test_a_call_is_counted_once_with_its_code(error: BaseException | None, code: str) -> None:
    labels = {"rpc": "Test", "code": code}
    calls, times = value("tachikoma_calls_total", **labels), value("tachikoma_call_seconds_count", rpc="Test")

    def call() -> None:
        with measured("/tachikoma.exec.v1.RemoteExecution/Test"):
            if error is not None:
                raise error

    if error is None:
        call()
    else:
        with pytest.raises(type(error)):
            call()
    assert value("tachikoma_calls_total", **labels) == calls + 1
    assert value("tachikoma_call_seconds_count", rpc="Test") == times + 1
