"""The data folder of a stack, and the paths of the files in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tachikoma.redis.passwords import Passwords

__all__ = ["REDIS_HOST", "SERVER_NAME", "TRUST_DOMAIN", "StackFolder"]

TRUST_DOMAIN = "tachikoma.local"
#: DNS name in the orchestrator's certificate.
SERVER_NAME = "orchestrator.tachikoma.local"
#: DNS name in the certificate of Redis, if Redis uses TLS.
REDIS_HOST = "localhost"


@dataclass(frozen=True)
class StackFolder:
    """The places under a stack's data folder."""

    #: The folder itself, absolute.
    data: Path

    @property
    def ca(self) -> Path:
        """Folder of the certificate authority."""
        return self.data / "ca"

    def identity(self, name: str) -> Path:
        """Return the folder of an identity: `user`, `orchestrator`, `flower` or an agent's id."""
        return self.data / "identities" / name

    def agent(self, agent_id: str) -> Path:
        """Return the data folder of an agent."""
        return self.data / "agents" / agent_id

    @property
    def logs(self) -> Path:
        """Folder of the logs, one file for each part."""
        return self.data / "logs"

    def log(self, part: str) -> Path:
        """Return the log of a part."""
        return self.logs / f"{part}.log"

    @property
    def policy(self) -> Path:
        """The policy file."""
        return self.data / "policy.yaml"

    @property
    def audit_log(self) -> Path:
        """The audit log."""
        return self.data / "audit" / "audit.jsonl"

    @property
    def audit_key(self) -> Path:
        """The key of the commands' HMACs in the audit trail."""
        return self.data / "audit.key"

    @property
    def redis(self) -> Path:
        """Folder of Redis: its configuration, ACL file and data."""
        return self.data / "redis"

    @property
    def redis_passwords(self) -> Passwords:
        """The passwords of all Redis users."""
        return Passwords(self.redis / "passwords")

    @property
    def flower_users(self) -> Path:
        """The file with the one user of Flower and its random password."""
        return self.data / "flower.users"
