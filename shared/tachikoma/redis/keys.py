"""Every name that Tachikoma uses in Redis, made here and nowhere else.

Names that an agent owns begin with `agent.<id>`, those of the orchestrator with `orch:`. Ids contain no dot and no
colon, so no name of one agent begins another agent's name. A key and a channel of one purpose share their name.

`tachikoma.redis.names` lists all names with their type, owner and value; `docs/redis.md` shows that list.
"""

from __future__ import annotations

import zlib

__all__ = [
    "AGENTS",
    "ALL_CELERY_EVENTS",
    "ALL_EVENTS",
    "ALL_GROUPS",
    "ALL_INFO",
    "ALL_OURS",
    "ALL_OWN_RESULTS",
    "ALL_QUEUES",
    "APPROVALS",
    "APPROVED",
    "AUDIT",
    "AUDIT_SEQ",
    "AUDIT_SINKS",
    "BATCH",
    "BATCHES",
    "BATCHES_CHANGED",
    "BATCHES_OPEN",
    "BEAT_LOCK",
    "CALLBACKS",
    "DRAINING",
    "DUE_TASK",
    "ENDED",
    "EVENTS_WANTED",
    "EXECUTE_TASK",
    "INDEX",
    "JOINED",
    "LABELS",
    "LABELS_CHANGES",
    "LIFE",
    "ONLINE",
    "OPEN",
    "OUTPUTS",
    "QUEUE_LANES",
    "REPLY_LANES",
    "REVOKED",
    "SCHEDULES",
    "SUBMIT",
    "SUBMITTERS",
    "USERS",
    "agent_index",
    "agent_of_channel",
    "application_result",
    "application_task_id",
    "audit_lock",
    "batch",
    "batch_driver",
    "binding",
    "cancel",
    "celery_events",
    "claim",
    "control",
    "enrolment",
    "events",
    "execution",
    "execution_of_channel",
    "info",
    "input",
    "node",
    "orders",
    "output",
    "own_result",
    "parked",
    "queue",
    "queue_lane",
    "queues",
    "read",
    "recorder",
    "reply_lane",
    "report",
    "reports_to",
    "requester_queue",
    "result",
    "schedule",
    "schedule_order",
    "schedule_runs",
    "scope",
    "session",
    "split_task_id",
    "task_id",
    "unacked",
]

#: The Celery task of an order, the only one that an agent runs.
EXECUTE_TASK = "tachikoma.execute"
#: The Celery task by which beat hints to the submitter that a schedule is due.
DUE_TASK = "tachikoma.due"

#: Celery's prefix of the keys and channels of results.
_RESULT = "celery-task-meta-"

#: Number of channels on which each agent reports. An orchestrator listens to one of them, at all agents.
REPLY_LANES = 64

#: Number of queues of each agent beside its main one. The requests of one requester are on one of them.
QUEUE_LANES = 15

# --- names of the orchestrator ----------------------------------------------------------------------------------------

INDEX = "orch:index"
OPEN = "orch:open"
AGENTS = "orch:agents"
ONLINE = "orch:online"
DRAINING = "orch:draining"
REVOKED = "orch:revoked"
#: Signed labels of agents, and the agents by their last change.
LABELS = "orch:labels"
LABELS_CHANGES = f"{LABELS}:changes"
JOINED = "orch:joined"
USERS = "orch:users"
APPROVALS = "orch:approvals"
#: Ended executions whose output Redis retains, by the time of their final state.
OUTPUTS = "orch:outputs"
APPROVED = "orch:approved"
AUDIT = "orch:audit"
#: Also made in `lua/prelude.lua`, from the name of the trail.
AUDIT_SEQ = f"{AUDIT}:seq"
AUDIT_SINKS = f"{AUDIT}:sinks"
ENDED = "orch:ended"
#: The signed record of the current life of Redis.
LIFE = "orch:life"
EVENTS_WANTED = "orch:events:wanted"
SCHEDULES = "orch:schedules"
#: Batches; the last two are also made in `lua/batches.lua`.
BATCHES = "orch:batches"
BATCHES_OPEN = "orch:batches:open"
BATCHES_CHANGED = "orch:batches:changed"

# --- names of the submitter and of applications -----------------------------------------------------------------------

SUBMIT = "orch.submit"
BATCH = "orch.batch"
SUBMITTERS = "orch:submitters"
#: Celery's default queue, for callbacks of applications that name no queue.
CALLBACKS = "celery"
#: Pattern of the results of applications' own tasks. Celery makes their ids, which have no dot.
ALL_OWN_RESULTS = f"{_RESULT}{'-'.join('[0-9a-f]' * length for length in (8, 4, 4, 4, 12))}"
#: Celery's pattern for the members of groups.
ALL_GROUPS = "celery-taskset-meta-*"
#: Lock of the beat that sends hints.
BEAT_LOCK = "beat:lock"

# --- patterns ---------------------------------------------------------------------------------------------------------

#: Patterns that an orchestrator subscribes to, or scans.
ALL_EVENTS = "agent.*:events"
ALL_INFO = "agent.*:info"
#: Pattern that every listener to Celery's events subscribes to.
ALL_CELERY_EVENTS = "/0.celeryev/*"
#: Pattern of all names that the orchestrator owns, for ACL rules.
ALL_OURS = "orch:*"
#: Pattern of all queues, for ACL rules. It includes the agents' other names: no pattern of Redis tells them apart.
ALL_QUEUES = "agent.*"


# --- names of an agent ------------------------------------------------------------------------------------------------


def queue(agent: str) -> str:
    """Return the name of an agent's queue of Celery messages."""
    return f"agent.{agent}"


def queue_lane(agent: str, lane: int | str) -> str:
    """Return the name of an agent's queue for some of its requesters."""
    return f"agent.{agent}:queue:{lane}"


def queues(agent: str) -> tuple[str, ...]:
    """Return the names of all queues of an agent, the main one first."""
    return queue(agent), *(queue_lane(agent, lane) for lane in range(QUEUE_LANES))


def requester_queue(agent: str, requester: str, lanes: int) -> str:
    """Return the queue for the orders of a requester.

    Args:
        agent: the agent.
        requester: SPIFFE ID of the requester.
        lanes: number of queues beside the main one that the agent's worker reads; 0 for an older worker.
    """
    lanes = min(lanes, QUEUE_LANES)
    # By agent too, so that two requesters who share a queue at one agent share none at most others.
    return queue_lane(agent, zlib.crc32(f"{agent} {requester}".encode()) % lanes) if lanes else queue(agent)


def info(agent: str) -> str:
    """Return the key of an agent's registration and lease."""
    return f"agent.{agent}:info"


def events(agent: str) -> str:
    """Return the channel of an agent's notices."""
    return f"agent.{agent}:events"


def claim(agent: str, exec_id: str) -> str:
    """Return the key of the claim of an execution, or of the fence against one."""
    return f"agent.{agent}:claim:{exec_id}"


def output(agent: str, exec_id: str) -> str:
    """Return the name of an execution's output log: a stream, and a channel of the same frames."""
    return f"agent.{agent}:output:{exec_id}"


def orders(agent: str) -> str:
    """Return the key of the orders that an agent writes back after Redis lost data."""
    return f"agent.{agent}:orders"


def read(agent: str, exec_id: str) -> str:
    """Return the key of the last output chunk that a reader confirmed."""
    return f"agent.{agent}:read:{exec_id}"


def input(agent: str, exec_id: str) -> str:
    """Return the key of the stream of a session's offers and sealed input."""
    return f"agent.{agent}:input:{exec_id}"


def session(agent: str, exec_id: str) -> str:
    """Return the name of a session's answers: a channel, and a key with the last signed answer."""
    return f"agent.{agent}:session:{exec_id}"


def cancel(agent: str, exec_id: str) -> str:
    """Return the key of the signed cancel of an execution."""
    return f"agent.{agent}:cancel:{exec_id}"


def control(agent: str) -> str:
    """Return the channel by which a running worker receives cancels."""
    return f"agent.{agent}:control"


def agent_of_channel(channel: str) -> str:
    """Return the agent that owns a channel or key `agent.<id>:…`."""
    return channel.removeprefix("agent.").partition(":")[0]


# --- Celery -----------------------------------------------------------------------------------------------------------


def node(agent: str) -> str:
    """Return the node name of an agent's Celery worker."""
    return f"{agent}@{agent}"


def celery_events(kind: str) -> str:
    """Return the channel of messages with several events of a kind, `task` or `worker`."""
    return f"/0.celeryev/{kind}.multi"


def task_id(agent: str, exec_id: str) -> str:
    """Return the Celery task id of an execution; it begins with the agent, so that ACL rules cover the result."""
    return f"{agent}.{exec_id}"


def result(agent: str, exec_id: str) -> str:
    """Return the key and channel of an execution's Celery result."""
    return f"{_RESULT}{task_id(agent, exec_id)}"


def split_task_id(value: str) -> tuple[str, str]:
    """Return agent and execution of a Celery task id.

    Raises:
        ValueError: the text is not the task id of an execution.
    """
    agent, dot, exec_id = value.partition(".")
    if not (agent and dot and exec_id):
        raise ValueError(f"{value[:200]!r} is not <agent>.<execution>")
    return agent, exec_id


def reply_lane(process: str) -> int:
    """Return the number of the channels on which agents report to a process of an orchestrator.

    It is computed from the name, so that a restarted process receives the reports to the one before it. Two processes
    with the same number both receive the reports to either, which costs time and changes nothing.

    Args:
        process: a name that no other process of an orchestrator has.
    """
    return zlib.crc32(process.encode()) % REPLY_LANES


def report(agent: str, lane: int | str, exec_id: str) -> str:
    """Return the channel on which an agent reports an execution's result to the processes of one lane."""
    return f"agent.{agent}:report:{lane}:{exec_id}"


def reports_to(lane: int | str) -> str:
    """Return the pattern of the reports of all agents to the processes of one lane."""
    return report("*", lane, "*")


def execution_of_channel(channel: str) -> tuple[str, str]:
    """Return agent and execution of a channel of reports.

    Raises:
        ValueError: the text is not the name of such a channel.
    """
    owner, _, rest = channel.removeprefix("agent.").partition(":")
    kind, _, rest = rest.partition(":")
    _, _, exec_id = rest.partition(":")
    if kind != "report" or not owner or not exec_id or ":" in exec_id:
        raise ValueError(f"{channel[:200]!r} is no channel of reports")
    return owner, exec_id


# --- the orchestrator: one name for each execution, agent, schedule ---------------------------------------------------


def execution(exec_id: str) -> str:
    """Return the key of an execution's ledger record."""
    return f"orch:exec:{exec_id}"


def parked(exec_id: str) -> str:
    """Return the key of a signed request that waits for an approval."""
    return f"orch:parked:{exec_id}"


def recorder(exec_id: str) -> str:
    """Return the key of the lease of the orchestrator that records an execution."""
    return f"orch:recorder:{exec_id}"


def enrolment(agent: str) -> str:
    """Return the key of a signed enrolment that waits for its token."""
    return f"orch:enrolment:{agent}"


def audit_lock(sink: str) -> str:
    """Return the key of the lock of a shared sink."""
    return f"{AUDIT}:lock:{sink}"


def scope(name: str) -> tuple[str, str, str]:
    """Return the keys that a rate limit counts by: rate, open, waiting. Also made in `lua/transition.lua`."""
    return f"orch:rate:{name}", f"orch:open:{name}", f"orch:waiting:{name}"


def agent_index(agent: str) -> str:
    """Return the key of an agent's executions by time of acceptance."""
    return f"orch:index:{agent}"


def batch(batch_id: str) -> tuple[str, str, str, str]:
    """Return the keys of a batch: state, pending, running and ended targets. Also made in `lua/batches.lua`."""
    key = f"orch:batch:{batch_id}"
    return key, f"{key}:pending", f"{key}:running", f"{key}:ended"


def batch_driver(batch_id: str) -> str:
    """Return the key of the orchestrator that drives a batch."""
    return f"orch:batch:{batch_id}:driver"


def schedule(name: str) -> str:
    """Return the key of a schedule's state."""
    return f"orch:schedule:{name}"


def schedule_runs(name: str) -> str:
    """Return the key of the outcomes of a schedule's scheduled times."""
    return f"{schedule(name)}:runs"


def schedule_order(name: str) -> str:
    """Return the key of a schedule's scheduled times in order."""
    return f"{schedule(name)}:order"


# --- the submitter and applications -----------------------------------------------------------------------------------


def application_task_id(application: str, exec_id: str) -> str:
    """Return the Celery task id of an application's request; it begins with the application, as ACL rules need."""
    return f"app:{application}:{exec_id}"


def application_result(application: str, exec_id: str) -> str:
    """Return the key and channel of the Celery result of an application's request."""
    return f"{_RESULT}{application_task_id(application, exec_id)}"


def own_result(task: str) -> str:
    """Return the key and channel of the Celery result of an application's own task."""
    return f"{_RESULT}{task}"


def unacked(run: str) -> tuple[str, str, str]:
    """Return kombu's keys for messages that were taken and not acknowledged: hash, index, and its lock over both."""
    return f"orch:unacked:{run}", f"orch:unacked:{run}:index", f"orch:unacked:{run}:mutex"


def binding(queue: str) -> tuple[str, str]:
    """Return kombu's keys for the exchanges of a queue."""
    return f"_kombu.binding.{queue}", f"_kombu.binding_permanent.{queue}"
