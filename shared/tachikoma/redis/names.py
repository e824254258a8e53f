"""The table of names in Redis: type, owner and users of each, the one source for `docs/redis.md`.

The functions and constants of `tachikoma.redis.keys` make these names; a test compares both. Another test compares the
owner and the other users with the ACL rules of `tachikoma.redis.users`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["NAMES", "Kind", "Name", "Part", "markdown_table"]


class Kind(StrEnum):
    """The type of a value, or a channel of publish and subscribe."""

    STRING = "string"
    HASH = "hash"
    LIST = "list"
    SET = "set"
    SORTED_SET = "sorted set"
    STREAM = "stream"
    CHANNEL = "channel"
    #: Names that a library makes, with values of several types.
    SEVERAL = "several"


class Part(StrEnum):
    """A part of the system with its own Redis user, or with one user for each instance, as for agents."""

    AGENT = "agent"
    ORCHESTRATOR = "orchestrator"
    SUBMITTER = "submitter"
    BEAT = "beat"
    FLOWER = "flower"
    APPLICATION = "application"
    CHECK = "check"
    ENROLLER = "enroller"


@dataclass(frozen=True, slots=True)
class Name:
    """The names of one purpose."""

    #: The name, with its variable parts in angle brackets.
    pattern: str
    kinds: tuple[Kind, ...]
    #: The part that is responsible for the values: it writes them, or they are addressed to it.
    owner: Part
    #: Other parts that read or write them.
    others: tuple[Part, ...]
    #: The value, for people.
    meaning: str


_S, _H, _L, _SET, _Z = (Kind.STRING,), (Kind.HASH,), (Kind.LIST,), (Kind.SET,), (Kind.SORTED_SET,)
_C, _X = (Kind.CHANNEL,), (Kind.STREAM,)
_AGENT, _ORCHESTRATOR, _SUBMITTER, _APPLICATION = Part.AGENT, Part.ORCHESTRATOR, Part.SUBMITTER, Part.APPLICATION
_O, _A = (_ORCHESTRATOR,), (_APPLICATION,)

#: All names, in the order of the documentation.
NAMES = (
    Name("agent.<id>", _L, _AGENT, (_ORCHESTRATOR, Part.ENROLLER), "the agent's queue of Celery messages"),
    Name(
        "agent.<id>:queue:<lane>", _L, _AGENT, (_ORCHESTRATOR, Part.ENROLLER),
        "the same for some requesters: queues are read in turn",
    ),
    Name("agent.<id>:info", _S, _AGENT, _O, "registration and lease: run, load, labels; expires after 15 s"),
    Name("agent.<id>:events", _C, _AGENT, _O, "the agent's notices: heartbeat, started, life"),
    Name("agent.<id>:claim:<exec>", _S, _AGENT, _O, "the journal that claimed the execution, or a fence against any"),
    Name(
        "agent.<id>:output:<exec>", (Kind.STREAM, Kind.CHANNEL), _AGENT, _O,
        "output log, entry ids `<seq>-0`; live frames"
    ),
    Name(
        "agent.<id>:orders", _H, _AGENT, _O, "after a loss of data: signed orders of the last minutes"
    ),
    Name("agent.<id>:read:<exec>", _S, _ORCHESTRATOR, (_AGENT,), "number of the last chunk that was read"),
    Name("agent.<id>:input:<exec>", _X, _ORCHESTRATOR, (_AGENT,), "signed offers and sealed input of a session"),
    Name(
        "agent.<id>:session:<exec>", (Kind.STRING, Kind.CHANNEL), _AGENT, _O,
        "last signed answer; answers and sealed acknowledgements",
    ),
    Name("agent.<id>:report:<lane>:<exec>", _C, _AGENT, _O, "result, for the orchestrator that sent the order"),
    Name("agent.<id>:cancel:<exec>", _S, _ORCHESTRATOR, (_AGENT,), "signed cancel, kept while a start is possible"),
    Name("agent.<id>:control", _C, _ORCHESTRATOR, (_AGENT,), "`<exec> <signed cancel>` for the running worker"),
    Name(
        "celery-task-meta-<id>.<exec>", (Kind.STRING, Kind.CHANNEL), _AGENT, _O, "Celery result with the signed receipt"
    ),
    Name("orch:exec:<exec>", _H, _ORCHESTRATOR, (), "ledger record"),
    Name("orch:index", _Z, _ORCHESTRATOR, (), "executions by time of acceptance"),
    Name("orch:index:<agent>", _Z, _ORCHESTRATOR, (), "executions of one agent by time of acceptance"),
    Name("orch:open", _Z, _ORCHESTRATOR, (), "executions that have not ended, by deadline"),
    Name("orch:outputs", _Z, _ORCHESTRATOR, (), "ended executions whose output is retained, by time; for the quotas"),
    Name("orch:approvals", _Z, _ORCHESTRATOR, (), "executions that wait for an approval, by deadline"),
    Name("orch:parked:<exec>", _S, _ORCHESTRATOR, (), "signed request that waits for an approval"),
    Name("orch:recorder:<exec>", _S, _ORCHESTRATOR, (), "lease of the orchestrator that records it; expires"),
    Name("orch:approved", _C, _ORCHESTRATOR, (), "ids of executions that were approved"),
    Name("orch:rate:<scope>", _Z, _ORCHESTRATOR, (), "executions that a rate limit counts in the last minute"),
    Name("orch:open:<scope>", _SET, _ORCHESTRATOR, (), "executions of a rate limit that have not ended"),
    Name("orch:waiting:<scope>", _SET, _ORCHESTRATOR, (), "executions of a rate limit that have not started"),
    Name("orch:agents", _H, _ORCHESTRATOR, (Part.CHECK,), "all known agents, with their last heartbeat"),
    Name("orch:online", _H, _ORCHESTRATOR, (), "agents that joined and did not leave, with the run of their worker"),
    Name("orch:draining", _H, _ORCHESTRATOR, (), "draining agents, with time, operator and reason"),
    Name("orch:revoked", _H, _ORCHESTRATOR, (Part.CHECK,), "revocations: time, operator, reason, whether still active"),
    Name("orch:labels", _H, _ORCHESTRATOR, (), "labels that operators bound to agents, each signed"),
    Name("orch:labels:changes", _Z, _ORCHESTRATOR, (), "agents with labels, by the audit event of the last change"),
    Name("orch:joined", _H, _ORCHESTRATOR, (), "agents that joined with a token: whose token, and from which address"),
    Name("orch:users", _H, _ORCHESTRATOR, (), "people that joined with a token: the same"),
    Name("orch:enrolment:<agent>", _S, _ORCHESTRATOR, (), "signed enrolment that waits for its token; expires"),
    Name("orch:audit", _X, _ORCHESTRATOR, (), "audit trail"),
    Name("orch:audit:seq", _S, _ORCHESTRATOR, (), "number of the last event of the audit trail"),
    Name("orch:audit:sinks", _H, _ORCHESTRATOR, (), "position of each sink in the audit trail"),
    Name("orch:audit:lock:<sink>", _S, _ORCHESTRATOR, (), "lock of the orchestrator that ships to a shared sink"),
    Name("orch:life", _S, _ORCHESTRATOR, (_AGENT,), "signed record of the current life of Redis"),
    Name("orch:ended", _C, _ORCHESTRATOR, (), "ids of executions that ended"),
    Name("orch:events:wanted", _C, Part.FLOWER, _O, "a listener to Celery's events has connected"),
    Name("/0.celeryev/<kind>.multi", _C, _ORCHESTRATOR, (Part.FLOWER,), "Celery's events, by kombu's name for them"),
    Name("orch:batches", _Z, _ORCHESTRATOR, (), "batches by time of their request"),
    Name("orch:batches:open", _SET, _ORCHESTRATOR, (), "batches of which something may start or run"),
    Name("orch:batches:changed", _C, _ORCHESTRATOR, (), "ids of batches that changed"),
    Name("orch:batch:<batch>", _H, _ORCHESTRATOR, (), "state, limits and counts of a batch, and the signed request"),
    Name("orch:batch:<batch>:pending", _Z, _ORCHESTRATOR, (), "targets that wait for their turn, by their place"),
    Name("orch:batch:<batch>:running", _SET, _ORCHESTRATOR, (), "targets whose execution has not ended"),
    Name("orch:batch:<batch>:ended", _H, _ORCHESTRATOR, (), "ended targets with state, exit code and digests"),
    Name("orch:batch:<batch>:driver", _S, _ORCHESTRATOR, (), "the orchestrator that drives a batch; expires in 3 s"),
    Name("orch:schedules", _H, _ORCHESTRATOR, (), "all schedules that were ever loaded"),
    Name("orch:schedule:<schedule>", _H, _ORCHESTRATOR, (), "last recorded scheduled time, and whether it is paused"),
    Name("orch:schedule:<schedule>:runs", _H, _ORCHESTRATOR, (), "outcome of each scheduled time"),
    Name("orch:schedule:<schedule>:order", _Z, _ORCHESTRATOR, (), "scheduled times in order; the oldest are removed"),
    Name("beat:lock", _S, Part.BEAT, (), "lock of the beat that sends hints"),
    Name("orch.submit", _L, _SUBMITTER, _A, "queue of requests that Celery applications signed"),
    Name("orch.batch", _L, _SUBMITTER, (Part.BEAT,), "queue of beat's hints that a schedule is due"),
    Name("orch:submitters", _Z, _SUBMITTER, _O, "runs of submitters, by the time of their last sign of life"),
    Name("orch:unacked:<run>", _H, _SUBMITTER, _O, "messages that a submitter has not finished, by delivery tag"),
    Name("orch:unacked:<run>:index", _Z, _SUBMITTER, _O, "the same messages by time"),
    Name("orch:unacked:<run>:mutex", _S, _SUBMITTER, _O, "kombu's lock over both"),
    Name(
        "celery-task-meta-app:<name>:<exec>", (Kind.STRING, Kind.CHANNEL), _SUBMITTER, (_APPLICATION, _ORCHESTRATOR),
        "Celery result of an application's request",
    ),
    Name("celery", _L, _APPLICATION, (_SUBMITTER,), "Celery's default queue, of applications: their callbacks"),
    Name(
        "celery-task-meta-<uuid>", (Kind.STRING, Kind.CHANNEL), _APPLICATION, (_SUBMITTER, _ORCHESTRATOR),
        "Celery result of an application's own task",
    ),
    Name("celery-taskset-meta-*", (Kind.SEVERAL,), _APPLICATION, (_SUBMITTER,), "groups and chords of applications"),
    Name("_kombu.binding.<queue>", _SET, _APPLICATION, (), "written by kombu of applications, and not read"),
    Name("_kombu.binding_permanent.<queue>", _SET, _APPLICATION, (), "the same, for durable queues"),
)  # fmt: skip


def markdown_table() -> str:
    """Return the table of `docs/redis.md`."""
    lines = ["| name | type | owner | also used by | value |", "|---|---|---|---|---|"]
    for name in NAMES:
        kinds, others = " and ".join(name.kinds), ", ".join(name.others)
        lines.append(f"| `{name.pattern}` | {kinds} | {name.owner} | {others} | {name.meaning} |")
    return "\n".join(lines) + "\n"
