"""Values of the orchestrator's metrics."""

from __future__ import annotations

from tachikoma_orchestrator.metrics import REGISTRY

__all__ = ["value"]


def value(name: str, **labels: str) -> float:
    """Return the value of a metric with these labels; 0 before its first change."""
    return REGISTRY.get_sample_value(name, labels) or 0.0
