"""A gRPC channel whose calls are part of the caller's trace, outside of which they are as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import grpc.aio

from tachikoma.config import tracing
from tachikoma.vocabulary.trace_context import METADATA_KEY

__all__ = ["traced"]


def traced(channel: grpc.aio.Channel) -> grpc.aio.Channel:
    """Return the channel for a stub: its calls name their span in their metadata.

    Not by interceptors, which replace the call objects of gRPC by others with fewer abilities.
    """
    return cast("grpc.aio.Channel", _Traced(channel))


class _Traced:
    """The methods of a channel that stubs use."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, method: str, *args: Any, **options: Any) -> Callable[..., Any]:
        return _calls(method, self._channel.unary_unary(method, *args, **options))

    def unary_stream(self, method: str, *args: Any, **options: Any) -> Callable[..., Any]:
        return _calls(method, self._channel.unary_stream(method, *args, **options))

    def stream_stream(self, method: str, *args: Any, **options: Any) -> Callable[..., Any]:
        return _calls(method, self._channel.stream_stream(method, *args, **options))


def _calls(method: str, make: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        span = tracing.begin_call(method)
        if span is None:
            return make(*args, **options)
        made = make(*args, metadata=((METADATA_KEY, str(span.parent)),), **options)
        made.add_done_callback(lambda _: span.end())
        return made

    return call
