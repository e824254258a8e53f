"""Prometheus metrics of the orchestrator, served at the address of the setting `metrics`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.addresses import HostPort

__all__ = ["AUDIT_CLOSED", "AUDIT_WAITING", "POLICIES", "POLICY_ERROR", "POLICY_SINCE", "serve_metrics"]

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


def serve_metrics(address: HostPort) -> None:
    """Serve the metrics over HTTP, from a background thread that lives as long as the process.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    try:
        start_http_server(address.port, address.host, registry=_registry)
    except OSError as error:
        raise ConfigurationError(f"cannot serve metrics on {address}: {error}") from error
