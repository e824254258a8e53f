"""The metrics over HTTP, as Prometheus reads them."""

from __future__ import annotations

import socket
import urllib.request

import pytest

from tachikoma.dev.redis_server import free_port
from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.addresses import HostPort
from tachikoma_orchestrator import metrics


def test_metrics_are_served_over_http() -> None:
    port = free_port()
    metrics.serve_metrics(HostPort("127.0.0.1", port))
    metrics.POLICIES.set(3)
    metrics.AUDIT_WAITING.labels(sink="file").set(7)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    assert "tachikoma_policies 3.0" in lines
    assert 'tachikoma_audit_waiting{sink="file"} 7.0' in lines
    # Only the orchestrator's own metrics: nothing of the Python process.
    assert {line.split("{")[0].split()[0] for line in lines if not line.startswith("#")} == {
        *("tachikoma_policies", "tachikoma_policy_since_seconds", "tachikoma_policy_error"),
        *("tachikoma_audit_waiting", "tachikoma_audit_closed"),
        *(f"tachikoma_{name}_{part}" for name in ("handshakes", "connections") for part in ("total", "created")),
    }


def counted() -> float:
    """Return how many connections were counted."""
    return next(sample.value for sample in metrics.CONNECTIONS.collect()[0].samples if sample.name.endswith("_total"))


def test_a_connection_counts_once_however_many_calls_it_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_CONNECTIONS", 3)
    connections, before = metrics.Connections(), counted()
    for peer in ("ipv4:192.0.2.1:1", "ipv4:192.0.2.1:2", "ipv4:192.0.2.1:1", "unix:", "ipv4:192.0.2.1:1"):
        connections.used(peer)
    assert counted() - before == 3
    # The one that was silent longest is forgotten first.
    connections.used("ipv4:192.0.2.1:3")
    connections.used("ipv4:192.0.2.1:1")
    assert counted() - before == 4
    connections.used("ipv4:192.0.2.1:2")
    assert counted() - before == 5


def test_an_address_of_another_host_is_an_error_that_names_it() -> None:
    # TEST-NET-1 (RFC 5737), which no host has.
    with pytest.raises(ConfigurationError, match=r"cannot serve metrics on 192\.0\.2\.1:9100"):
        metrics.serve_metrics(HostPort("192.0.2.1", 9100))


def test_a_port_in_use_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match="in use"):
            metrics.serve_metrics(HostPort("127.0.0.1", taken.getsockname()[1]))
