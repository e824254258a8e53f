"""Executions of `tachikoma exec` whose output goes to the terminal: the most usual ones, which start fastest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from tachikoma.cli.commands.following import follow
from tachikoma.cli.messages import write_message
from tachikoma.client.plain import PlainClient, PlainMessage, PlainRequest, PlainResult
from tachikoma.exec.v1 import remote_execution_pb2 as pb

__all__ = ["ordinary_request", "run"]


def ordinary_request(values: dict[str, Any], stdin: bytes) -> pb.ExecRequest | None:
    """Return the message for a request.

    Args:
        values: the fields of the request, without its input.
        stdin: its input.

    Returns:
        The message; None if the request has other fields than `PlainRequest`, or one that is out of its bounds.
    """
    if not values.keys() <= PlainRequest.__dataclass_fields__.keys():
        return None
    return PlainRequest(**values | {"command": tuple(values["command"]), "stdin": stdin}).message()


def run(request: pb.ExecRequest) -> int:
    """Run a request and return the exit code of this program."""
    return asyncio.run(_run(request))


async def _run(request: pb.ExecRequest) -> int:
    async with PlainClient() as client:
        showing = _show(client.execute_stream(request))
        return await follow(showing, client.cancel, request.id, request.agent_id, request.command)


async def _show(stream: AsyncIterator[PlainMessage]) -> PlainResult | None:
    """Write an execution's output, and return its result."""
    result = None
    async for message in stream:
        result = message.result or result
        await write_message(message)
    return result
