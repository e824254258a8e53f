"""The metrics over HTTP, as Prometheus reads them."""

from __future__ import annotations

import re
import socket
import time
import urllib.request

import pytest

from metric_values import value
from tachikoma.dev.redis_server import free_port
from tachikoma.errors import ConfigurationError
from tachikoma.identity.signed_messages import OutputDigest, Receipt
from tachikoma.vocabulary.addresses import HostPort
from tachikoma.vocabulary.states import ExecState
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
    # Only the orchestrator's own metrics: nothing of the Python process, and no times of births.
    names = {line.split("{")[0].split()[0] for line in lines if not line.startswith("#")}
    assert all(name.startswith("tachikoma_") and not name.endswith("_created") for name in names)
    documented = {row.split("`")[1] for row in metrics.markdown_table().splitlines()[2:]}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in names} <= documented


def test_names_follow_the_conventions() -> None:
    for metric in metrics.REGISTRY.collect():
        assert re.fullmatch("tachikoma(_[a-z]+)+", metric.name)
        assert metric.documentation.endswith(".")
        assert (metric.type == "histogram") <= metric.name.endswith("_seconds")


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


@pytest.mark.parametrize("state", [None, *ExecState])
def test_only_final_states_are_counted_as_ends(state: ExecState | None) -> None:
    label = "" if state is None else state.lower()
    before = value("tachikoma_executions_total", state=label, agent_class="")
    metrics.measure_end(state, "web-1")
    final = state is not None and state.terminal
    assert value("tachikoma_executions_total", state=label, agent_class="") == before + final


def test_executions_are_counted_by_the_classes_of_their_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {"web-1": {"role": "web", "site": "a"}, "db-1": {"role": "db"}, "x-1": {"site": "a"}}
    monkeypatch.setattr(metrics, "_classes", metrics._classes)
    metrics.classify_agents("role", lambda agent: labels.get(agent, {}))
    before = {name: value("tachikoma_executions_total", state="lost", agent_class=name) for name in ("web", "db", "")}
    for agent in ("web-1", "web-1", "db-1", "x-1", "unknown"):
        metrics.measure_end(ExecState.LOST, agent)
    after = {name: value("tachikoma_executions_total", state="lost", agent_class=name) for name in before}
    assert {name: after[name] - before[name] for name in before} == {"web": 2, "db": 1, "": 2}


def test_the_number_of_classes_is_bounded() -> None:
    classes = metrics.AgentClasses("role", lambda agent: {"role": agent})
    agents = [f"role-{number}" for number in range(metrics.MAX_CLASSES + 5)]
    assert [classes.of(agent) for agent in agents] == [*agents[: metrics.MAX_CLASSES], *["other"] * 5]
    assert classes.of(agents[3]) == agents[3]


@pytest.mark.parametrize(
    ("queued_ms", "started_ms", "count", "seconds"),
    [(1000, 3500, 1, 2.5), (3000, 1000, 1, 0.0), (0, 1000, 0, 0.0), (1000, 0, 0, 0.0)],
)
def test_the_time_on_the_queue_is_measured(queued_ms: int, started_ms: int, count: int, seconds: float) -> None:
    names = ("tachikoma_queue_seconds_count", "tachikoma_queue_seconds_sum")
    before = [value(name) for name in names]
    metrics.measure_queue(queued_ms, started_ms)
    assert [value(name) - old for name, old in zip(names, before, strict=True)] == [count, seconds]


@pytest.mark.parametrize(("started_ms", "runs"), [(5, 1), (0, 0)])
@pytest.mark.parametrize("ahead_seconds", [0, 3600])
def test_a_receipt_gives_the_times_of_its_execution(started_ms: int, runs: int, ahead_seconds: int) -> None:
    digest = OutputDigest(total_bytes=3, sha256="ab" * 32, truncated=False, excerpt_sha256="ab" * 32)
    receipt = Receipt(
        iss="spiffe://x/agent/web-1", iat=1, jti="job-7", order_sha256="order", exit_code=0, signal=0,
        state=ExecState.SUCCEEDED, error="", executable="/bin/true", started_ms=started_ms,
        ended_ms=int((time.time() + ahead_seconds) * 1000), duration_us=2000, chunks=2, stdout=digest, stderr=digest,
    )  # fmt: skip
    names = ("tachikoma_run_seconds_count", "tachikoma_receipt_seconds_count", "tachikoma_output_bytes_total")
    before, waited = [value(name) for name in names], value("tachikoma_receipt_seconds_sum")
    metrics.measure_receipt(receipt)
    assert [value(name) for name in names] == [before[0] + runs, before[1] + 1, before[2] + 6]
    # A clock that is ahead makes no negative time.
    assert value("tachikoma_receipt_seconds_sum") >= waited


@pytest.mark.parametrize(
    ("outcome", "parked", "decision"),
    [("ADMITTED", False, "admitted"), ("ADMITTED", True, "pending_approval"), ("DUPLICATE", True, "duplicate")],
)
def test_a_decision_is_counted(outcome: str, parked: bool, decision: str) -> None:
    before = value("tachikoma_admissions_total", decision=decision)
    metrics.measure_admission(outcome, parked=parked)
    assert value("tachikoma_admissions_total", decision=decision) == before + 1
