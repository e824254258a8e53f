"""What an orchestrator says of itself: its gRPC health service, asked over mTLS with its own identity."""

from __future__ import annotations

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tachikoma.errors import ConfigurationError, Unavailable
from tachikoma.identity.open import open_identity
from tachikoma.identity.svid import Svid
from tachikoma_orchestrator.processes.settings import OrchestratorSettings

__all__ = ["ask_health"]

#: How long an answer may take.
ANSWER_SECONDS = 5.0


def _own_name(svid: Svid) -> str:
    """The DNS name in the orchestrator's certificate, by which its clients know it."""
    try:
        names = svid.chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.DNSName)[0]
    except (x509.ExtensionNotFound, IndexError):
        raise ConfigurationError(f"the certificate of {svid.spiffe_id} has no DNS name for clients to check") from None


def ask_health(settings: OrchestratorSettings) -> None:
    """Return if the orchestrator with these settings, on this host, takes calls and has its Redis.

    Raises:
        Unavailable: it does not; the message says what it answered.
        ConfigurationError: there is no identity to ask with.
    """
    source = open_identity(settings.identity)
    try:
        svid = source.current()
    finally:
        source.close()
    address = str(settings.listen.loopback())
    credentials = grpc.ssl_channel_credentials(svid.bundle.pem, svid.key_pem, svid.certificate_pem)
    with grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", _own_name(svid))]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            raise Unavailable(f"no answer from {address}: {error.details()}") from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise Unavailable(f"the orchestrator at {address} says {status}; it has no connection to its Redis")
