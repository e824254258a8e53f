"""Prometheus metrics of orchestrator and submitter, served at the address of the setting `metrics`.

`docs/metrics.md` is generated from this module. Names follow https://prometheus.io/docs/practices/naming/. No label has
a value that callers choose, so the number of series is bounded.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tachikoma.config import metrics
from tachikoma.config.metrics import SHORT
from tachikoma.identity.signed_messages import Receipt
from tachikoma.vocabulary.addresses import HostPort
from tachikoma.vocabulary.clock import seconds_of_ms
from tachikoma.vocabulary.states import ExecState

__all__ = [
    "ADMISSIONS",
    "AGENTS",
    "AUDIT_CLOSED",
    "AUDIT_WAITING",
    "AUTHORITY_LIFETIME",
    "CALLS",
    "CALL_SECONDS",
    "CERTIFICATE_EXPIRES",
    "CONNECTIONS",
    "EXECUTIONS",
    "HANDSHAKES",
    "LEASE_MISSES",
    "LIFE",
    "LISTENING",
    "OLDEST_QUEUED",
    "OPEN_EXECUTIONS",
    "OUTPUT_BYTES",
    "POLICIES",
    "POLICY_ERROR",
    "POLICY_SINCE",
    "QUEUED",
    "QUEUED_LONGEST",
    "QUEUE_SECONDS",
    "RECEIPT_SECONDS",
    "REDIS_SECONDS",
    "REGISTRY",
    "RUN_SECONDS",
    "STAGE_SECONDS",
    "WAITING_CALLERS",
    "AgentClasses",
    "Connections",
    "classify_agents",
    "markdown_table",
    "measure_admission",
    "measure_end",
    "measure_queue",
    "measure_receipt",
    "serve_metrics",
]

#: Connections that are remembered, more than a server has at once.
MAX_CONNECTIONS = 20_000

#: Largest number of classes of agents besides `OTHER_CLASS`, which is the class of all further agents.
MAX_CLASSES, OTHER_CLASS = 20, "other"

#: Upper bounds in seconds of the durations of commands.
LONG = (0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)

#: All metrics of this process.
REGISTRY = _registry = CollectorRegistry()

ADMISSIONS = Counter(
    "tachikoma_admissions",
    "Requests by decision: admitted, pending_approval, duplicate, denied (by policy), or why they were refused.",
    ["decision"],
    registry=_registry,
)
EXECUTIONS = Counter(
    "tachikoma_executions",
    "Executions that ended, by final state and class of their agent. Each is counted by the process that recorded it.",
    ["state", "agent_class"],
    registry=_registry,
)
QUEUE_SECONDS = Histogram(
    "tachikoma_queue_seconds",
    "Times on the queue: from admission or approval to the start of the command, by the agent's clock.",
    buckets=LONG,
    registry=_registry,
)
RUN_SECONDS = Histogram(
    "tachikoma_run_seconds",
    "Durations of commands, by their receipts.",
    buckets=LONG,
    registry=_registry,
)
RECEIPT_SECONDS = Histogram(
    "tachikoma_receipt_seconds",
    "Times from the end of a command, by the agent's clock, until its end is recorded.",
    buckets=LONG,
    registry=_registry,
)
STAGE_SECONDS = metrics.stage_seconds(_registry)
OUTPUT_BYTES = Counter("tachikoma_output_bytes", "Bytes of output that receipts report.", registry=_registry)
CALLS = Counter(
    "tachikoma_calls", "Calls that ended, by RPC and gRPC status code.", ["rpc", "code"], registry=_registry
)
CALL_SECONDS = Histogram(
    "tachikoma_call_seconds",
    "Durations of calls by RPC; those of Execute and of streams include the run of their command.",
    ["rpc"],
    buckets=SHORT,
    registry=_registry,
)
REDIS_SECONDS = Histogram(
    "tachikoma_redis_seconds",
    "Durations of round trips to Redis that run scripts.",
    buckets=SHORT,
    registry=_registry,
)
AGENTS = Gauge(
    "tachikoma_agents",
    "Agents by state: online, draining (and online), offline, revoked; warned are online with a warning.",
    ["state"],
    registry=_registry,
)
LEASE_MISSES = Counter("tachikoma_lease_misses", "Agents that were online and whose lease expired.", registry=_registry)
QUEUED = Gauge("tachikoma_queued", "Orders on the queues of all agents.", registry=_registry)
QUEUED_LONGEST = Gauge("tachikoma_queued_longest", "Orders on the longest queue of an agent.", registry=_registry)
OPEN_EXECUTIONS = Gauge(
    "tachikoma_open_executions",
    "Executions without a final state, by state: of the first 1000 by deadline. The state `all` counts all of them.",
    ["state"],
    registry=_registry,
)
OLDEST_QUEUED = Gauge(
    "tachikoma_oldest_queued_seconds",
    "Age of the oldest execution on a queue, of the first 1000 open ones by deadline.",
    registry=_registry,
)
WAITING_CALLERS = Gauge(
    "tachikoma_waiting_callers", "Executions whose callers wait in this process for their end.", registry=_registry
)
LISTENING = Gauge(
    "tachikoma_followers", "Output logs and sessions that callers of this process follow.", registry=_registry
)
CERTIFICATE_EXPIRES = Gauge(
    "tachikoma_certificate_expires_seconds",
    "Unix time at which a certificate expires: of this process (own), the earliest of an online agent (agents), and of "
    "the authority that issues certificates here (authority).",
    ["of"],
    registry=_registry,
)
AUTHORITY_LIFETIME = Gauge(
    "tachikoma_authority_lifetime_seconds",
    "Lifetime of the certificate of the authority that issues certificates here; 0 if there is none.",
    registry=_registry,
)
LIFE = Gauge("tachikoma_redis_life", "Number of the current life of Redis (docs/redis.md).", registry=_registry)
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
#: gRPC reports no handshake that fails (docs/decisions/0038), but the difference of these two counts them.
HANDSHAKES = Counter(
    "tachikoma_handshakes", "TLS handshakes that began at the main address, failed ones included.", registry=_registry
)
CONNECTIONS = Counter(
    "tachikoma_connections", "Connections at the main address with at least one call.", registry=_registry
)


class Connections:
    """Counts the connections that carry calls, each once."""

    def __init__(self) -> None:
        #: Address and port of the peer of each connection, the one used last at the end.
        self._known: OrderedDict[str, None] = OrderedDict()

    def used(self, peer: str) -> None:
        """Record a call of a connection, named by gRPC's text for its peer."""
        if peer in self._known:
            self._known.move_to_end(peer)
            return
        self._known[peer] = None
        CONNECTIONS.inc()
        if len(self._known) > MAX_CONNECTIONS:
            self._known.popitem(last=False)


class AgentClasses:
    """The classes of agents: the values of one label, the first ones that are seen; the rest is one class."""

    def __init__(self, label: str = "", labels: Callable[[str], Mapping[str, str]] = lambda _: {}) -> None:
        """Know no class yet.

        Args:
            label: name of the label; empty for none, and all agents have the empty class.
            labels: returns the labels that operators bound to an agent.
        """
        self._label = label
        self._labels = labels
        self._known: set[str] = set()

    def of(self, agent: str) -> str:
        """Return the class of an agent; empty if the agent does not have the label."""
        value = self._labels(agent).get(self._label, "") if self._label else ""
        if not value or value in self._known:
            return value
        if len(self._known) == MAX_CLASSES:
            return OTHER_CLASS
        self._known.add(value)
        return value


_classes = AgentClasses()


def measure_admission(outcome: str, *, parked: bool) -> None:
    """Count the decision of the admission script; `parked` is True if the request needs an approval."""
    ADMISSIONS.labels("pending_approval" if parked and outcome == "ADMITTED" else outcome.lower()).inc()


def classify_agents(label: str, labels: Callable[[str], Mapping[str, str]]) -> None:
    """Count executions by the value of one label of their agents from now on; arguments as of `AgentClasses`."""
    global _classes
    _classes = AgentClasses(label, labels)


def measure_end(state: ExecState | None, agent: str) -> None:
    """Count an execution of an agent that this process moved to a state, if that is final; None if its state stays."""
    if state is not None and state.terminal:
        EXECUTIONS.labels(state.lower(), _classes.of(agent)).inc()


def measure_queue(queued_ms: int, started_ms: int) -> None:
    """Measure the time of an execution on its queue: both ends in milliseconds since the epoch, 0 if unknown."""
    if queued_ms and started_ms:
        # The clocks of two hosts may differ.
        QUEUE_SECONDS.observe(max(0.0, seconds_of_ms(started_ms - queued_ms)))


def measure_receipt(receipt: Receipt) -> None:
    """Measure the execution of a receipt that is recorded now."""
    if receipt.started_ms:
        RUN_SECONDS.observe(receipt.duration_us / 1e6)
    # The clocks of two hosts may differ.
    RECEIPT_SECONDS.observe(max(0.0, time.time() - seconds_of_ms(receipt.ended_ms)))
    OUTPUT_BYTES.inc(receipt.stdout.total_bytes + receipt.stderr.total_bytes)


def markdown_table() -> str:
    """Return the table of all metrics for `docs/metrics.md`."""
    return metrics.markdown_table(REGISTRY)


def serve_metrics(address: HostPort) -> None:
    """Measure stages from now on, and serve all metrics over HTTP for as long as the process lives.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    metrics.serve(REGISTRY, address)
    metrics.measure_stages(STAGE_SECONDS)
