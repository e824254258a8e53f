"""One trace from the client to the end of the command, at a collector that takes real OTLP."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support import AGENT, make_cli, plain_channel, prepare, request, wait_until

from otlp_collector import Collector, Received
from patience import PATIENCE_SECONDS
from tachikoma import Client
from tachikoma.client import wire
from tachikoma.dev.stack import Stack
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionStub
from warm_start import run

#: A command line that prints its own trace, and holds something that must not be sent to the collector.
SHOW = ("sh", "-c", 'echo "$TRACEPARENT"; exit 3', "hunter2")
GIVEN_TRACE, GIVEN_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{GIVEN_TRACE}-{GIVEN_SPAN}-01"
#: The spans of `tachikoma exec`, each with the one above it.
ABOVE = {
    "tachikoma exec": "",
    "client call": "tachikoma exec",
    "server call": "client call",
    "admission": "server call",
    "decide": "admission",
    "sign": "admission",
    "admit": "admission",
    "queue": "admission",
    "execution": "admission",
    "journal": "execution",
    "claim": "execution",
    "prepare": "execution",
    "spool": "execution",
    "command": "execution",
    "spawn": "command",
    "run": "command",
    "receipt": "execution",
    "deliver": "execution",
    "result": "admission",
    "check": "result",
    "record": "result",
}
#: Those of a client that records none.
FROM_SERVER = set(ABOVE) - {"tachikoma exec", "client call"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


def settings(endpoint: str) -> dict[str, str]:
    """The settings of a part. An export is given up so late that a slow machine loses no spans."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
    }  # fmt: skip


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None, collector: Collector) -> Iterator[Stack]:
    """A stack whose parts send traces."""
    data = prepare(tmp_path_factory.mktemp("traces"))
    policy = data / "policy.yaml"
    policy.write_text(policy.read_text().rstrip() + "\n    allowInteractive: true\n")
    with Stack(data, redis_server=redis_server, environment=settings(collector.endpoint)) as running:
        yield running


def execute(stack: Stack, environment: Mapping[str, str], *options: str) -> str:
    """Run the command by the command line, and return the trace that the command saw."""
    line = [sys.executable, "-m", "tachikoma", "exec", *options, AGENT, "--", *SHOW]
    done = run(line, env={**make_cli(stack).environment(), **environment}, timeout=PATIENCE_SECONDS)
    assert done.returncode == 3, done.stderr
    assert done.stderr == b""
    return done.stdout.decode().strip()


def role(span: Received) -> str:
    """The name of a span, or what it is for the two sides of a call."""
    return {"CLIENT": "client call", "SERVER": "server call"}.get(span.kind, span.name)


def whole(collector: Collector, trace_id: str, roles: set[str] = FROM_SERVER) -> dict[str, Received]:
    """The spans of a trace by their roles, once these have arrived."""

    def found() -> dict[str, Received]:
        return {role(span): span for span in collector.spans(trace_id)}

    wait_until(lambda: roles <= set(found()), f"the spans {sorted(roles)} arrive")
    return found()


@pytest.mark.parametrize("options", [(), ("-i",)], ids=["call", "session"])
def test_one_trace_leads_from_the_client_to_the_end_of_the_command(
    stack: Stack, collector: Collector, options: tuple[str, ...]
) -> None:
    # However slow the machine is, the client sends its spans before it ends.
    seen = execute(stack, {**settings(collector.endpoint), "OTEL_BSP_EXPORT_TIMEOUT": "60000"}, *options)
    match = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-0[13]", seen)
    assert match is not None, seen
    trace_id, span_id = match.groups()
    spans = whole(collector, trace_id, set(ABOVE))
    names = {span.span_id: name for name, span in spans.items()}
    assert {name: names.get(span.parent_id, span.parent_id) for name, span in spans.items()} == ABOVE
    assert spans["command"].span_id == span_id
    services = {name: span.service.removeprefix("tachikoma-") for name, span in spans.items()}
    assert {name for name, service in services.items() if service == "client"} == {"tachikoma exec", "client call"}
    agent = ("queue", "execution", "command", "receipt")
    assert {services[name] for name in agent} == {"worker"}
    assert {services[name] for name in ("server call", "admission", "result")} == {"orchestrator"}
    assert all(span.begin_ns <= span.end_ns for span in spans.values())
    assert spans["queue"].end_ns <= spans["command"].begin_ns
    assert spans["command"].attributes["process.executable.name"] in ("sh", "dash", "bash", "busybox")
    assert spans["execution"].attributes["tachikoma.execution.state"] == "FAILED"
    assert spans["execution"].attributes["process.exit.code"] == 3
    assert spans["server call"].attributes["rpc.response.status_code"] == "OK"
    # Nothing of the command but its program is sent.
    sent = b"".join(collector.raw)
    assert b"execution" in sent
    assert not [word for word in (b"hunter2", b"TRACEPARENT", b"exit 3") if word in sent]


def test_a_caller_continues_its_own_trace_without_opentelemetry(stack: Stack, collector: Collector) -> None:
    seen = execute(stack, {"TRACEPARENT": GIVEN})
    spans = whole(collector, GIVEN_TRACE)
    assert seen == f"00-{GIVEN_TRACE}-{spans['command'].span_id}-01"
    assert spans["server call"].parent_id == GIVEN_SPAN


@pytest.mark.parametrize("wrong", ["", "hunter2", GIVEN.upper(), GIVEN + "-x", f"00-{'0' * 32}-{GIVEN_SPAN}-01"])
def test_a_trace_in_another_form_is_no_parent(stack: Stack, collector: Collector, wrong: str) -> None:
    with plain_channel(stack, stack.identity("user")) as channel:
        message = wire.request_to_pb(request(*SHOW))
        done = RemoteExecutionStub(channel).Execute(message, metadata=(("traceparent", wrong),), timeout=60)
    trace_id = done.stdout.decode().split("-")[1]
    assert trace_id != GIVEN_TRACE
    assert whole(collector, trace_id)["server call"].parent_id == ""


def test_a_variable_of_the_request_wins_where_policy_grants_it(stack: Stack) -> None:
    with Client(stack.profile()) as client:
        done = client.execute(request("env", environment={"TEST_TRACE": GIVEN}))
    variables = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
    assert variables["TEST_TRACE"] == GIVEN
    assert variables["TRACEPARENT"].split("-")[1] != GIVEN_TRACE
    assert not [name for name in variables if name.startswith("OTEL_")]


def test_a_collector_that_never_answers_holds_nothing_up(stack: Stack, collector: Collector) -> None:
    collector.asked.clear()
    collector.answering.clear()
    try:
        with Client(stack.profile()) as client:
            client.execute(request("true"))
            wait_until(collector.asked.is_set, "the parts send spans")
            # More than one batch can be on its way: nothing waits for the answer.
            assert [client.execute(request("sh", "-c", "exit 4")).exit_code for _ in range(10)] == [4] * 10
        execute(stack, {**settings(collector.endpoint), "OTEL_BSP_EXPORT_TIMEOUT": "100"})
    finally:
        collector.answering.set()
    with Client(stack.profile()) as client:
        seen = client.execute(request(*SHOW)).stdout.decode()
    assert whole(collector, seen.split("-")[1])["command"].service == "tachikoma-worker"


def test_a_client_without_a_collector_runs_its_command(stack: Stack) -> None:
    # Nothing listens on the port of a socket that is only bound.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        away = settings(f"http://127.0.0.1:{taken.getsockname()[1]}")
        seen = execute(stack, {**away, "OTEL_BSP_EXPORT_TIMEOUT": "100"})
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]", seen)
