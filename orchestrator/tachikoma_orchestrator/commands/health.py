"""The health check of a local orchestrator: its gRPC health service, called over mTLS with its own identity."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tachikoma.config.channels import proxy_hint, proxy_options
from tachikoma.errors import ConfigurationError, Unavailable
from tachikoma.identity.certificates import dns_names
from tachikoma.identity.open import open_identity
from tachikoma.identity.svid import Svid
from tachikoma_orchestrator.processes.settings import OrchestratorSettings

__all__ = ["check_health"]

#: Longest wait for the response.
RESPONSE_SECONDS = 5.0


def check_health(settings: OrchestratorSettings) -> None:
    """Return if the orchestrator with these settings, on this host, serves calls and is connected to its Redis.

    Raises:
        Unavailable: it does not; the message contains its response.
        ConfigurationError: the identity cannot be used.
    """
    source = open_identity(settings.identity)
    try:
        svid = source.current()
    finally:
        source.close()
    address = settings.listen.loopback()
    credentials = grpc.ssl_channel_credentials(svid.bundle.pem, svid.key_pem, svid.certificate_pem)
    options = [*proxy_options(str(address)), ("grpc.ssl_target_name_override", _own_name(svid))]
    with grpc.secure_channel(str(address), credentials, options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            response = stub.Check(health_pb2.HealthCheckRequest(), timeout=RESPONSE_SECONDS)
        except grpc.RpcError as error:
            raise Unavailable(f"no answer from {address}: {error.details()}{proxy_hint(str(address))}") from None
    if response.status != health_pb2.HealthCheckResponse.SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
        raise Unavailable(f"the orchestrator at {address} reports {status}; it has no connection to its Redis")


def _own_name(svid: Svid) -> str:
    """Return the DNS name in the orchestrator's certificate, which its clients verify."""
    names = dns_names(svid.chain[0])
    if not names:
        raise ConfigurationError(f"the certificate of {svid.spiffe_id} has no DNS name for clients to check")
    return names[0]
