"""What stands in for Sentry: a server that takes real envelopes over HTTP and keeps them, or never answers."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class Collector:
    """The server. A context manager."""

    def __init__(self, *, answers: bool = True) -> None:
        self.answers = answers
        #: Every envelope as it came, decompressed.
        self.raw: list[bytes] = []
        #: Set when it takes a request.
        self.asked = threading.Event()
        self._closing = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/api/42/envelope/"
                assert self.headers["Content-Encoding"] == "gzip"
                collector.asked.set()
                if not collector.answers:
                    collector._closing.wait()
                    return
                collector.raw.append(str(self.headers).encode() + gzip.decompress(body))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def dsn(self) -> str:
        """What makes events come here."""
        return f"http://public-key@127.0.0.1:{self._server.server_port}/42"

    def events(self, **tags: str) -> list[dict[str, Any]]:
        """The events with these tags, in the order they came in."""
        found = []
        for raw in list(self.raw):
            # Headers of HTTP; of the envelope; then for each item its header and its payload, a line each.
            lines = raw.partition(b"\n\n")[2].splitlines()
            assert len(lines) == 3
            assert json.loads(lines[1])["type"] == "event"
            event = json.loads(lines[2])
            if tags.items() <= event["tags"].items():
                found.append(event)
        return found

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
