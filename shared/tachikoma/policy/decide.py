"""Policy: who may run what, where, as whom.

Default deny. A denied command of any policy for this subject and agent wins over everything. One policy must grant the
whole of a request: command, user, directory, environment and timeout; grants of several are not added up. The decision
is a pure function of request, subject and policies.

The file is YAML:

    operators: ["spiffe://tachikoma.local/user/alice"]
    policies:
      - name: web
        subjects: ["spiffe://tachikoma.local/user/*"]
        agents: ["web-*"]
        allowedCommands: ["/usr/bin/systemctl {status,restart} nginx.service"]
        maxTimeout: 5m
"""

from __future__ import annotations

import hashlib
import json
import platform
import posixpath
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import MappingProxyType

from pydantic import Field

from tachikoma.config.yaml_files import FileWatch, Location, digest, dotted, read_document, read_files
from tachikoma.errors import ConfigurationError, PermissionDenied
from tachikoma.policy.environment import forbidden
from tachikoma.policy.interpreters import is_interpreter
from tachikoma.policy.patterns import AgentSelector, CommandPattern, CommandPatterns, Pattern, PatternError
from tachikoma.policy.redaction import redact
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.limits import WhenFull, capability_mask
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.policies import ExecPolicy, PolicyStatus, RateLimitConfig
from tachikoma.vocabulary.requests import DEFAULT_TIMEOUT, ExecRequest
from tachikoma.vocabulary.types import format_duration

__all__ = ["SEARCH_PATH", "Decision", "Explanation", "PolicySet", "PolicyWatch", "may_approve", "narrow"]

#: Where a bare program name is looked up, in this order, unless an orchestrator is configured otherwise.
SEARCH_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
NO_LABELS: Mapping[str, str] = MappingProxyType({})


class PolicyFile(Model):
    """What a policy file holds."""

    #: SPIFFE ID patterns of those who see and may end everybody's executions, and read the audit trail.
    operators: tuple[str, ...] = ()
    policies: tuple[ExecPolicy, ...] = Field(max_length=10_000)


@dataclass(frozen=True, slots=True)
class Decision:
    """What policy says of a request."""

    allowed: bool
    #: name@digest of the policy that decided; empty when none is for this subject and agent.
    policy: str
    #: The field, and its entry, that decided.
    rule: str
    #: For people.
    reason: str
    #: What was granted; None when denied.
    grant: Grant | None = None
    #: How much the requester may ask for under the policy that decided.
    rate_limit: RateLimitConfig | None = None
    #: How long the command may run; the request's own timeout where it names one.
    timeout: timedelta = timedelta(0)
    #: SPIFFE ID patterns of those of whom one must approve; empty where nobody needs to.
    approvers: tuple[str, ...] = ()
    #: How long the request waits for that.
    approval_timeout: timedelta = timedelta(0)

    @property
    def executables(self) -> tuple[str, ...]:
        """Absolute paths the program may be, in search order; empty when denied."""
        return tuple(executable.path for executable in self.grant.executables) if self.grant else ()

    @property
    def waits(self) -> bool:
        """Whether the command's output waits for readers."""
        return self.grant is not None and self.grant.output.when_full is WhenFull.WAIT

    def approvable_by(self, subject: str, requester: str) -> bool:
        """Whether somebody may approve it. Nobody approves their own request."""
        return bool(subject) and subject != requester and may_approve(self.approvers, subject)


def may_approve(approvers: Sequence[str], subject: str) -> bool:
    """Whether a SPIFFE ID is among those that patterns name."""
    return any(Pattern(text).matches(subject) for text in approvers)


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, and what each policy said that is for the request's subject and agent."""

    decision: Decision
    verdicts: tuple[Decision, ...] = ()


class _Policy:
    """An `ExecPolicy`, compiled."""

    def __init__(self, policy: ExecPolicy, position: str) -> None:
        self.policy = policy
        #: file:line:column.
        self.position = position
        canonical = json.dumps(policy.to_dict(), sort_keys=True, separators=(",", ":"))
        self.label = f"{policy.name}@{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"
        self.subjects = [Pattern(text) for text in policy.subjects]
        self.agents = [AgentSelector(text) for text in policy.agents]
        self.allowed = [CommandPattern(text) for text in policy.allowed_commands]
        self.denied = [CommandPattern(text, deny=True) for text in policy.denied_commands]
        self._granting = CommandPatterns(self.allowed)
        self._denying = CommandPatterns(self.denied)
        self.users = [Pattern(text) for text in policy.allowed_users]
        self.work_dirs = [Pattern(text) for text in policy.allowed_work_dirs]
        self.environment = [Pattern(text) for text in policy.allowed_environment]
        self.networks = [ip_network(text) for text in policy.allowed_networks]
        for text in policy.approvers:
            Pattern(text)

    def concerns(self, subject: str, agent: str, labels: Mapping[str, str]) -> bool:
        return any(p.matches(subject) for p in self.subjects) and any(s.matches(agent, labels) for s in self.agents)

    def denies(self, request: ExecRequest, candidates: Sequence[str]) -> Decision | None:
        """The denial of a request, whatever else grants it."""
        for path in candidates:
            for pattern in self._denying.matching(path, request.command[1:]):
                return self._no(f"deniedCommands: {pattern.text}", f"denies {pattern.text!r}")
        return None

    def warnings(self) -> list[str]:
        """What is valid and hardly meant."""
        policy, found = self.policy, []
        if not policy.allowed_commands and not policy.denied_commands:
            found.append("grants and denies nothing: it lists no command")
        for text in policy.allowed_commands:
            words = shlex.split(text)
            if words[0] in ("/**", "/*") or words[0].startswith("/**"):
                found.append(f"allowedCommands {text!r} grants every program")
            elif is_interpreter(words[0]) and not policy.allow_interpreters:
                found.append(f"allowedCommands {text!r} can never grant it: allowInterpreters is not set")
            elif is_interpreter(words[0]) and words[-1] == "...":
                found.append(f"allowedCommands {text!r} grants every program: it runs whatever it is told to")
            if any(pattern.covers(words[0], words[1:]) for pattern in self.denied):
                found.append(f"allowedCommands {text!r} can never grant it: deniedCommands covers it")
        if any(pattern.text in ("**", "spiffe://**") for pattern in self.subjects):
            found.append("subjects is everybody of every trust domain")
        if policy.require_approval and any(text in ("**", "spiffe://**") for text in policy.approvers):
            found.append("approvers is everybody of every trust domain")
        if policy.approvers and not policy.require_approval:
            found.append("approvers are never asked: requireApproval is not set")
        for path in policy.executable_sha256:
            if not any(pattern.names(path) or pattern.program.matches(path) for pattern in self.allowed):
                found.append(f"executableSha256 pins {path}, which no entry of allowedCommands means")
        if any(network.prefixlen == 0 for network in self.networks):
            found.append("allowedNetworks names every address")
        if policy.capabilities and not any(pattern.matches("root") for pattern in self.users):
            found.append("capabilities are only for root, which allowedUsers does not allow")
        return found

    def allows_from(self, address: str) -> bool:
        """Whether it may be asked for from an address. Nobody knows where an empty one is."""
        if not self.networks:
            return True
        try:
            found = ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self.networks)

    def grants(self, request: ExecRequest, candidates: Sequence[str], shown: str, address: str) -> Decision:
        """Whether this policy alone grants the whole request; `shown` is its program, for messages."""
        arguments = request.command[1:]
        executables = []
        for path in candidates:
            granting = list(self._granting.matching(path, arguments))
            if granting:
                executables.append(
                    GrantedExecutable(
                        path=path,
                        named=any(pattern.names(path) for pattern in granting),
                        sha256=self.policy.executable_sha256.get(path, ()),
                    )
                )
        if executables and not self.policy.allow_interpreters:
            interpreters = [executable for executable in executables if is_interpreter(executable.path)]
            executables = [executable for executable in executables if executable not in interpreters]
            if not executables:
                path = interpreters[0].path
                return self._no("allowInterpreters", f"does not allow {path!r}, which runs whatever it is told to")
        if not executables:
            return self._no("allowedCommands", f"does not allow the command {shown!r} with these arguments")
        if not self.allows_from(address):
            where = f"from {address}" if address else "from an address that is not known"
            return self._no("allowedNetworks", f"does not allow requests {where}")
        if request.user and not any(pattern.matches(request.user) for pattern in self.users):
            return self._no("allowedUsers", f"does not allow the user {request.user!r}")
        roots = [root for pattern in self.work_dirs if (root := pattern.anchor(request.work_dir)) is not None]
        if request.work_dir and not roots:
            return self._no("allowedWorkDirs", f"does not allow the working directory {request.work_dir!r}")
        for name, value in request.environment.items():
            if why := forbidden(name, value):
                return self._no("allowedEnvironment", f"cannot allow the variable: {why}")
            if not any(pattern.matches(name) for pattern in self.environment):
                return self._no("allowedEnvironment", f"does not allow the variable {name!r}")
        if request.timeout is not None and request.timeout > self.policy.max_timeout:
            longest = format_duration(self.policy.max_timeout)
            return self._no("maxTimeout", f"allows at most {longest}, not {format_duration(request.timeout)}")
        if request.interactive and not self.policy.allow_interactive:
            return self._no("allowInteractive", "does not allow interactive executions")
        if request.tty and not self.policy.allow_tty:
            return self._no("allowTty", "does not allow terminals")
        grace = self.policy.kill_grace
        grant = Grant(
            executables=tuple(executables),
            interpreters=self.policy.allow_interpreters,
            # The narrowest that policy names: from there on no symbolic link leads out.
            work_dir_root=max(roots, key=len) if request.work_dir else "",
            limits=self.policy.limits.lowered_by(request.limits),
            output=self.policy.output,
            capabilities=capability_mask(self.policy.capabilities),
            kill_grace=None if grace is None else grace.total_seconds(),
        )
        timeout = request.timeout or min(DEFAULT_TIMEOUT, self.policy.max_timeout)
        return Decision(
            True, self.label, "allowedCommands", "", grant, self.policy.rate_limit, timeout,
            approvers=self.policy.approvers if self.policy.require_approval else (),
            approval_timeout=self.policy.approval_timeout,
        )  # fmt: skip

    def _no(self, rule: str, what: str) -> Decision:
        return Decision(False, self.label, rule, f"policy {self.policy.name} {what}")


@dataclass(frozen=True, slots=True, eq=False)
class PolicySet:
    """All policies of one file. Immutable; a changed file makes a new set."""

    policies: tuple[_Policy, ...]
    operators: tuple[Pattern, ...]
    #: SHA-256 over the files.
    digest: str
    #: Command patterns that mark arguments as secret.
    _marking: tuple[CommandPattern, ...] = ()

    @classmethod
    def load(cls, path: Path) -> PolicySet:
        """Read a policy file, or all files of a folder that end in .yaml or .yml, but not in .test.yaml.

        Raises:
            ConfigurationError: it cannot be read or is wrong; the message names file, line, column and field of
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
        mistakes: list[str] = []
        compiled: list[_Policy] = []
        operators: list[Pattern] = []
        where: dict[str, str] = {}
        for name, text in texts:
            try:
                document = read_document(text, name, PolicyFile)
            except ConfigurationError as error:
                mistakes.append(str(error))
                continue
            for index, policy in enumerate(document.content.policies):
                position = document.position(("policies", index, "name"))
                if policy.name in where:
                    mistakes.append(f"{position}: name: {policy.name!r} is used twice, first at {where[policy.name]}")
                where.setdefault(policy.name, position)
                try:
                    compiled.append(_Policy(policy, position))
                except PatternError as error:
                    location = _where_pattern(policy, index)
                    mistakes.append(f"{document.position(location)}: {dotted(location)}: {error}")
            for index, pattern in enumerate(document.content.operators):
                try:
                    operators.append(Pattern(pattern))
                except PatternError as error:
                    mistakes.append(f"{document.position(('operators', index))}: operators: {error}")
        if mistakes:
            raise ConfigurationError("\n".join(mistakes))
        patterns = (pattern for policy in compiled for pattern in (*policy.allowed, *policy.denied))
        marking = tuple(pattern for pattern in patterns if pattern.has_secrets)
        # So that no decision depends on their order.
        compiled.sort(key=lambda policy: policy.label)
        return cls(tuple(compiled), tuple(operators), digest(texts), marking)

    def warnings(self) -> list[str]:
        """What is valid and hardly meant: rules that can never grant anything, and rules that grant everything."""
        found = []
        for policy in self.policies:
            found += [f"{policy.position}: {policy.policy.name}: {text}" for text in policy.warnings()]
        return found

    def is_operator(self, subject: str) -> bool:
        """Whether somebody sees everybody's executions and the audit trail."""
        return any(pattern.matches(subject) for pattern in self.operators)

    @property
    def names_networks(self) -> bool:
        """Whether it counts where requests come from."""
        return any(policy.networks for policy in self.policies)

    def secrets(self, command: Sequence[str], search_path: Sequence[str]) -> frozenset[int]:
        """Numbers of the elements of an argv that any policy marks as secret, also one for others."""
        found: set[int] = set()
        for pattern in self._marking:
            for path in _candidates(command[0], search_path):
                found |= pattern.secrets(path, command[1:])
        return frozenset(number + 1 for number in found)

    def decide(
        self,
        request: ExecRequest,
        subject: str,
        search_path: Sequence[str],
        labels: Mapping[str, str] = NO_LABELS,
        address: str = "",
    ) -> Decision:
        """Decide on a request. Pure, and the same for any order of the policies.

        Args:
            request: what is to be run.
            subject: SPIFFE ID of the requester.
            search_path: folders in which a program is looked for that is a bare name.
            labels: of the agent.
            address: from which it was asked for; empty where that is not known.
        """
        return self.explain(request, subject, search_path, labels, address).decision

    def explain(
        self,
        request: ExecRequest,
        subject: str,
        search_path: Sequence[str],
        labels: Mapping[str, str] = NO_LABELS,
        address: str = "",
    ) -> Explanation:
        """Decide on a request as `decide` does, and say what each policy that is for it says."""
        program, shown = request.command[0], redact(request.command[:1])[0]
        if ("/" in program or program in (".", "..")) and not _is_plain(program):
            why = f"the program must be a bare name or a plain absolute path, not {shown!r}"
            return Explanation(Decision(False, "", "command", why))
        candidates = _candidates(program, search_path)
        if request.work_dir and not _is_plain(request.work_dir):
            why = f"the working directory must be a plain path, not {request.work_dir!r}"
            return Explanation(Decision(False, "", "workDir", why))
        concerned = [policy for policy in self.policies if policy.concerns(subject, request.agent_id, labels)]
        if not concerned:
            why = f"no policy is for {subject} on agent {request.agent_id}"
            return Explanation(Decision(False, "", "default", why))
        denials = [denial for policy in concerned if (denial := policy.denies(request, candidates)) is not None]
        verdicts = tuple(policy.grants(request, candidates, shown, address) for policy in concerned)
        if denials:
            return Explanation(denials[0], (*denials, *verdicts))
        denied = tuple(sorted({pattern.text for policy in concerned for pattern in policy.denied}))
        # One policy that grants it all is enough, so one that asks for an approval beside it does not count.
        for verdict in sorted(verdicts, key=lambda verdict: bool(verdict.approvers)):
            if verdict.grant is not None:
                decision = replace(verdict, grant=verdict.grant.model_copy(update={"denied": denied}))
                return Explanation(decision, verdicts)
        # Name the policy that came closest: one that allows the command says more than one that does not.
        return Explanation(next((v for v in verdicts if v.rule != "allowedCommands"), verdicts[0]), verdicts)


def _candidates(program: str, search_path: Sequence[str]) -> list[str]:
    """What a program may be, in search order."""
    return [program] if "/" in program else [f"{folder}/{program}" for folder in search_path]


def _is_plain(path: str) -> bool:
    """Whether a path is absolute, and written in the shortest way."""
    return path.startswith("/") and not path.startswith("//") and posixpath.normpath(path) == path


def narrow(grant: Grant, local: Decision) -> Grant:
    """What is left of a grant where an agent's own policy has decided too. It only takes away.

    Raises:
        PermissionDenied: nothing is left.
    """
    if not local.allowed or local.grant is None:
        raise PermissionDenied(f"the agent's own policy does not allow it: {local.reason}")
    own = {executable.path: executable for executable in local.grant.executables}
    executables = []
    for executable in grant.executables:
        other = own.get(executable.path)
        if other is None:
            continue
        pins = executable.sha256 or other.sha256
        if executable.sha256 and other.sha256:
            pins = tuple(pin for pin in executable.sha256 if pin in other.sha256)
            if not pins:
                continue
        named = executable.named and other.named
        executables.append(GrantedExecutable(path=executable.path, named=named, sha256=pins))
    if not executables:
        raise PermissionDenied("the agent's own policy does not allow it: it grants none of the files this may execute")
    graces = [grace for grace in (grant.kill_grace, local.grant.kill_grace) if grace is not None]
    return Grant(
        executables=tuple(executables),
        interpreters=grant.interpreters and local.grant.interpreters,
        denied=tuple(sorted({*grant.denied, *local.grant.denied})),
        work_dir_root=max(grant.work_dir_root, local.grant.work_dir_root, key=len),
        limits=grant.limits.lowered_by(local.grant.limits),
        output=grant.output.lowered_by(local.grant.output),
        capabilities=grant.capabilities & local.grant.capabilities,
        kill_grace=min(graces) if graces else None,
    )


def _where_pattern(policy: ExecPolicy, index: int) -> Location:
    """Which entry of a policy is the pattern that cannot be compiled."""
    for field, alias, kind in (
        (policy.subjects, "subjects", Pattern),
        (policy.agents, "agents", AgentSelector),
        (policy.allowed_commands, "allowedCommands", CommandPattern),
        (policy.allowed_users, "allowedUsers", Pattern),
        (policy.allowed_work_dirs, "allowedWorkDirs", Pattern),
        (policy.allowed_environment, "allowedEnvironment", Pattern),
        (policy.approvers, "approvers", Pattern),
    ):
        for number, text in enumerate(field):
            try:
                kind(text)
            except PatternError:
                return ("policies", index, alias, number)
    for number, text in enumerate(policy.denied_commands):
        try:
            CommandPattern(text, deny=True)
        except PatternError:
            return ("policies", index, "deniedCommands", number)
    return ("policies", index)


class PolicyWatch(FileWatch[PolicySet]):
    """The policy set in force, replaced as a whole when its file changes and is right."""

    def __init__(self, path: Path) -> None:
        """Load the file; raises as `PolicySet.load` does."""
        super().__init__(path, PolicySet)

    def status(self) -> PolicyStatus:
        """What is in force, for people."""
        return PolicyStatus(
            digest=self.current.digest, policies=len(self.current.policies), since=self.since, error=self.error,
            host=platform.node(), path=str(self.path),
        )  # fmt: skip
