"""Prometheus metrics of the orchestrator, served at the address of the setting `metrics`."""

from __future__ import annotations

from collections import OrderedDict

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.addresses import HostPort

__all__ = [
    "AUDIT_CLOSED",
    "AUDIT_WAITING",
    "CONNECTIONS",
    "HANDSHAKES",
    "POLICIES",
    "POLICY_ERROR",
    "POLICY_SINCE",
    "Connections",
    "serve_metrics",
]

#: Connections that are remembered, more than a server has at once.
MAX_CONNECTIONS = 20_000

_registry = CollectorRegistry()

POLICIES = Gauge("tachikoma_policies", "Active policies.", registry=_registry)
POLICY_SINCE = Gauge(
    "tachikoma_policy_since_seconds", "Unix time at which the active policies were loaded.", registry=_registry
)
POLICY_ERROR = Gauge(
    "tachikoma_policy_error",
    "1 while the policy files are invalid and the previous policies stay active.",
    registry=_registry,
)
AUDIT_WAITING = Gauge(
    "tachikoma_audit_waiting", "Audit events that a sink has not accepted yet.", ["sink"], registry=_registry
)
AUDIT_CLOSED = Gauge(
    "tachikoma_audit_closed", "1 while requests are refused because the audit backlog is full.", registry=_registry
)
#: gRPC reports no handshake that fails (docs/decisions/0038), but the difference of these two counts them.
HANDSHAKES = Counter(
    "tachikoma_handshakes", "TLS handshakes that began at the main address, failed ones included.", registry=_registry
)
CONNECTIONS = Counter(
    "tachikoma_connections", "Connections at the main address with at least one call.", registry=_registry
)


class Connections:
    """Counts the connections that carry calls, each once."""

    def __init__(self) -> None:
        #: Address and port of the peer of each connection, the one used last at the end.
        self._known: OrderedDict[str, None] = OrderedDict()

    def used(self, peer: str) -> None:
        """Note a call of a connection, by gRPC's text for its peer."""
        if peer in self._known:
            self._known.move_to_end(peer)
            return
        self._known[peer] = None
        CONNECTIONS.inc()
        if len(self._known) > MAX_CONNECTIONS:
            self._known.popitem(last=False)


def serve_metrics(address: HostPort) -> None:
    """Serve the metrics over HTTP, from a background thread that lives as long as the process.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    try:
        start_http_server(address.port, address.host, registry=_registry)
    except OSError as error:
        raise ConfigurationError(f"cannot serve metrics on {address}: {error}") from error
