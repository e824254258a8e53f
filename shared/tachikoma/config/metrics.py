"""The common base of the metrics of orchestrator, submitter and worker, whose extras contain prometheus-client."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, start_http_server

from tachikoma.config import stages
from tachikoma.config.stages import Span
from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.addresses import HostPort

__all__ = ["SHORT", "markdown_table", "measure_stages", "serve", "stage_seconds"]

#: Upper bounds in seconds of the durations of steps and calls.
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)

# A series for the time of each counter's birth would double their number, and answers no question.
disable_created_metrics()  # type: ignore[no-untyped-call]


def stage_seconds(registry: CollectorRegistry) -> Histogram:
    """Return the histogram of the stages that executions pass in this process, in seconds."""
    return Histogram(
        "tachikoma_stage_seconds",
        "Durations of the stages of executions in this process, by stage (performance.md).",
        ["stage"],
        buckets=SHORT,
        registry=registry,
    )


def measure_stages(histogram: Histogram) -> None:
    """Measure the stages of this process in a histogram from now on."""

    def measure(span: Span) -> None:
        histogram.labels(span.stage.replace(" ", "_")).observe((span.end_ns - span.begin_ns) / 1e9)

    stages.observe(measure)


def serve(registry: CollectorRegistry, address: HostPort) -> None:
    """Serve metrics over HTTP, from a background thread that lives as long as the process.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    try:
        start_http_server(address.port, address.host, registry=registry)
    except OSError as error:
        raise ConfigurationError(f"cannot serve metrics on {address}: {error}") from error


def markdown_table(registry: CollectorRegistry) -> str:
    """Return a table of all metrics, for the documentation."""
    lines = ["| metric | kind | meaning |", "|---|---|---|"]
    for metric in registry.collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        lines.append(f"| `{name}` | {metric.type} | {metric.documentation} |")
    return "\n".join(lines) + "\n"
