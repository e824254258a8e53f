"""One policy with its patterns compiled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TypeAlias, TypeVar

from tachikoma.policy.command_patterns import CommandPattern, CommandPatterns
from tachikoma.policy.denials import DeniedArguments, DeniedCommand
from tachikoma.policy.effort import Effort
from tachikoma.policy.patterns import AgentSelector, Pattern, PatternError
from tachikoma.vocabulary.policies import ExecPolicy

__all__ = ["CompiledPolicy", "PatternMistakes"]

P = TypeVar("P")


#: Field of a policy, number of the entry, and why it cannot be understood.
PatternMistake: TypeAlias = tuple[str, int, PatternError]


class PatternMistakes(ValueError):
    """Patterns of one policy that cannot be understood: field, number of the entry, and why."""

    def __init__(self, mistakes: Sequence[PatternMistake]) -> None:
        super().__init__("; ".join(f"{field}[{number}]: {error}" for field, number, error in mistakes))
        self.mistakes = tuple(mistakes)


class CompiledPolicy:
    """A policy of a file, its patterns compiled."""

    def __init__(self, policy: ExecPolicy, position: str = "") -> None:
        """Compile the patterns of a policy.

        Args:
            policy: as it is written in the file.
            position: its place as file:line:column, for messages.

        Raises:
            PatternMistakes: one or more patterns cannot be understood.
        """
        self.policy = policy
        self.position = position
        canonical = json.dumps(policy.to_dict(), sort_keys=True, separators=(",", ":"))
        #: name@digest, which changes with every edit of the policy.
        self.label = f"{policy.name}@{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"
        mistakes: list[PatternMistake] = []
        compiled = partial(_compiled, mistakes)
        self.subjects = compiled(Pattern, "subjects", policy.subjects)
        self.agents = compiled(AgentSelector, "agents", policy.agents)
        self.allowed = compiled(CommandPattern, "allowedCommands", policy.allowed_commands)
        self.denied = compiled(DeniedCommand, "deniedCommands", policy.denied_commands)
        self.users = compiled(Pattern, "allowedUsers", policy.allowed_users)
        self.work_dirs = compiled(Pattern, "allowedWorkDirs", policy.allowed_work_dirs)
        self.environment = compiled(Pattern, "allowedEnvironment", policy.allowed_environment)
        # The text of these is kept in decisions and orders; here it is only checked.
        compiled(Pattern, "approvers", policy.approvers)
        compiled(Pattern, "observers", policy.observers)
        compiled(Pattern, "players", policy.players)
        if mistakes:
            raise PatternMistakes(mistakes)
        self.networks = [ip_network(text) for text in policy.allowed_networks]
        self._granting = CommandPatterns(self.allowed)
        self._denying = CommandPatterns(self.denied)

    def applies_to(self, subject: str, agent: str, labels: Mapping[str, str], effort: Effort | None = None) -> bool:
        """Return True if one of its subjects matches the requester and one of its agents the target."""
        return any(p.matches(subject, effort) for p in self.subjects) and any(
            s.matches(agent, labels, effort) for s in self.agents
        )

    def granting(self, path: str, arguments: Sequence[str], effort: Effort | None = None) -> list[CommandPattern]:
        """Return the entries of allowedCommands that match a program and its arguments."""
        return [pattern for pattern in self._granting.of(path) if pattern.matches(path, arguments, effort)]

    def denying(self, path: str, arguments: DeniedArguments, effort: Effort | None = None) -> DeniedCommand | None:
        """Return the first entry of deniedCommands that denies a program with its arguments, or None."""
        return next((pattern for pattern in self._denying.of(path) if pattern.denies(path, arguments, effort)), None)

    def allows_from(self, address: str) -> bool:
        """Return True if requests from an IP address are allowed. An unknown address ("") is in no network."""
        if not self.networks:
            return True
        try:
            found = ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self.networks)


def _compiled(mistakes: list[PatternMistake], kind: Callable[[str], P], field: str, texts: Sequence[str]) -> list[P]:
    """Return the compiled patterns of one field, and add those that cannot be understood to the mistakes."""
    found = []
    for number, text in enumerate(texts):
        try:
            found.append(kind(text))
        except PatternError as error:
            mistakes.append((field, number, error))
    return found
