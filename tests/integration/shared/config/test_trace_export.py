"""Spans leave the process over real OTLP, and a collector that is not there holds nothing up."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from otlp_collector import Collector, spans_of
from tachikoma.config import stages, trace_export, tracing

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that sends nothing yet; OpenTelemetry's own variables are unset."""
    monkeypatch.setattr(stages, "_observers", [])
    monkeypatch.setattr(tracing._Process, "tracer", None)
    monkeypatch.setattr(tracing._Process, "remembered", OrderedDict())
    monkeypatch.setattr(trace_export._Process, "provider", None)
    for name in ("TRACEPARENT", ENDPOINT, "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    # However slow the machine is, what a test expects to arrive does.
    monkeypatch.setenv("OTEL_BSP_EXPORT_TIMEOUT", "60000")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    before, level = tracing._current.set(None), logging.getLogger("opentelemetry").level
    yield
    trace_export.finish()
    tracing._current.reset(before)
    logging.getLogger("opentelemetry").setLevel(level)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


def words(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded() -> None:
    code = (
        "import sys; from tachikoma.config import trace_export, tracing; trace_export.configure('worker');"
        "trace_export.configure_client('tachikoma ps'); tracing.begin_call('/a.B/C'); tracing.order_trace('one');"
        "trace_export.finish(); print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "variables",
    [
        {ENDPOINT: ""},
        {"OTEL_SDK_DISABLED": "True"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "console"},
    ],
)
def test_the_environment_can_switch_traces_off(
    variables: dict[str, str], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {ENDPOINT: collector.endpoint, **variables}.items():
        monkeypatch.setenv(name, value)
    trace_export.configure("orchestrator")
    with tracing.span("work"):
        assert tracing.current() is None


def test_spans_are_sent_over_http_with_their_service(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, collector.endpoint)
    trace_export.configure("worker", agent="web-1")
    with tracing.span("work", {"process.exit.code": 3}):
        pass
    trace_export.finish()
    (span,) = collector.spans()
    assert (span.name, span.service, span.attributes) == ("work", "tachikoma-worker", {"process.exit.code": 3})
    assert b"web-1" in collector.raw[0]
    assert sys.executable.encode() not in collector.raw[0], "no detector of processes has sent its command line"


def test_the_service_may_be_named_by_the_environment(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.endpoint}/v1/traces")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "runner")
    trace_export.configure_client("tachikoma ps")
    trace_export.finish()
    (span,) = collector.spans()
    assert (span.name, span.service) == ("tachikoma ps", "runner")


class GrpcCollector(trace_service_pb2_grpc.TraceServiceServicer):
    """The service of OTLP over gRPC, which keeps the bodies of exports."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:  # noqa: N802
        self.raw.append(request.SerializeToString())
        return ExportTraceServiceResponse()


def test_spans_are_sent_over_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    service = GrpcCollector()
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        trace_export.configure("orchestrator")
        with tracing.span("work"):
            pass
        trace_export.finish()
        server.stop(None).wait()
    assert [span.name for raw in service.raw for span in spans_of(raw)] == ["work"]


def test_a_missing_extra_is_reported_and_ends_nothing(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, collector.endpoint)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    trace_export.configure("orchestrator")
    assert "traces.off" in words(caplog)
    assert "pip install 'tachikoma-exec[otel]'" in words(caplog)
    with tracing.span("work"):
        assert tracing.current() is None


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"), ("OTEL_BSP_MAX_QUEUE_SIZE", "-1")]
)
def test_a_wrong_variable_is_reported_and_ends_nothing(
    name: str, value: str, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, collector.endpoint)
    monkeypatch.setenv(name, value)
    trace_export.configure("orchestrator")
    assert "traces.off" in words(caplog)


def test_a_collector_that_never_answers_does_not_hold_up_the_end_of_a_process(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector.answering.clear()
    monkeypatch.setenv(ENDPOINT, collector.endpoint)
    monkeypatch.delenv("OTEL_BSP_EXPORT_TIMEOUT")
    trace_export.configure("orchestrator")
    with tracing.span("work"):
        pass
    # It returns, although the collector answers only after this test.
    trace_export.finish()
    assert collector.raw == []


def test_a_collector_that_is_away_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Nothing listens on the port of a socket that is only bound.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{taken.getsockname()[1]}")
        # One attempt: the exporter repeats within its timeout.
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
        trace_export.configure("orchestrator")
        provider = trace_export._Process.provider
        assert provider is not None
        for _ in range(3):
            with tracing.span("work"):
                pass
            provider.force_flush()
    assert [record.levelname for record in caplog.records if "traces.not_sent" in record.getMessage()] == ["WARNING"]
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_spans_beyond_the_queue_are_dropped_and_delay_nothing(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector.answering.clear()
    monkeypatch.setenv(ENDPOINT, collector.endpoint)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    trace_export.configure("orchestrator")
    for _ in range(1000):
        with tracing.span("work"):
            pass
    collector.answering.set()
    trace_export.finish()
    # What was on its way, and what had room.
    assert len(collector.spans()) <= 8 + 4
