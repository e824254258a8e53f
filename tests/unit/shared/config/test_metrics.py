"""What all metrics have in common: stages become a histogram, and a table describes all metrics."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from tachikoma.config import metrics, stages


async def test_each_stage_is_measured_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_observers", [])
    registry = CollectorRegistry()
    metrics.measure_stages(metrics.stage_seconds(registry))
    moments = iter([0, 2_000_000_000, 2_500_000_000])
    monkeypatch.setattr(stages, "monotonic_ns", lambda: next(moments))
    stages.begin("job-7")
    stages.passed(stages.Stage.HAND_OVER)
    stages.passed(stages.Stage.RUN)
    assert registry.get_sample_value("tachikoma_stage_seconds_sum", {"stage": "hand_over"}) == 2
    assert registry.get_sample_value("tachikoma_stage_seconds_sum", {"stage": "run"}) == 0.5


def test_the_table_has_the_names_that_prometheus_shows() -> None:
    registry = CollectorRegistry()
    Counter("tachikoma_things", "Things.", registry=registry)
    Gauge("tachikoma_depth", "Depth.", registry=registry)
    assert metrics.markdown_table(registry).splitlines()[2:] == [
        "| `tachikoma_things_total` | counter | Things. |",
        "| `tachikoma_depth` | gauge | Depth. |",
    ]
