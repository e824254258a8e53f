"""The worker's metrics over HTTP, as Prometheus reads them."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest

from tachikoma.config import stages
from tachikoma.dev.redis_server import free_port
from tachikoma.errors import ConfigurationError
from tachikoma.streams.heartbeat import Heartbeat, Trust
from tachikoma.vocabulary.addresses import HostPort
from tachikoma_worker.metrics import serve_metrics

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def heartbeat() -> Heartbeat:
    trust = Trust(spiffe_id="spiffe://x/agent/web-1", expires_ms=7_000)
    return Heartbeat(
        boot="b", run="r", version="1", hostname="h", running=3, slots=16, load=0.5, memory_used=0.25, disk_used=0.75,
        warnings=("no swap accounting",), trust=trust,
    )  # fmt: skip


def test_stages_and_state_are_served_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_observers", [])
    port = free_port()
    serve_metrics(HostPort("127.0.0.1", port), heartbeat)
    stages.begin("job-7")
    stages.passed(stages.Stage.HAND_OVER)
    stages.passed(stages.Stage.RUN)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    for line in (
        "tachikoma_worker_running 3.0", "tachikoma_worker_slots 16.0", "tachikoma_worker_load 0.5",
        "tachikoma_worker_memory_used_ratio 0.25", "tachikoma_worker_disk_used_ratio 0.75",
        "tachikoma_worker_warnings 1.0", 'tachikoma_certificate_expires_seconds{of="own"} 7.0',
        'tachikoma_stage_seconds_count{stage="hand_over"} 1.0', 'tachikoma_stage_seconds_count{stage="run"} 1.0',
    ):  # fmt: skip
        assert line in lines
    # The page has a row for each, with its words.
    described = dict(re.findall(r"# HELP (\S+) (.*)", "\n".join(lines)))
    page = PAGE.read_text(encoding="utf-8").partition("## Worker")[2]
    assert dict(re.findall(r"\| `(\w+)` \| \w+ \| (.*) \|", page)) == described


def test_an_address_of_another_host_is_an_error_that_names_it() -> None:
    # TEST-NET-1 (RFC 5737), which no host has.
    with pytest.raises(ConfigurationError, match=r"cannot serve metrics on 192\.0\.2\.1:9100"):
        serve_metrics(HostPort("192.0.2.1", 9100), heartbeat)
