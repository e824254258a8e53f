"""Measures the calls of the API, by RPC and gRPC status code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from tachikoma.errors import TachikomaError
from tachikoma_orchestrator.metrics import CALL_SECONDS, CALLS

__all__ = ["measured"]


@contextmanager
def measured(method: str) -> Iterator[None]:
    """Count and time the call that the block makes; `method` is its full name, `/package.Service/Rpc`."""
    rpc, begun, code = method.rpartition("/")[2], time.monotonic(), "OK"
    try:
        yield
    except BaseException as error:
        code = _code(error)
        raise
    finally:
        CALLS.labels(rpc, code).inc()
        CALL_SECONDS.labels(rpc).observe(time.monotonic() - begun)


def _code(error: BaseException) -> str:
    """Return the status code with which a call ends for an error."""
    if isinstance(error, TachikomaError):
        return error.code
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    return "UNAVAILABLE" if isinstance(error, RedisError | OSError) else "INTERNAL"
