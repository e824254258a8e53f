"""The parts of an agent that all its executions share."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

from tachikoma.identity.svid import SvidSource
from tachikoma.policy.watch import PolicyWatch
from tachikoma.redis.commands import Redis
from tachikoma_worker.cgroups.hierarchy import Hierarchy
from tachikoma_worker.confinement.isolation.enclosures import Enclosures
from tachikoma_worker.confinement.spawner import Spawner
from tachikoma_worker.execution.journal import Journal
from tachikoma_worker.execution.lives import Lives
from tachikoma_worker.execution.reserve import DiskReserve
from tachikoma_worker.output.sent import SentOutput
from tachikoma_worker.sessions.attachment import AgentParty
from tachikoma_worker.sessions.last_use import LastUse
from tachikoma_worker.sessions.mailbox import Mailbox
from tachikoma_worker.settings import WorkerSettings

__all__ = ["SENT_FOLDER", "SPOOL_FOLDER", "Context", "sent_output"]

#: Folder of the spools, in the agent's data folder.
SPOOL_FOLDER = "spool"
#: Folder of the spools whose output was sent, beside it.
SENT_FOLDER = "sent"
#: Folder with the times at which sessions were last used, beside it.
SESSION_FOLDER = "sessions"


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of an agent that all its executions share."""

    settings: WorkerSettings
    redis: Redis
    #: Connections for reads that wait for the input of sessions, one for each slot.
    waiting_redis: Redis
    journal: Journal
    #: Disk space with which a command can start on a full disk.
    reserve: DiskReserve
    lives: Lives
    #: Output that is sent again if Redis loses it.
    sent: SentOutput
    spawner: Spawner
    cgroups: Hierarchy
    #: Decides how commands are isolated.
    enclosures: Enclosures
    #: The agent's own policy, which can only narrow an order; None if it has none.
    local_policy: PolicyWatch | None
    identity: SvidSource
    #: Id of the kernel's current run.
    host: str
    #: Start a tracked background task for work that delays no caller. Its failure is logged.
    background: Callable[[Coroutine[object, object, object]], object]

    @property
    def agent(self) -> str:
        """The agent's id."""
        return self.settings.agent_id

    @property
    def party(self) -> AgentParty:
        """The agent as a party of the keys of sessions."""
        return AgentParty(self.agent, self.identity, self.settings.orchestrator)

    def mailbox(self, exec_id: str) -> Mailbox:
        """Return a session's names in Redis."""
        return Mailbox(self.redis, self.waiting_redis, self.agent, exec_id)

    def last_use(self, exec_id: str) -> LastUse:
        """Return the times at which a session was last used."""
        return LastUse(self.sessions / exec_id)

    @property
    def spools(self) -> Path:
        """The folder of the spools."""
        return self.settings.data / SPOOL_FOLDER

    @property
    def sessions(self) -> Path:
        """The folder with the times at which sessions were last used."""
        return self.settings.data / SESSION_FOLDER


def sent_output(settings: WorkerSettings) -> SentOutput:
    """Return the agent's output that may have to be sent again."""
    return SentOutput(
        settings.agent_id, settings.data / SPOOL_FOLDER, settings.data / SENT_FOLDER,
        retention_seconds=round(settings.output_retention.total_seconds()),
    )  # fmt: skip
