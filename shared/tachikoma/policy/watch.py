"""The active policy set of a process, replaced when its file changes."""

from __future__ import annotations

import platform
from pathlib import Path

from tachikoma.config.file_watch import FileWatch
from tachikoma.policy.decide import PolicySet
from tachikoma.vocabulary.policies import PolicyStatus

__all__ = ["PolicyWatch"]


class PolicyWatch(FileWatch[PolicySet]):
    """The active policy set, replaced as a whole when its file changes and is valid."""

    def __init__(self, path: Path) -> None:
        """Load the file; raises as `PolicySet.load` does."""
        super().__init__(path, PolicySet)

    def status(self) -> PolicyStatus:
        """Return the active policy's digest, size and origin, and why a newer file is not active."""
        return PolicyStatus(
            digest=self.current.digest, policies=len(self.current.policies), since=self.since, error=self.error,
            host=platform.node(), path=str(self.path),
        )  # fmt: skip
