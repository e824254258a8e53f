"""Types of `Client` as a user's type checker sees them. mypy checks this file; nothing runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import assert_type

from tachikoma import (
    AgentInfo,
    AsyncClient,
    CancelResponse,
    Client,
    ExecOutput,
    ExecRequest,
    ExecResponse,
    ExecState,
    ExecStatus,
)


def every_result_has_its_type(client: Client, request: ExecRequest) -> None:
    assert_type(client.execute(request), ExecResponse)
    assert_type(client.execute_stream(request), Iterator[ExecOutput])
    assert_type(client.attach("job-7", after_seq=3, follow=False), Iterator[ExecOutput])
    assert_type(client.cancel(exec_id="job-7"), CancelResponse)
    assert_type(client.list("web-1", states=[ExecState.FAILED], page_size=5), tuple[tuple[ExecStatus, ...], str])
    assert_type(client.agents(), tuple[AgentInfo, ...])
    assert_type(client.next_due_times("nightly", limit=3), tuple[datetime, ...])


async def the_asynchronous_client_has_the_same(client: AsyncClient, request: ExecRequest) -> None:
    assert_type(await client.execute(request), ExecResponse)
    assert_type(client.execute_stream(request), AsyncIterator[ExecOutput])


def wrong_arguments_are_found(client: Client, request: ExecRequest) -> None:
    # With `warn_unused_ignores`, a mistake that is no longer found is an error of this file.
    client.execute("uname")  # type: ignore[arg-type]
    client.execute(request, timeout=3)  # type: ignore[call-arg]
    client.attach("job-7", 3)  # type: ignore[call-arg]
    client.drain_agent("web-1")  # type: ignore[call-arg]
    client.list(states=["FAILED"])  # type: ignore[list-item]
