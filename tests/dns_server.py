"""A name server for tests, by which one name has several addresses."""

from __future__ import annotations

import socketserver
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address

__all__ = ["name_server"]

#: RFC 1035, sections 3.2 and 4.1: type A, class IN; an answer with recursion; a pointer to the name in the question.
_A, _IN, _ANSWER, _NAME, _HEADER_BYTES = 1, 1, 0x8180, 0xC00C, 12


def _answer(query: bytes, addresses: Sequence[str]) -> bytes:
    """Return the answer to a query for any name: its addresses, or none for another type than A."""
    end = query.index(b"\0", _HEADER_BYTES) + 5
    kind = struct.unpack("!H", query[end - 4 : end - 2])[0]
    found = addresses if kind == _A else ()
    header = query[:2] + struct.pack("!HHHHH", _ANSWER, 1, len(found), 0, 0)
    records = (struct.pack("!HHHIH", _NAME, _A, _IN, 0, 4) + IPv4Address(address).packed for address in found)
    return header + query[_HEADER_BYTES:end] + b"".join(records)


@contextmanager
def name_server(*addresses: str) -> Iterator[str]:
    """The place of a name server, as host:port, at which every name has these addresses, in this order."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, socket = self.request
            socket.sendto(_answer(query, addresses), self.client_address)

    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
