"""The rules by which one policy grants a request or refuses it.

Each rule decides by one field of the policy. `RULES` lists them in the order in which they are checked; the first that
does not permit a request names the reason of the refusal. A rule sees a `Case` and has no side effects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

from tachikoma.policy.command_patterns import CommandPattern
from tachikoma.policy.compiled import CompiledPolicy
from tachikoma.policy.effort import Effort
from tachikoma.policy.hazards.environment import forbidden, steers_programs
from tachikoma.policy.hazards.programs import ProgramKind, kind_of
from tachikoma.vocabulary.durations import format_duration
from tachikoma.vocabulary.grants import GrantedExecutable
from tachikoma.vocabulary.requests import ExecRequest

__all__ = ["ROOT", "RULES", "RULES_OF_COMMANDS", "Case", "Command", "Rule", "refusing_rule"]


#: The user that no wildcard of allowedUsers means.
ROOT = "root"


class Case:
    """A request, seen by one policy; what several rules need is computed once."""

    def __init__(
        self,
        policy: CompiledPolicy,
        request: ExecRequest,
        candidates: Sequence[str],
        shown: str = "",
        address: str = "",
        effort: Effort | None = None,
    ) -> None:
        """Take the facts of a request.

        Args:
            policy: the policy that decides.
            request: the request.
            candidates: absolute paths that the program may have, in search order.
            shown: the program in its printable form, for messages.
            address: IP address that the request comes from; "" when it is unknown.
            effort: the steps that are left to the decision; None for no bound.
        """
        self.policy = policy
        self.request = request
        self.candidates = candidates
        self.shown = shown
        self.address = address
        self.effort = effort

    @cached_property
    def _granting(self) -> dict[str, list[CommandPattern]]:
        """The entries of allowedCommands that match, for each path of the program, in search order."""
        arguments = self.request.command[1:]
        found = {path: self.policy.granting(path, arguments, self.effort) for path in self.candidates}
        return {path: patterns for path, patterns in found.items() if patterns}

    @cached_property
    def matching(self) -> tuple[GrantedExecutable, ...]:
        """The executables that allowedCommands grants with these arguments, in search order."""
        pins = self.policy.policy.executable_sha256
        return tuple(
            GrantedExecutable(
                path=path, named=any(pattern.names(path) for pattern in patterns), sha256=pins.get(path, ())
            )
            for path, patterns in self._granting.items()
        )

    @cached_property
    def executables(self) -> tuple[GrantedExecutable, ...]:
        """The matching executables, without those that may run other programs unless the policy allows them."""
        if self.policy.policy.allow_interpreters:
            return self.matching
        return tuple(executable for executable in self.matching if not self._may_run_others(executable.path))

    def _may_run_others(self, path: str) -> bool:
        """Return True if a program may run another one by its kind, its entries, or on its terminal."""
        match kind_of(path):
            case ProgramKind.RUNNER:
                return True
            case ProgramKind.ON_TERMINAL:
                return self.request.tty or self.request.interactive
            case ProgramKind.BY_ARGUMENTS:
                return not any(pattern.is_bounded for pattern in self._granting[path])
            case _:
                return False

    @cached_property
    def work_dir_roots(self) -> tuple[str, ...]:
        """The directories of allowedWorkDirs, without wildcards, that contain the working directory or equal it."""
        anchors = (pattern.anchor(self.request.work_dir, self.effort) for pattern in self.policy.work_dirs)
        return tuple(anchor for anchor in anchors if anchor is not None)

    @cached_property
    def refused_variable(self) -> str:
        """The reason against the first variable that may not be set; empty if all may be set."""
        for name, value in self.request.environment.items():
            if why := forbidden(name, value):
                return f"cannot allow the variable: {why}"
            granting = [pattern for pattern in self.policy.environment if pattern.matches(name, self.effort)]
            if not granting:
                return f"does not allow the variable {name!r}"
            if not any(pattern.names(name) or not steers_programs(name, pattern.prefix) for pattern in granting):
                return (
                    f"allows the variable {name!r} only by a wildcard; programs may find code by it: write its name out"
                )
        return ""


class Rule(ABC):
    """A check of one request by one field of a policy."""

    #: The field of the policy file that decides, as it is written there.
    field: ClassVar[str]

    @abstractmethod
    def permits(self, case: Case) -> bool:
        """Return True if this field of the policy does not stop the request."""

    @abstractmethod
    def refusal(self, case: Case) -> str:
        """Say why a request is refused; the text continues "policy NAME …"."""


class Command(Rule):
    """A program and its arguments match an allowed command."""

    field = "allowedCommands"

    def permits(self, case: Case) -> bool:
        return bool(case.matching)

    def refusal(self, case: Case) -> str:
        return f"does not allow the command {case.shown!r} with these arguments"


class Interpreter(Rule):
    """A program that can run any other program needs the policy's explicit permission."""

    field = "allowInterpreters"

    def permits(self, case: Case) -> bool:
        return bool(case.executables)

    def refusal(self, case: Case) -> str:
        path = case.matching[0].path
        match kind_of(path):
            case ProgramKind.BY_ARGUMENTS:
                return (
                    f"does not allow {path!r} with open arguments, some of which run other programs; "
                    "write its arguments out, the first without a wildcard, or set allowInterpreters"
                )
            case ProgramKind.ON_TERMINAL:
                return f"does not allow {path!r} on a terminal, where it can run any other program"
            case _:
                return f"does not allow {path!r}, which can run any other program"


class Address(Rule):
    """A request comes from an allowed network."""

    field = "allowedNetworks"

    def permits(self, case: Case) -> bool:
        return case.policy.allows_from(case.address)

    def refusal(self, case: Case) -> str:
        return f"does not allow requests from {case.address or 'an unknown address'}"


class User(Rule):
    """A user that the request names is allowed; the agent's default user always is. No wildcard allows root."""

    field = "allowedUsers"

    def permits(self, case: Case) -> bool:
        user = case.request.user
        if user == ROOT:
            return any(pattern.names(user) for pattern in case.policy.users)
        return not user or any(pattern.matches(user, case.effort) for pattern in case.policy.users)

    def refusal(self, case: Case) -> str:
        if case.request.user == ROOT and any(pattern.matches(ROOT) for pattern in case.policy.users):
            return "allows the user 'root' only by a wildcard, which never means root: write its name out"
        return f"does not allow the user {case.request.user!r}"


class WorkDir(Rule):
    """A working directory that the request names is allowed; the user's home always is."""

    field = "allowedWorkDirs"

    def permits(self, case: Case) -> bool:
        return not case.request.work_dir or bool(case.work_dir_roots)

    def refusal(self, case: Case) -> str:
        return f"does not allow the working directory {case.request.work_dir!r}"


class Environment(Rule):
    """Each variable that the request sets is allowed by name, and is not a dangerous one."""

    field = "allowedEnvironment"

    def permits(self, case: Case) -> bool:
        return not case.refused_variable

    def refusal(self, case: Case) -> str:
        return case.refused_variable


class Timeout(Rule):
    """A timeout that the request names is at most the policy's."""

    field = "maxTimeout"

    def permits(self, case: Case) -> bool:
        policy, timeout = case.policy.policy, case.request.timeout
        limited_elsewhere = case.request.interactive and policy.max_duration is not None
        return timeout is None or limited_elsewhere or timeout <= policy.max_timeout

    def refusal(self, case: Case) -> str:
        assert case.request.timeout is not None
        longest, asked = case.policy.policy.max_timeout, case.request.timeout
        return f"allows at most {format_duration(longest)}, not {format_duration(asked)}"


class Duration(Rule):
    """The timeout of an interactive request is at most the policy's duration for such requests, if set."""

    field = "maxDuration"

    def permits(self, case: Case) -> bool:
        longest, timeout = case.policy.policy.max_duration, case.request.timeout
        return not case.request.interactive or longest is None or timeout is None or timeout <= longest

    def refusal(self, case: Case) -> str:
        longest, asked = case.policy.policy.max_duration, case.request.timeout
        assert longest is not None
        assert asked is not None
        return f"allows interactive executions of at most {format_duration(longest)}, not {format_duration(asked)}"


class Interactive(Rule):
    """A command with input that follows while it runs needs the policy's permission."""

    field = "allowInteractive"

    def permits(self, case: Case) -> bool:
        return not case.request.interactive or case.policy.policy.allow_interactive

    def refusal(self, case: Case) -> str:
        return "does not allow interactive executions"


class Tty(Rule):
    """A command on a terminal needs the policy's permission."""

    field = "allowTty"

    def permits(self, case: Case) -> bool:
        return not case.request.tty or case.policy.policy.allow_tty

    def refusal(self, case: Case) -> str:
        return "does not allow terminals"


#: The rules that depend on the words of the command.
RULES_OF_COMMANDS: tuple[Rule, ...] = (Command(), Interpreter())
#: All rules, in the order in which they are checked.
RULES: tuple[Rule, ...] = (
    *RULES_OF_COMMANDS,
    Address(),
    User(),
    WorkDir(),
    Environment(),
    Timeout(),
    Duration(),
    Interactive(),
    Tty(),
)


def refusing_rule(case: Case, *, admitted: bool = False) -> Rule | None:
    """Return the first rule that refuses a request, or None if the policy grants it.

    Args:
        case: the request and the policy.
        admitted: whether the policy has granted the command before, some of whose words are not known any more.
    """
    rules = RULES[len(RULES_OF_COMMANDS) :] if admitted else RULES
    return next((rule for rule in rules if not rule.permits(case)), None)
