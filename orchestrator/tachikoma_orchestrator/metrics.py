"""What the orchestrator tells Prometheus, at the address of the setting `metrics`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from tachikoma.errors import ConfigurationError

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


def serve_metrics(address: str) -> None:
    """Serve them over HTTP, from a thread of its own.

    Raises:
        ConfigurationError: it cannot listen there.
    """
    host, _, port = address.rpartition(":")
    try:
        start_http_server(int(port), host or "127.0.0.1", registry=_registry)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"cannot serve metrics on {address!r}: {error}") from error
