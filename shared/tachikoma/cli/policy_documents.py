"""The JSON documents of `tachikoma policy`."""

from __future__ import annotations

from typing import Any

from tachikoma.policy.tools.replay import Change
from tachikoma.vocabulary.model import Model

__all__ = [
    "PolicyChanges",
    "PolicyExplanation",
    "PolicyProgram",
    "PolicyReport",
    "PolicyTestFailure",
    "PolicyTestReport",
    "PolicyVerdict",
]


class PolicyChanges(Model):
    """The requests of the audit trail that two policies decide differently."""

    #: Number of requests that were compared.
    requests: int
    changes: tuple[Change, ...]


class PolicyProgram(Model):
    """A program that a policy grants."""

    #: Name of the policy.
    policy: str
    #: Its absolute path, or the pattern that grants it.
    path: str
    #: Kind of the program, in words: known to be safe, known to run other programs, or unknown.
    kind: str


class PolicyReport(Model):
    """A policy file, or a folder of them, that has no mistake."""

    file: str
    #: Number of policies.
    policies: int
    #: Doubtful rules, in words; empty if there are none.
    warnings: tuple[str, ...]
    programs: tuple[PolicyProgram, ...]


class PolicyVerdict(Model):
    """The decision of one policy, or of all policies together, on a request."""

    #: name@digest of the policy; empty if none decided.
    policy: str
    allowed: bool
    #: SPIFFE ID patterns of the approvers; empty if no approval is needed.
    approvers: tuple[str, ...]
    #: Largest number of executions at once under the policy without an approval. None: no limit.
    approval_above: int | None = None
    #: SPIFFE ID patterns of the approvers of such a batch.
    batch_approvers: tuple[str, ...] = ()
    #: The field of the policy that decided.
    rule: str
    #: Why it is denied; empty if it is allowed.
    reason: str


class PolicyExplanation(Model):
    """The decision on a request."""

    decision: PolicyVerdict
    #: The verdict of each policy that applies to requester and agent.
    verdicts: tuple[PolicyVerdict, ...]
    #: The programs that may be executed, in search order.
    executables: tuple[PolicyProgram, ...]
    #: The limits of the command, as in a policy file.
    limits: dict[str, Any]
    #: Limits that an agent adds for resources without a limit in `limits`. Its settings may have others.
    defaults: dict[str, Any]
    #: Least isolation of the command; empty if only the agent's setting decides.
    isolation: str


class PolicyTestFailure(Model):
    """An expectation that a policy does not meet."""

    #: SPIFFE ID of the requester.
    subject: str
    agent: str
    #: The argv of the expectation.
    command: tuple[str, ...]
    #: The difference, in words.
    mistake: str


class PolicyTestReport(Model):
    """The result of testing the expectations of a policy."""

    #: Number of expectations.
    expectations: int
    failures: tuple[PolicyTestFailure, ...]
