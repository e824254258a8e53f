"""A collector of OpenTelemetry: a server that takes real exports over OTLP, by HTTP, and keeps their spans."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

__all__ = ["Collector", "Received", "spans_of"]


@dataclass(frozen=True)
class Received:
    """A span that arrived."""

    name: str
    #: `service.name` of its process.
    service: str
    trace_id: str
    span_id: str
    #: Empty for the first span of a trace.
    parent_id: str
    #: Name of its kind.
    kind: str
    begin_ns: int
    end_ns: int
    attributes: Mapping[str, str | int]
    #: Whether it is marked as failed.
    failed: bool


def spans_of(raw: bytes) -> list[Received]:
    """The spans in the body of an export."""
    found = []
    for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
        service = _values(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            found += [
                Received(
                    name=span.name,
                    service=str(service),
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    kind=type(span).SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    begin_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    attributes=_values(span.attributes),
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                )
                for span in scope.spans
            ]
    return found


def _values(attributes: object) -> dict[str, str | int]:
    return {item.key: getattr(item.value, str(item.value.WhichOneof("value"))) for item in attributes}  # type: ignore[attr-defined]


class Collector:
    """The server. A context manager."""

    def __init__(self) -> None:
        #: The body of every export that was answered, decompressed.
        self.raw: list[bytes] = []
        #: Set while exports are answered; cleared, a sender waits.
        self.answering = threading.Event()
        self.answering.set()
        #: Set when an export arrives.
        self.asked = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                match self.headers.get("Content-Encoding"):
                    case "gzip":
                        body = gzip.decompress(body)
                    case "deflate":
                        body = zlib.decompress(body)
                known = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
                collector.asked.set()
                collector.answering.wait()
                answer = ExportTraceServiceResponse().SerializeToString()
                if known:
                    collector.raw.append(body)
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            # A thread of a connection that its client keeps open would never end.
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing: a sender that gave up is no failure of the collector."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def endpoint(self) -> str:
        """The value of OTEL_EXPORTER_OTLP_ENDPOINT that makes spans come here."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def spans(self, trace_id: str = "") -> list[Received]:
        """The spans that arrived, of one trace or of all."""
        found = [span for raw in list(self.raw) for span in spans_of(raw)]
        return [span for span in found if trace_id in ("", span.trace_id)]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.answering.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
