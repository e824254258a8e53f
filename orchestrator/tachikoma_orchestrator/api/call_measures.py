"""Measures and traces the calls of the API, by RPC and gRPC status code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from redis.exceptions import RedisError

from tachikoma.config import tracing
from tachikoma.config.tracing import Kind
from tachikoma.errors import TachikomaError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.trace_context import METADATA_KEY, TraceParent
from tachikoma_orchestrator.metrics import CALL_SECONDS, CALLS

__all__ = ["Answer", "measured"]


class Answer:
    """The messages that a call has answered with."""

    #: True once the last message of an execution is sent: a caller that then leaves has cancelled nothing.
    complete = False

    def sent(self, message: Message) -> None:
        """Note a message that is sent now."""
        self.complete = isinstance(message, pb.ExecOutput) and message.HasField("result")


@contextmanager
def measured(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[Answer]:
    """Count, time and trace the call that the block makes; `method` is its full name, `/package.Service/Rpc`."""
    answer, rpc, begun, code = Answer(), method.rpartition("/")[2], time.monotonic(), "OK"
    attributes = {"rpc.system.name": "grpc"}
    with tracing.span(method.removeprefix("/"), attributes, kind=Kind.SERVER, parent=_parent(context)):
        try:
            yield answer
        except BaseException as error:
            left = answer.complete and isinstance(error, asyncio.CancelledError | GeneratorExit)
            code = "OK" if left else _code(error)
            raise
        finally:
            CALLS.labels(rpc, code).inc()
            CALL_SECONDS.labels(rpc).observe(time.monotonic() - begun)
            tracing.note({"rpc.response.status_code": code})


def _parent(context: grpc.aio.ServicerContext[Any, Any]) -> TraceParent | None:
    """Return the caller's span, or None if the call names none in the form of W3C Trace Context."""
    values = [value for key, value in context.invocation_metadata() or () if key == METADATA_KEY]
    # The last one: libraries that trace a program's calls append to what the client wrote.
    return TraceParent.parse(str(values[-1])) if values else None


def _code(error: BaseException) -> str:
    """Return the status code with which a call ends for an error."""
    if isinstance(error, TachikomaError):
        return error.code
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    return "UNAVAILABLE" if isinstance(error, RedisError | OSError) else "INTERNAL"
