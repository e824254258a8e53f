"""Every name Tachikoma uses in Redis, made here and nowhere else.

Names an agent owns begin with `agent.<id>`; ids hold no dot and no colon, so no name of one agent begins another's.
The orchestrator's begin with `orch:`. Keys and channels of one purpose share their name.

    agent.<id>                       list     the agent's queue of Celery messages
    agent.<id>:info                  string   registration and lease: run, load, labels (expires)
    agent.<id>:events                channel  the agent's notices: heartbeat, started
    agent.<id>:claim:<exec>          string   who may run it: an agent's journal, or the fence that says nobody
    agent.<id>:output:<exec>         stream   output log, entry id `<seq>-0`; and channel of the same frames
    agent.<id>:read:<exec>           string   last chunk that was read, where output waits for that
    agent.<id>:cancel:<exec>         string   signed cancel, kept until nobody can start it any more
    agent.<id>:control               channel  `<exec> <signed cancel>` for whoever runs now
    celery-task-meta-<id>.<exec>     string   Celery result with the signed receipt; and channel
    orch:exec:<exec>                 hash     ledger record
    orch:index                       zset     executions by time of acceptance
    orch:index:<agent>               zset     the same, of one agent
    orch:open                        zset     executions that have not ended, by deadline
    orch:approvals                   zset     executions that wait for an approval, by deadline
    orch:parked:<exec>               string   signed request that waits for an approval
    orch:approved                    channel  ids of executions that were approved
    orch:rate:<scope>                zset     executions of a rate limit's scope accepted in the last minute
    orch:open:<scope>                set      those of them that have not ended
    orch:waiting:<scope>             set      those of them that have not started
    orch:agents                      hash     agents ever heard of, with their last heartbeat
    orch:online                      hash     agents that joined and did not leave, with the run of their worker
    orch:draining                    hash     agents that take no new executions: since when, by whom and why
    orch:revoked                     hash     agents that were cut off: when, by whom, why, whether still
    orch:joined                      hash     agents that joined with a token: with whose, and from where
    orch:enrolment:<agent>           string   signed enrolment that waits for its token (expires)
    orch:audit                       stream   audit trail
    orch:audit:seq                   string   number of its last event
    orch:audit:sinks                 hash     how far each sink has taken it
    orch:audit:lock:<sink>           string   which orchestrator ships to a shared sink
    orch:ended                       channel  ids of executions that ended
    orch:events:wanted               channel  says that somebody began to listen to Celery's events
    /0.celeryev/<kind>.multi         channel  Celery's own event messages, by kombu's name for their exchange
    orch:schedules                   hash     schedules that were ever looked at
    orch:schedule:<schedule>         hash     how far its due times are accounted for, and whether it is paused
    orch:schedule:<schedule>:runs    hash     what became of its due times
    orch:schedule:<schedule>:order   zset     the same by time; the oldest are let go
    redbeat:*                        any      Celery beat's own: when it was at which schedule, and its lock
    orch.submit                      list     the submitters' queue of requests that Celery applications signed
    orch.batch                       list     the submitters' queue of what celery beat says is due
    orch:submitters                  zset     runs of submitters, by the time each was last alive
    orch:unacked:<run>               hash     messages a submitter has taken and not finished, by delivery tag
    orch:unacked:<run>:index         zset     the same, by time; and `:mutex`, kombu's lock over both
    celery-task-meta-app:<name>:<exec>  string  Celery result for an application; and channel
    celery                           list     Celery's default queue, of applications: their callbacks
    celery-task-meta-<uuid>          string   the same of an application's own task; and channel
    celery-taskset-meta-*            string   Celery's groups and chords of applications
    _kombu.binding.<queue>           set      written by applications' kombu for a queue they send to, and not read
"""

from __future__ import annotations

__all__ = [
    "AGENTS",
    "ALL_CELERY_EVENTS",
    "ALL_EVENTS",
    "ALL_GROUPS",
    "ALL_INFO",
    "ALL_OURS",
    "ALL_OWN_RESULTS",
    "ALL_QUEUES",
    "ALL_RESULTS",
    "APPROVALS",
    "APPROVED",
    "AUDIT",
    "AUDIT_SEQ",
    "AUDIT_SINKS",
    "BATCH",
    "BEAT",
    "CALLBACKS",
    "DRAINING",
    "DUE_TASK",
    "ENDED",
    "EVENTS_WANTED",
    "EXECUTE_TASK",
    "INDEX",
    "JOINED",
    "ONLINE",
    "OPEN",
    "REVOKED",
    "SCHEDULES",
    "SUBMIT",
    "SUBMITTERS",
    "agent_index",
    "agent_of_channel",
    "application_result",
    "application_task_id",
    "audit_lock",
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
    "node",
    "output",
    "own_result",
    "parked",
    "queue",
    "read",
    "result",
    "schedule",
    "schedule_order",
    "schedule_runs",
    "scope",
    "split_task_id",
    "task_id",
    "unacked",
]

#: The Celery task of an order, the only one that an agent runs.
EXECUTE_TASK = "tachikoma.execute"
#: The Celery task by which beat hints to the submitter that a schedule is due.
DUE_TASK = "tachikoma.due"

_RESULT = "celery-task-meta-"

INDEX = "orch:index"
OPEN = "orch:open"
AGENTS = "orch:agents"
ONLINE = "orch:online"
DRAINING = "orch:draining"
REVOKED = "orch:revoked"
JOINED = "orch:joined"
APPROVALS = "orch:approvals"
APPROVED = "orch:approved"
AUDIT = "orch:audit"
#: Made in `lua/prelude.lua` from the name of the trail.
AUDIT_SEQ = f"{AUDIT}:seq"
AUDIT_SINKS = f"{AUDIT}:sinks"
ENDED = "orch:ended"
EVENTS_WANTED = "orch:events:wanted"
SCHEDULES = "orch:schedules"
SUBMIT = "orch.submit"
BATCH = "orch.batch"
SUBMITTERS = "orch:submitters"
#: Celery's default queue: where callbacks of applications go that name no queue.
CALLBACKS = "celery"
#: Results of applications' own tasks, whose ids Celery makes; no agent's result is called so, for want of a dot.
ALL_OWN_RESULTS = f"{_RESULT}{'-'.join('[0-9a-f]' * length for length in (8, 4, 4, 4, 12))}"
#: Celery's own name for what a group consists of.
ALL_GROUPS = "celery-taskset-meta-*"
#: RedBeat makes its names itself, after this prefix.
BEAT = "redbeat:"

#: Patterns an orchestrator subscribes to.
ALL_EVENTS = "agent.*:events"
ALL_RESULTS = "celery-task-meta-*"
ALL_INFO = "agent.*:info"
#: The pattern every listener to Celery's events subscribes to.
ALL_CELERY_EVENTS = "/0.celeryev/*"
#: Patterns for its rights: what the orchestrator owns; and queues, which no pattern tells from agents' other names.
ALL_OURS = "orch:*"
ALL_QUEUES = "agent.*"


def queue(agent: str) -> str:
    return f"agent.{agent}"


def info(agent: str) -> str:
    return f"agent.{agent}:info"


def events(agent: str) -> str:
    return f"agent.{agent}:events"


def claim(agent: str, exec_id: str) -> str:
    return f"agent.{agent}:claim:{exec_id}"


def output(agent: str, exec_id: str) -> str:
    return f"agent.{agent}:output:{exec_id}"


def read(agent: str, exec_id: str) -> str:
    return f"agent.{agent}:read:{exec_id}"


def cancel(agent: str, exec_id: str) -> str:
    return f"agent.{agent}:cancel:{exec_id}"


def control(agent: str) -> str:
    return f"agent.{agent}:control"


def node(agent: str) -> str:
    """What an agent's Celery worker calls itself."""
    return f"{agent}@{agent}"


def celery_events(kind: str) -> str:
    """Where several events of a kind, `task` or `worker`, are published in one message."""
    return f"/0.celeryev/{kind}.multi"


def task_id(agent: str, exec_id: str) -> str:
    """The Celery task id, so made that the result's key falls under a pattern of the agent."""
    return f"{agent}.{exec_id}"


def result(agent: str, exec_id: str) -> str:
    return f"{_RESULT}{task_id(agent, exec_id)}"


def split_task_id(value: str) -> tuple[str, str]:
    """Agent and execution of a Celery task id.

    Raises:
        ValueError: it is not one of ours.
    """
    agent, dot, exec_id = value.partition(".")
    if not (agent and dot and exec_id):
        raise ValueError(f"{value[:200]!r} is not <agent>.<execution>")
    return agent, exec_id


def execution_of_channel(channel: str) -> tuple[str, str]:
    """Agent and execution of a result channel.

    Raises:
        ValueError: it is not one of ours.
    """
    return split_task_id(channel.removeprefix(_RESULT))


def agent_of_channel(channel: str) -> str:
    """The agent that owns a channel or key `agent.<id>:…`."""
    return channel.removeprefix("agent.").partition(":")[0]


def execution(exec_id: str) -> str:
    return f"orch:exec:{exec_id}"


def parked(exec_id: str) -> str:
    return f"orch:parked:{exec_id}"


def enrolment(agent: str) -> str:
    return f"orch:enrolment:{agent}"


def audit_lock(sink: str) -> str:
    return f"{AUDIT}:lock:{sink}"


def scope(name: str) -> tuple[str, str, str]:
    """What a rate limit counts for one scope; also in `lua/transition.lua`."""
    return f"orch:rate:{name}", f"orch:open:{name}", f"orch:waiting:{name}"


def application_task_id(application: str, exec_id: str) -> str:
    """The Celery task id of an application's request, so made that its result's key falls under a pattern of it."""
    return f"app:{application}:{exec_id}"


def application_result(application: str, exec_id: str) -> str:
    return f"{_RESULT}{application_task_id(application, exec_id)}"


def own_result(task: str) -> str:
    """Of an application's own task."""
    return f"{_RESULT}{task}"


def unacked(run: str) -> tuple[str, str, str]:
    """What kombu keeps of messages that were taken and not acknowledged: hash, index, and its lock over both."""
    return f"orch:unacked:{run}", f"orch:unacked:{run}:index", f"orch:unacked:{run}:mutex"


def binding(queue: str) -> tuple[str, str]:
    """Where kombu writes which exchanges lead to a queue."""
    return f"_kombu.binding.{queue}", f"_kombu.binding_permanent.{queue}"


def agent_index(agent: str) -> str:
    return f"orch:index:{agent}"


def schedule(name: str) -> str:
    return f"orch:schedule:{name}"


def schedule_runs(name: str) -> str:
    return f"{schedule(name)}:runs"


def schedule_order(name: str) -> str:
    return f"{schedule(name)}:order"
