"""Export of a process's spans over OTLP, by OpenTelemetry's own variables (`OTEL_…`).

Nothing is imported unless an endpoint is set. Spans wait in a bounded queue and a thread of their own sends them, so a
collector that is slow or unavailable delays nothing; the spans that do not fit are dropped.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tachikoma.config.logs import get_logger
from tachikoma.vocabulary.clock import seconds_of_ms

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

__all__ = ["configure", "configure_client", "finish"]

log = get_logger(__name__)

#: Longest time that the end of a process waits for its last spans to be sent, in seconds, unless the variable of
#: OpenTelemetry for the time of an export says otherwise. Its own default, 30 s, would hold up each command.
SHUTDOWN_SECONDS = 1.0
#: The name of the client, which logs nothing about its traces: its output belongs to the caller.
CLIENT = "client"


class _Process:
    """The state of this process."""

    #: Makes and sends the spans; None if none are sent.
    provider: TracerProvider | None = None


def configure(component: str, *, agent: str = "") -> None:
    """Record and send this process's spans from now on, if the environment names an endpoint. Called once.

    A mistake in these settings is logged and ends no process: commands run without traces too.

    Args:
        component: name of the part; its service is `tachikoma-<component>`, unless OTEL_SERVICE_NAME is set.
        agent: id of the agent that the process belongs to; empty for none.
    """
    if not _wanted() or _Process.provider is not None:
        return
    say = log.debug if component == CLIENT else log.warning
    try:
        provider = _provider(component, agent)
    except ImportError as error:
        say("traces.off", reason=f"{error.name} is not installed; run: pip install 'tachikoma-exec[otel]'")
        return
    except ValueError as error:
        say("traces.off", reason=f"a variable OTEL_… is wrong: {error}")
        return
    # Imported here, so that a command without traces does not load it.
    from tachikoma.config import tracing

    _Process.provider = provider
    tracing.record_with(provider.get_tracer("tachikoma"))
    if component != CLIENT:
        log.info("traces.sent", service=str(provider.resource.attributes["service.name"]))


def configure_client(command: str) -> None:
    """Record and send the spans of a command of the client, which is a span itself; as `configure`.

    Args:
        command: its name, without arguments.
    """
    configure(CLIENT)
    if _Process.provider is not None:
        from tachikoma.config import tracing

        tracing.begin_command(command)


def finish() -> None:
    """End the spans of the process, and send those that wait, for a bounded time."""
    provider, _Process.provider = _Process.provider, None
    if provider is None:
        return
    from tachikoma.config import tracing

    tracing.end_command()
    # OpenTelemetry would wait for as long as it repeats a failed export.
    ending = threading.Thread(target=provider.shutdown, name="tachikoma-traces", daemon=True)
    ending.start()
    ending.join(_shutdown_seconds())


def _shutdown_seconds() -> float:
    text = os.environ.get("OTEL_BSP_EXPORT_TIMEOUT", "").strip()
    return seconds_of_ms(int(text)) if text.isdecimal() else SHUTDOWN_SECONDS


def _wanted() -> bool:
    """Return whether the environment asks for traces over OTLP."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")
    return "otlp" in exporters and bool(_of_traces("ENDPOINT"))


def _of_traces(name: str) -> str:
    """Return a variable of the OTLP exporter: the one for traces, else the one for all signals, else nothing."""
    return os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}") or ""


def _provider(component: str, agent: str) -> TracerProvider:
    """Create the provider that records and sends spans.

    Raises:
        ImportError: a package of the extra is not installed.
        ValueError: a variable of OpenTelemetry is wrong.
    """
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # It logs each failed export, each time with a stack.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
    exporter = _exporter()
    if component != CLIENT:
        exporter = _reporting(exporter)
    provider = TracerProvider(resource=_resource(component, agent), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _resource(component: str, agent: str) -> Resource:
    """Return the description of this process for its spans. No detector of processes: it would send command lines."""
    from importlib.metadata import version

    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    own = {"service.name": f"tachikoma-{component}", "service.version": version("tachikoma-exec")}
    if agent:
        own["tachikoma.agent.id"] = agent
    return Resource(own).merge(OTELResourceDetector().detect())


def _exporter() -> SpanExporter:
    """Make the exporter of the protocol that is set; http/protobuf, the one of the specification, by default."""
    protocol = _of_traces("PROTOCOL") or "http/protobuf"
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter()
    if protocol != "http/protobuf":
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}, not http/protobuf or grpc")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter()


def _reporting(exporter: SpanExporter) -> SpanExporter:
    """Return an exporter that logs when exports begin to fail, and when they work again."""
    from opentelemetry.sdk.trace import export

    class Reporting(export.SpanExporter):
        """An exporter that logs each change between working and failing."""

        working = True

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = exporter.export(spans)
            worked = result is export.SpanExportResult.SUCCESS
            if worked is not self.working:
                self.working = worked
                if worked:
                    log.info("traces.sent_again")
                else:
                    log.warning("traces.not_sent", reason="the collector did not accept them; see OTEL_EXPORTER_OTLP_…")
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return exporter.force_flush(timeout_millis)

    return Reporting()
