"""Listening addresses of the gRPC servers: TLS credentials, ports, and the addresses that agents are given."""

from __future__ import annotations

import grpc
import grpc.aio

from tachikoma.errors import ConfigurationError
from tachikoma.identity.svid import Svid, SvidSource
from tachikoma.vocabulary.addresses import HostPort, HostPorts
from tachikoma_orchestrator.metrics import HANDSHAKES

__all__ = ["listen", "reachable", "server_credentials"]


def server_credentials(identity: SvidSource, *, clients: bool = True) -> grpc.ServerCredentials:
    """Return TLS credentials that show the current identity at each handshake.

    Args:
        identity: the orchestrator's own.
        clients: whether clients must show a certificate (mutual TLS); False for hosts that have none yet.
    """
    shown = identity.current()

    def configuration(svid: Svid) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(svid.key_pem, svid.certificate_pem)], svid.bundles.pem if clients else None
        )

    def changed() -> grpc.ServerCertificateConfiguration | None:
        # gRPC calls this at each handshake, from a thread of its own; None keeps the configuration that it has.
        nonlocal shown
        if clients:
            HANDSHAKES.inc()
        current = identity.current()
        if current is shown:
            return None
        shown = current
        return configuration(current)

    return grpc.dynamic_ssl_server_credentials(
        configuration(shown),
        changed,  # type: ignore[arg-type]  # the stub forgets None
        require_client_authentication=clients,
    )


def listen(server: grpc.aio.Server, address: HostPort, credentials: grpc.ServerCredentials) -> HostPort:
    """Make a server listen, and return the address with the port that was taken.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    try:
        return address.with_port(server.add_secure_port(str(address), credentials))
    except RuntimeError as error:
        raise ConfigurationError(f"cannot listen on {address}: is the port taken? ({error})") from error


def reachable(configured: HostPorts | None, listens: HostPort, setting: str) -> HostPort | HostPorts:
    """Return the address at which agents reach a server, or those of several servers.

    Args:
        configured: the value of the setting; None if it is not set.
        listens: the address on which the server listens.
        setting: name of the setting, for the message.

    Raises:
        ConfigurationError: the server listens on all addresses, and the setting does not say which one agents use.
    """
    if configured is not None:
        return configured
    if listens.unspecified:
        raise ConfigurationError(f"agents cannot connect to {listens}; set {setting} to an address that reaches it")
    return listens
