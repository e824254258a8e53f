"""The data folder of a stack, and the paths of the files in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tachikoma.errors import ConfigurationError
from tachikoma.redis.passwords import Passwords

__all__ = ["REDIS_HOST", "SERVER_NAME", "TRUST_DOMAIN", "StackFolder"]

TRUST_DOMAIN = "tachikoma.local"
#: DNS name in the orchestrator's certificate.
SERVER_NAME = "orchestrator.tachikoma.local"
#: Number of the format of the data folder. A version reads folders of its own format and of earlier ones.
FORMAT = 1
#: DNS name in the certificate of Redis, if Redis uses TLS.
REDIS_HOST = "localhost"


@dataclass(frozen=True)
class StackFolder:
    """The places under a stack's data folder."""

    #: The folder itself, absolute.
    data: Path

    def check_format(self) -> None:
        """Note the format of the folder, unless a later version of Tachikoma has used it.

        Raises:
            ConfigurationError: a later version has used it, or the note is damaged.
        """
        note = self.data / "format"
        try:
            written = note.read_text(encoding="utf-8")
        except FileNotFoundError:
            # A new folder, or one from before there were notes.
            written = ""
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"cannot read {note}: {error}") from None
        if written.strip() and not re.fullmatch(r"[0-9]{1,9}\s*", written):
            raise ConfigurationError(f"{note} contains no number; use another folder with --data, or delete this one")
        if int(written or 0) > FORMAT:
            raise ConfigurationError(
                f"a later version of Tachikoma has used the folder {self.data} (format {int(written)}; this version "
                f"reads formats up to {FORMAT}): use that version, or another folder with --data"
            )
        note.write_text(f"{FORMAT}\n", encoding="utf-8")

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
