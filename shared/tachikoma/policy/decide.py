"""Policy: the decision on which requesters may run which commands, where and as which user.

Default deny. A denied command of any policy that applies to this subject and agent wins over every grant. One policy
must grant the whole of a request: command, user, directory, environment and timeout; grants of several policies are not
added up. The decision is a pure function of request, subject and policies.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

from tachikoma.config.yaml_files import digest, read_files
from tachikoma.policy.command_patterns import CommandPattern
from tachikoma.policy.compiled import CompiledPolicy
from tachikoma.policy.decision import Decision, Explanation
from tachikoma.policy.denials import DeniedArguments
from tachikoma.policy.effort import MAX_STEPS, Effort, TooMuchWork
from tachikoma.policy.file import parse_policies
from tachikoma.policy.hazards.programs import ProgramKind, kind_of
from tachikoma.policy.masking.redaction import is_masked, redact
from tachikoma.policy.patterns import Pattern
from tachikoma.policy.rules import Case, Command, refusing_rule
from tachikoma.policy.warnings import warnings_of
from tachikoma.vocabulary.grants import Grant
from tachikoma.vocabulary.isolation import strictest
from tachikoma.vocabulary.limits import OutputLimit, WhenFull, capability_mask
from tachikoma.vocabulary.recordings import NOT_RECORDED, RecordMode, RecordRule
from tachikoma.vocabulary.request_rules import DEFAULT_TIMEOUT
from tachikoma.vocabulary.requests import ExecRequest

__all__ = ["NO_LABELS", "SEARCH_PATH", "PolicySet"]

#: Folders in which a bare program name is looked up, in this order, unless an orchestrator is configured otherwise.
SEARCH_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
#: The labels of an agent without labels.
NO_LABELS: Mapping[str, str] = MappingProxyType({})
#: Characters of a request, times policies, beyond which a decision is large.
LARGE = 100_000
#: Steps for finding the arguments that policy marks as secret; beyond them all arguments are masked.
MARKING_STEPS = MAX_STEPS // 20


@dataclass(frozen=True, slots=True, eq=False)
class PolicySet:
    """All policies of one file or folder. Immutable; a changed file makes a new set."""

    policies: tuple[CompiledPolicy, ...]
    operators: tuple[Pattern, ...]
    #: SHA-256 of the files, in hexadecimal.
    digest: str
    #: Command patterns that mark arguments as secret.
    _marking: tuple[CommandPattern, ...] = ()

    @classmethod
    def load(cls, path: Path) -> PolicySet:
        """Read a policy file, or all files of a folder that end in .yaml or .yml, but not in .test.yaml.

        Raises:
            ConfigurationError: a file cannot be read or is wrong; the message names file, line, column and field of
                each mistake.
        """
        return cls.parse_all(read_files(path, "policy file"))

    @classmethod
    def parse(cls, text: str, name: str) -> PolicySet:
        """Build a set from the text of a file; `name` is for messages. Raises as `load` does."""
        return cls.parse_all([(name, text)])

    @classmethod
    def parse_all(cls, texts: Sequence[tuple[str, str]]) -> PolicySet:
        """Build a set from the names and texts of files. Raises as `load` does."""
        policies, operators = parse_policies(texts)
        patterns = (pattern for policy in policies for pattern in (*policy.allowed, *policy.denied))
        marking = tuple(pattern for pattern in patterns if pattern.has_secrets)
        # Sorted, so that no decision depends on their order in the files.
        policies.sort(key=lambda policy: policy.label)
        return cls(tuple(policies), tuple(operators), digest(texts), marking)

    def warnings(self) -> list[str]:
        """Return a line for each rule that grants nothing or everything, or that denies less than it seems."""
        return [
            f"{policy.position}: {policy.policy.name}: {text}"
            for policy in self.policies
            for text in warnings_of(policy, self.policies)
        ]

    def programs(self) -> list[tuple[str, str, ProgramKind]]:
        """Return each granted program: name of the policy, path or pattern, and what is known of the program."""
        found = {
            (compiled.policy.name, path): kind_of(path) if path in pattern.program.literals else ProgramKind.UNKNOWN
            for compiled in self.policies
            for pattern in compiled.allowed
            for path in sorted(pattern.program.literals) or (pattern.program.text,)
        }
        return [(name, path, kind) for (name, path), kind in found.items()]

    def is_operator(self, subject: str) -> bool:
        """Return True if a SPIFFE ID sees all executions and the audit trail."""
        return any(pattern.matches(subject) for pattern in self.operators)

    @property
    def names_networks(self) -> bool:
        """True if a decision can depend on the source address of a request."""
        return any(policy.networks for policy in self.policies)

    @property
    def approves_batches(self) -> bool:
        """True if a policy can require an approval of a batch."""
        return any(compiled.policy.approvers for compiled in self.policies)

    def secrets(self, command: Sequence[str], search_path: Sequence[str]) -> frozenset[int]:
        """Return the numbers of the argv elements that any policy marks as secret, also a policy for other requests."""
        found: set[int] = set()
        effort = Effort(MARKING_STEPS)
        try:
            for pattern in self._marking:
                for path in _candidates(command[0], search_path):
                    found |= pattern.secrets(path, command[1:], effort)
        except TooMuchWork:
            # What cannot be decided is masked.
            return frozenset(range(1, len(command)))
        return frozenset(number + 1 for number in found)

    def is_large(self, request: ExecRequest) -> bool:
        """Return True if a decision on the request may take so long that an event loop must not wait for it."""
        texts = (*request.command, *request.environment, request.work_dir)
        return sum(map(len, texts)) * len(self.policies) > LARGE

    def decide(
        self,
        request: ExecRequest,
        subject: str,
        search_path: Sequence[str],
        labels: Mapping[str, str] = NO_LABELS,
        address: str = "",
        *,
        granted_by: str = "",
    ) -> Decision:
        """Decide on a request. Pure, and the same for any order of the policies.

        With `granted_by`, the request is the record of an admitted one, with secrets masked. Masked words match no
        pattern. So its command counts as matched while the policy that granted it is active and unchanged. All other
        rules of that policy are checked, and `deniedCommands` of all policies.

        Args:
            request: the request.
            subject: SPIFFE ID of the requester.
            search_path: folders in which a bare program name is looked up.
            labels: of the agent.
            address: IP address that the request comes from; empty when it is unknown.
            granted_by: the policy that granted it before, as in `Decision.policy`; empty for a new request.
        """
        decision = self.explain(request, subject, search_path, labels, address).decision
        # Without a policy, the request has a mistake, or none applies to it.
        final = decision.allowed or not decision.policy or decision.rule.startswith("deniedCommands")
        if not granted_by or final or not any(map(is_masked, request.command)):
            return decision
        effort = Effort()
        for policy in self.policies:
            if policy.label == granted_by and policy.applies_to(subject, request.agent_id, labels, effort):
                return _granted_again(Case(policy, request, (), address=address, effort=effort))
        return decision

    def explain(
        self,
        request: ExecRequest,
        subject: str,
        search_path: Sequence[str],
        labels: Mapping[str, str] = NO_LABELS,
        address: str = "",
    ) -> Explanation:
        """Decide on a request as `decide` does, and return the verdict of each policy that applies to it."""
        program, shown = request.command[0], redact(request.command[:1])[0]
        if ("/" in program or program in (".", "..")) and not _is_plain(program):
            why = f"the program must be a bare name or a plain absolute path, not {shown!r}"
            return Explanation(Decision(False, "", "command", why))
        if request.work_dir and not _is_plain(request.work_dir):
            why = f"the working directory must be a plain path, not {request.work_dir!r}"
            return Explanation(Decision(False, "", "workDir", why))
        try:
            return self._explained(request, subject, _candidates(program, search_path), labels, address, shown)
        except TooMuchWork:
            why = (
                f"the decision takes more than {MAX_STEPS} steps of matching; use shorter arguments or simpler patterns"
            )
            return Explanation(Decision(False, "", "matching", why))

    def _explained(
        self,
        request: ExecRequest,
        subject: str,
        candidates: Sequence[str],
        labels: Mapping[str, str],
        address: str,
        shown: str,
    ) -> Explanation:
        """Decide on a request with plain paths. Raises TooMuchWork if that takes more steps than a decision has."""
        effort = Effort()
        applying = [policy for policy in self.policies if policy.applies_to(subject, request.agent_id, labels, effort)]
        if not applying:
            why = f"no policy applies to {subject} on agent {request.agent_id}"
            return Explanation(Decision(False, "", "default", why))
        cases = [Case(policy, request, candidates, shown, address, effort) for policy in applying]
        denials: list[Decision] = []
        if any(policy.denied for policy in applying):
            arguments = DeniedArguments(request.command[1:], (request.work_dir,), effort)
            denials = [denial for case in cases if (denial := _denial(case, arguments)) is not None]
        verdicts = tuple(_verdict(case) for case in cases)
        if denials:
            return Explanation(denials[0], (*denials, *verdicts))
        return Explanation(_choose(verdicts, applying), verdicts)


def _candidates(program: str, search_path: Sequence[str]) -> list[str]:
    """Return the absolute paths that a program may have, in search order."""
    return [program] if "/" in program else [f"{folder}/{program}" for folder in search_path]


def _is_plain(path: str) -> bool:
    """Return True if a path is absolute and normalized."""
    return path.startswith("/") and not path.startswith("//") and posixpath.normpath(path) == path


def _refused(case: Case, rule: str, text: str) -> Decision:
    return Decision(False, case.policy.label, rule, f"policy {case.policy.policy.name} {text}")


def _granted_again(case: Case) -> Decision:
    """Decide again on a request by the policy that granted it."""
    rule = refusing_rule(case, admitted=True)
    if rule is not None:
        return _refused(case, rule.field, rule.refusal(case))
    policy = case.policy.policy
    return Decision(
        allowed=True, policy=case.policy.label, rule=Command.field, reason="",
        observers=policy.observers, players=policy.players,
    )  # fmt: skip


def _denial(case: Case, arguments: DeniedArguments) -> Decision | None:
    """Return the denial by deniedCommands, which wins over every grant, or None."""
    for path in case.candidates:
        pattern = case.policy.denying(path, arguments, case.effort)
        if pattern is not None:
            return _refused(case, f"deniedCommands: {pattern.text}", f"denies {pattern.text!r}")
    return None


def _verdict(case: Case) -> Decision:
    """Decide whether one policy alone grants the whole request."""
    rule = refusing_rule(case)
    if rule is not None:
        return _refused(case, rule.field, rule.refusal(case))
    policy = case.policy.policy
    return Decision(
        allowed=True,
        policy=case.policy.label,
        rule="allowedCommands",
        reason="",
        grant=_grant(case),
        rate_limit=policy.rate_limit,
        max_targets=policy.max_targets,
        max_targets_percent=policy.max_targets_percent,
        approval_above=policy.require_approval_above,
        batch_approvers=policy.approvers if policy.require_approval or policy.require_approval_above else (),
        agents=policy.agents,
        timeout=case.request.timeout or _default_timeout(case),
        approvers=policy.approvers if policy.require_approval else (),
        observers=policy.observers if case.request.interactive else (),
        record=_record_rule(case),
        players=policy.players if case.request.interactive else (),
        approval_timeout=policy.approval_timeout,
        host_access=policy.host_access,
    )


def _record_rule(case: Case) -> RecordRule:
    """Return whether an execution is recorded. All interactive ones are, so that none evades it without a terminal."""
    policy = case.policy.policy
    return RecordRule(policy.record, policy.record_input) if case.request.interactive else NOT_RECORDED


def _output(case: Case) -> OutputLimit:
    """Return the limit of the output. A recording that is required reads all of it, so the command waits for that."""
    output = case.policy.policy.output
    if _record_rule(case).mode is not RecordMode.REQUIRED:
        return output
    return output.model_copy(update={"when_full": WhenFull.WAIT, "wait_limit": None})


def _default_timeout(case: Case) -> timedelta:
    """Return the timeout of a request without one: an hour at most, unless policy limits interactive ones itself."""
    policy = case.policy.policy
    if case.request.interactive and policy.max_duration is not None:
        return policy.max_duration
    return min(DEFAULT_TIMEOUT, policy.max_timeout)


def _grant(case: Case) -> Grant:
    policy, request = case.policy.policy, case.request
    return Grant(
        executables=case.executables,
        interpreters=policy.allow_interpreters,
        # The longest directory that policy names: below it the agent follows no symbolic link out.
        work_dir_root=max(case.work_dir_roots, key=len) if request.work_dir else "",
        limits=policy.limits.lowered_by(request.limits),
        output=_output(case),
        capabilities=capability_mask(policy.capabilities),
        kill_grace=_seconds(policy.kill_grace),
        idle_seconds=_seconds(policy.idle_timeout) if request.interactive else None,
        detached_seconds=_seconds(policy.detached_timeout) if request.interactive else None,
        isolation=strictest(policy.isolation, request.isolation),
        tmp=policy.tmp,
    )


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


def _choose(verdicts: Sequence[Decision], applying: Sequence[CompiledPolicy]) -> Decision:
    """Choose among the verdicts of all policies that apply: a grant without approval, a grant, the nearest refusal.

    A grant for which no batch ever needs an approval comes before one with `requireApprovalAbove`.
    """
    for verdict in sorted(verdicts, key=lambda found: (bool(found.approvers), found.approval_above is not None)):
        if verdict.grant is not None:
            # The agent resolves symbolic links, so it needs the denied commands of all these policies.
            denied = tuple(sorted({pattern.text for policy in applying for pattern in policy.denied}))
            return replace(verdict, grant=verdict.grant.model_copy(update={"denied": denied}))
    # A policy that allows the command came closer than one that does not.
    return next((verdict for verdict in verdicts if verdict.rule != "allowedCommands"), verdicts[0])
