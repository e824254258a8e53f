"""The command lines of a stack's parts."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tachikoma.dev.folder import StackFolder
from tachikoma.dev.part import Part
from tachikoma.redis.users import BEAT, FLOWER, ORCHESTRATOR, SUBMITTER, agent_user

__all__ = ["Programs", "redis_user_of"]


def redis_user_of(part: str) -> str:
    """Return the Redis user of a part: `orchestrator`, `submitter`, `beat`, `flower` or an agent's id."""
    if part in ("orchestrator", "submitter"):
        return ORCHESTRATOR
    return part if part in (FLOWER, BEAT) else agent_user(part)


@dataclass(frozen=True)
class Programs:
    """Makes the parts of a stack, none of them started."""

    folder: StackFolder
    #: URL of Redis.
    redis_url: str
    #: Returns the place of an identity by its name: a folder, or the URL of a Workload API.
    identity: Callable[[str], Path | str]
    #: Settings of all parts, as environment variables.
    environment: Mapping[str, str]

    def orchestrator(self, listen: str) -> Part:
        """Make the orchestrator."""
        return self._part("orchestrator", "orchestrator", "--listen", listen, "--policy", str(self.folder.policy))

    def submitter(self) -> Part:
        """Make a submitter, which has the orchestrator's identity and a Redis user for Celery's side."""
        password = self.folder.redis_passwords.path(SUBMITTER)
        return self._part(
            "submitter", "submitter", "--policy", str(self.folder.policy),
            identity="orchestrator", environment={"TACHIKOMA_SUBMITTER_PASSWORD_FILE": str(password)},
        )  # fmt: skip

    def beat(self, name: str) -> Part:
        """Make a beat; several may run, under different names."""
        return self._part(name, "beat", identity=BEAT, user=BEAT)

    def worker(self, agent: str) -> Part:
        """Make the worker of an agent."""
        # Cgroups of this stack only: another stack, or a real agent of this host, may have agents of the same id.
        cgroup = f"tachikoma-dev-{hashlib.sha256(os.fsencode(self.folder.data)).hexdigest()[:12]}"
        return self._part(
            agent, "worker", "--agent-id", agent, "--data", str(self.folder.agent(agent)),
            "--cgroup-name", cgroup, "--limits", "best-effort",
        )  # fmt: skip

    def flower(self, listen: str) -> Part:
        """Make a Flower."""
        return self._part(FLOWER, "flower", "--listen", listen, "--users", str(self.folder.flower_users))

    def _part(
        self,
        name: str,
        command: str,
        *options: str,
        identity: str = "",
        user: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Part:
        """Make a part with the options that all parts have.

        Args:
            name: name of the part and of its log.
            command: the command of `tachikoma`.
            options: further options.
            identity: name of its identity; by default its own name.
            user: the part whose Redis user it has; by default its own name.
            environment: further variables.
        """
        common = ("--redis-url", self.redis_url, "--identity", str(self.identity(identity or name)))
        password = self.folder.redis_passwords.path(redis_user_of(user or name))
        return Part(
            name,
            [sys.executable, "-m", "tachikoma", command, *common, *options],
            self.folder.log(name),
            {"TACHIKOMA_REDIS_PASSWORD_FILE": str(password), **(environment or {}), **self.environment},
        )
