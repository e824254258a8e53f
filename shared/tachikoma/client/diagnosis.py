"""Why there is no connection to an orchestrator, in plain words.

gRPC says only that a handshake failed. This module connects once with Python's own TLS, which tells the cases apart.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

from tachikoma.config.channels import proxy_hint
from tachikoma.vocabulary.addresses import HostPort

__all__ = ["Trouble", "diagnose"]

#: Longest time of the attempt, in seconds.
SECONDS = 1.5
#: Bytes that are read at once.
READ_BYTES = 16 * 1024
#: Results of OpenSSL's verification (openssl-verification-options, X509_V_ERR_…).
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME = 9, 10, 62


@dataclass(frozen=True, slots=True)
class Trouble:
    """The reason of a connection that fails."""

    #: The reason for people.
    text: str
    #: Whether waiting cannot help, since a certificate is wrong.
    lasting: bool = False
    #: Whether the host answers that nothing listens there. Only a server that is starting makes waiting useful.
    refused: bool = False


def diagnose(address: str, server_name: str, roots: bytes) -> Trouble | None:
    """Connect once and return what is wrong; None if nothing was found, or nothing can be said.

    Args:
        address: host:port of the orchestrator.
        server_name: the name that its certificate must have.
        roots: the roots that it must be signed under, PEM.
    """
    if proxy_hint(address):
        # This attempt would go another way.
        return None
    try:
        target = HostPort.parse(address)
    except ValueError:
        return None
    try:
        with socket.create_connection((target.host.strip("[]"), target.port), timeout=SECONDS) as connection:
            return _handshake(connection, server_name, roots)
    except ConnectionRefusedError:
        return Trouble("nothing accepts connections there; is the orchestrator running?", refused=True)
    except socket.gaierror:
        return Trouble(f"the name {target.host} is not known; check `address` in the client profile")
    except TimeoutError:
        return Trouble("the host does not answer; is it up, and does a firewall let you through?")
    except OSError as error:
        return Trouble(f"{(error.strerror or str(error)).lower()}")


def _handshake(connection: socket.socket, server_name: str, roots: bytes) -> Trouble | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=roots.decode())
    # gRPC accepts an intermediate certificate of the bundle as the end of a chain.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        _shake_hands(connection, context, server_name)
        return None
    except ssl.SSLCertVerificationError as error:
        return Trouble(_certificate_trouble(error, server_name), lasting=True)
    except (ssl.SSLError, ConnectionError):
        return Trouble("the service there speaks no TLS of this kind; is the port right?")


def _shake_hands(connection: socket.socket, context: ssl.SSLContext, server_name: str) -> None:
    """Make a TLS handshake. Raises ssl.SSLError or OSError if it fails."""
    # Not by `wrap_socket`: it takes the socket away, and loses it if the server has reset the connection by then.
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(received, to_send, server_hostname=server_name)
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            connection.sendall(to_send.read())
            if data := connection.recv(READ_BYTES):
                received.write(data)
            else:
                received.write_eof()
        else:
            connection.sendall(to_send.read())
            return


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
