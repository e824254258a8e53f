"""Types of `Client` as a user's type checker sees them. mypy checks this file; nothing runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime, timedelta
from typing import assert_type

from tachikoma import (
    AgentInfo,
    AsyncClient,
    BatchRequest,
    CancelResponse,
    Client,
    ExecOutput,
    ExecRequest,
    ExecResponse,
    ExecState,
    ExecStatus,
    HealthGate,
    ResourceLimits,
    TargetState,
)


def every_result_has_its_type(client: Client, request: ExecRequest) -> None:
    assert_type(client.execute(request), ExecResponse)
    assert_type(client.execute_stream(request), Iterator[ExecOutput])
    assert_type(client.attach("job-7", after_seq=3, follow=False), Iterator[ExecOutput])
    assert_type(client.cancel(exec_id="job-7"), CancelResponse)
    assert_type(client.list_page("web-1", states=[ExecState.FAILED], page_size=5), tuple[tuple[ExecStatus, ...], str])
    assert_type(client.agents(), tuple[AgentInfo, ...])
    assert_type(client.next_due_times("nightly", limit=3), tuple[datetime, ...])


async def the_asynchronous_client_has_the_same(client: AsyncClient, request: ExecRequest) -> None:
    assert_type(await client.execute(request), ExecResponse)
    assert_type(client.execute_stream(request), AsyncIterator[ExecOutput])


def requests_take_what_people_write(arguments: Sequence[str], limit: timedelta) -> None:
    ExecRequest(agent_id="web-1", command=["uname", "-a"], timeout="30s", stdin=bytearray(b"x"))
    ExecRequest(agent_id="web-1", command=("uname", *arguments), timeout=2.5, environment={"LANG": "C"})
    ExecRequest(agent_id="web-1", command=arguments, timeout=limit, limits=ResourceLimits(memory="512MiB", cpus=1))
    Client(patience="30s", reconnect=90)


def batches_take_what_people_write(arguments: Sequence[str], limit: timedelta) -> None:
    gate = HealthGate(agent_id="lb-1", command=["curl", "-f", "http://localhost"], timeout="30s")
    BatchRequest(targets=["web-*"], command=arguments, stop_after="10%", stop_on=["DENIED"], pause="1m", gate=gate)
    BatchRequest(retry_of="b-1", retry_states=[TargetState.LOST, "FAILED"], deadline=limit, timeout=2.5)


def output_is_text_or_json(response: ExecResponse, output: ExecOutput) -> None:
    assert_type(response.check().text, str)
    assert_type(response.error_text, str)
    assert_type(output.text, str)


def wrong_requests_are_found() -> None:
    ExecRequest(agent_id="web-1", command=["ls"], timeot="5s")  # type: ignore[call-arg]
    ExecRequest(agent_id="web-1", command=["ls"], timeout=b"5s")  # type: ignore[arg-type]
    ExecRequest(agent_id="web-1")  # type: ignore[call-arg]
    BatchRequest(targets=["web-*"], comand=["ls"])  # type: ignore[call-arg]
    HealthGate(agent_id="lb-1", command=["ls"], timeout=b"5s")  # type: ignore[arg-type]


def wrong_arguments_are_found(client: Client, request: ExecRequest) -> None:
    # With `warn_unused_ignores`, a mistake that is no longer found is an error of this file.
    client.execute("uname")  # type: ignore[arg-type]
    client.execute(request, timeout=3)  # type: ignore[call-arg]
    client.attach("job-7", 3)  # type: ignore[call-arg]
    client.drain_agent("web-1")  # type: ignore[call-arg]
    client.list_page(states=["FAILED"])  # type: ignore[list-item]
