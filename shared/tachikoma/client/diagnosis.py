"""The reason why a connection to an orchestrator fails, in plain words.

gRPC reports only that a handshake failed. This module connects once with Python's own TLS, which names the cause.
"""

from __future__ import annotations

import os
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tachikoma.config.channels import proxy_hint
from tachikoma.vocabulary.addresses import HostPort

__all__ = ["Trouble", "diagnose"]

#: Longest time of the attempt, in seconds.
SECONDS = 1.5
#: Addresses that are tried at the same time.
ATTEMPTS = 8
#: Bytes that are read at once.
READ_BYTES = 16 * 1024
#: Results of OpenSSL's verification (openssl-verification-options, X509_V_ERR_…).
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME = 9, 10, 62

#: Problem: the service at the port does not answer with TLS.
NO_TLS = "the service there speaks no TLS of this kind; is the port right?"
#: Problem: the server closes the connection, without an alert, after it got the client's certificate.
CLOSED = (
    "it closes the connection when it sees your certificate; "
    "does it trust the authority that signed that? `tachikoma identity show` names it"
)
#: Alerts of a server about the client's certificate (RFC 8446, section 6.2), by their names in OpenSSL.
_REFUSALS = {
    "TLSV1_ALERT_UNKNOWN_CA": (
        "it does not trust the authority that signed your certificate; use an identity of its trust domain, "
        "or have its bundle renewed"
    ),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that your certificate has expired; check the clocks of both hosts",
    **dict.fromkeys(
        ("SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_UNKNOWN", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"),
        "it refuses your certificate; `tachikoma identity show` describes it, the orchestrator's log says why",
    ),
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """The reason of a connection that fails."""

    #: The reason for people.
    text: str
    #: Whether waiting cannot help, since a certificate is wrong.
    lasting: bool = False
    #: Whether the host answers, and accepts no connection. Only a server that is starting makes waiting useful.
    refused: bool = False


def diagnose(
    address: str, server_name: str, roots: bytes, certificate: bytes = b"", key: bytes = b""
) -> Trouble | None:
    """Connect once to each address and return the problem; None if one has none, or it cannot be determined.

    Args:
        address: host:port of the orchestrator, or several with commas between them.
        server_name: the name that its certificate must have.
        roots: the roots that it must be signed under, PEM.
        certificate: the client's certificate with its chain, PEM; empty to show none.
        key: its private key, PEM.
    """
    if proxy_hint(address):
        # This attempt would go another way.
        return None
    try:
        targets = [HostPort.parse(part.strip()) for part in address.split(",")]
    except ValueError:
        return None
    # Each may be silent for the whole time of an attempt.
    with ThreadPoolExecutor(min(len(targets), ATTEMPTS)) as threads:
        context = _context(roots, certificate, key)
        found = list(threads.map(lambda target: _attempt(target, server_name, context), targets))
    troubles = [trouble for trouble in found if trouble is not None]
    return _together(targets, troubles) if len(troubles) == len(targets) else None


def _together(targets: list[HostPort], troubles: list[Trouble]) -> Trouble:
    """Return the problems of all addresses as one: an address that may still answer makes waiting useful."""
    if len({trouble.text for trouble in troubles}) == 1:
        text = troubles[0].text
    else:
        text = "; ".join(f"{target}: {trouble.text}" for target, trouble in zip(targets, troubles, strict=True))
    lasting = all(trouble.lasting for trouble in troubles)
    return Trouble(text, lasting, refused=not lasting and all(one.lasting or one.refused for one in troubles))


def _attempt(target: HostPort, server_name: str, context: ssl.SSLContext) -> Trouble | None:
    """Connect once to one address and return the problem; None if none was found."""
    try:
        with socket.create_connection((target.host.strip("[]"), target.port), timeout=SECONDS) as connection:
            return _handshake(connection, server_name, context)
    except ConnectionRefusedError:
        return Trouble("nothing accepts connections there; is the orchestrator running?", refused=True)
    except socket.gaierror:
        return Trouble(f"the name {target.host} is not known; check `address` in the client profile")
    except TimeoutError:
        return Trouble("the host does not answer; is it up, and does a firewall let you through?")
    except OSError as error:
        return Trouble(f"{(error.strerror or str(error)).lower()}")


def _context(roots: bytes, certificate: bytes, key: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=roots.decode())
    # gRPC accepts an intermediate certificate of the bundle as the end of a chain.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if certificate:
        # Python reads a certificate only from a file; this one is in memory.
        with os.fdopen(os.memfd_create("certificate"), "wb") as file:
            file.write(key.rstrip() + b"\n" + certificate)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


def _handshake(connection: socket.socket, server_name: str, context: ssl.SSLContext) -> Trouble | None:
    tls = _Handshake(connection, server_name, context)
    try:
        tls.run()
        return None
    except ssl.SSLCertVerificationError as error:
        return Trouble(_certificate_trouble(error, server_name), lasting=True)
    except TimeoutError:
        if not tls.complete:
            raise
        # A busy server sends its first byte late.
        return None
    except (ssl.SSLError, ConnectionError) as error:
        if getattr(error, "reason", None) in _REFUSALS:
            return Trouble(_REFUSALS[error.reason], lasting=True)  # type: ignore[union-attr]
        return Trouble(CLOSED, refused=True) if tls.complete else Trouble(NO_TLS)


class _Handshake:
    """A TLS handshake, up to the first byte of the server.

    In TLS 1.3 a client ends its handshake before the server looks at its certificate. A server of gRPC sends its
    settings at once when it accepts that. Otherwise it sends an alert, or closes the connection.
    """

    def __init__(self, connection: socket.socket, server_name: str, context: ssl.SSLContext) -> None:
        self._connection = connection
        # Not by `wrap_socket`: it takes the socket away, and loses it if the server has reset the connection by then.
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_hostname=server_name)
        #: Whether this side has ended the handshake.
        self.complete = False

    def run(self) -> None:
        """Make the handshake and wait for the first byte. Raises ssl.SSLError or OSError if either fails."""
        while True:
            try:
                self._tls.do_handshake()
                self.complete = True
                self._tls.read(1)
            except ssl.SSLWantReadError:
                self._exchange()
            else:
                return

    def _exchange(self) -> None:
        # Writing nothing would report a reset before the alert that came with it is read.
        if self._to_send.pending:
            self._connection.sendall(self._to_send.read())
        if data := self._connection.recv(READ_BYTES):
            self._received.write(data)
        else:
            self._received.write_eof()


def _certificate_trouble(error: ssl.SSLCertVerificationError, server_name: str) -> str:
    """Return what is wrong with the orchestrator's certificate, and the side that must change."""
    if error.verify_code == _EXPIRED:
        return "its certificate has expired; renew the orchestrator's certificate, or check the clock of this host"
    if error.verify_code == _NOT_YET_VALID:
        return "its certificate is not valid yet; check the clocks of both hosts"
    if error.verify_code == _WRONG_NAME:
        return (
            f"its certificate is not for {server_name!r}; check `serverName` in the client profile, "
            "or you reached another service"
        )
    return "its certificate is signed by an authority that your bundle does not contain; renew your bundle"
