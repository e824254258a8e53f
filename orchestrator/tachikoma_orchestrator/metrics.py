"""What the orchestrator tells Prometheus, at the address of the setting `metrics`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.addresses import HostPort

__all__ = ["AUDIT_CLOSED", "AUDIT_WAITING", "POLICIES", "POLICY_ERROR", "POLICY_SINCE", "serve_metrics"]

_registry = CollectorRegistry()

POLICIES = Gauge("tachikoma_policies", "Policies in force.", registry=_registry)
POLICY_SINCE = Gauge("tachikoma_policy_since_seconds", "When they were taken, as Unix time.", registry=_registry)
POLICY_ERROR = Gauge(
    "tachikoma_policy_error", "1 while the policy files are wrong, and an older set is in force.", registry=_registry
)
AUDIT_WAITING = Gauge(
    "tachikoma_audit_waiting", "Events of the audit trail that a sink has not taken.", ["sink"], registry=_registry
)
AUDIT_CLOSED = Gauge(
    "tachikoma_audit_closed", "1 while requests are refused since too many events wait.", registry=_registry
)


def serve_metrics(address: HostPort) -> None:
    """Serve the metrics over HTTP from a thread of their own.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    try:
        start_http_server(address.port, address.host, registry=_registry)
    except OSError as error:
        raise ConfigurationError(f"cannot serve metrics on {address}: {error}") from error
