"""Prometheus metrics of the worker, served at the address of the setting `metrics`. Imported only if it is set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tachikoma.config import metrics
from tachikoma.streams.heartbeat import Heartbeat
from tachikoma.vocabulary.addresses import HostPort
from tachikoma.vocabulary.clock import seconds_of_ms

__all__ = ["registry", "serve_metrics"]


class _Agent(Collector):
    """The agent's state when Prometheus reads it, by a heartbeat that is made for this."""

    def __init__(self, describe: Callable[[], Heartbeat]) -> None:
        self._describe = describe

    def collect(self) -> Iterator[Metric]:
        found = self._describe()
        yield GaugeMetricFamily("tachikoma_worker_running", "Executions that run now.", found.running)
        yield GaugeMetricFamily("tachikoma_worker_slots", "Executions that may run at once.", found.slots)
        yield GaugeMetricFamily("tachikoma_worker_load", "Load average over one minute.", found.load)
        yield GaugeMetricFamily(
            "tachikoma_worker_memory_used_ratio", "Share of the host's memory in use, 0 to 1.", found.memory_used
        )
        yield GaugeMetricFamily(
            "tachikoma_worker_disk_used_ratio", "Share of the disk of its data in use, 0 to 1.", found.disk_used
        )
        yield GaugeMetricFamily(
            "tachikoma_worker_warnings", "Limits and protections that its host cannot enforce.", len(found.warnings)
        )
        expires = GaugeMetricFamily(
            "tachikoma_certificate_expires_seconds", "Unix time at which its certificate expires.", labels=["of"]
        )
        if found.trust is not None:
            expires.add_metric(["own"], seconds_of_ms(found.trust.expires_ms))
        yield expires


def registry(describe: Callable[[], Heartbeat]) -> CollectorRegistry:
    """Return all metrics of a worker; `describe` returns its current heartbeat, and is called on another thread."""
    made = CollectorRegistry()
    made.register(_Agent(describe))
    return made


def serve_metrics(address: HostPort, describe: Callable[[], Heartbeat]) -> None:
    """Measure from now on, and serve the metrics. The arguments are those of `registry`.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    made = registry(describe)
    metrics.measure_stages(metrics.stage_seconds(made))
    metrics.serve(made, address)
