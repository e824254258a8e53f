"""The outcome of a policy decision: allowed or denied, by which rule, and what was granted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from tachikoma.policy.patterns import Pattern
from tachikoma.vocabulary.grants import Grant
from tachikoma.vocabulary.limits import WhenFull
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.recordings import NOT_RECORDED, RecordRule

__all__ = ["Decision", "Explanation", "may_approve", "may_observe", "may_play"]


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of policy for one request."""

    allowed: bool
    #: name@digest of the policy that decided; empty when no policy applies to this subject and agent.
    policy: str
    #: The field of the policy that decided, and the entry of it where there are several.
    rule: str
    #: Why the request is denied, for people; empty when it is allowed.
    reason: str
    #: What was granted; None when denied.
    grant: Grant | None = None
    #: Rate limits of each requester under the policy that decided; None for none.
    rate_limit: RateLimitConfig | None = None
    #: Largest number of executions under the policy that have not ended, of all requesters together; None for no limit.
    max_targets: int | None = None
    #: The same as a percentage of the agents that the selectors match; None for no limit.
    max_targets_percent: int | None = None
    #: Largest number of executions under the policy that have not ended and are not approved, of all requesters
    #: together; None for no limit. A larger batch waits for an approval.
    approval_above: int | None = None
    #: SPIFFE ID patterns of the approvers of such a batch.
    batch_approvers: tuple[str, ...] = ()
    #: The policy's selectors of agents.
    agents: tuple[str, ...] = ()
    #: Longest run time of the command: the timeout of the request, or the default that the policy permits.
    timeout: timedelta = timedelta(0)
    #: SPIFFE ID patterns of the approvers, one of whom must approve; empty when no approval is needed.
    approvers: tuple[str, ...] = ()
    #: SPIFFE ID patterns of the callers that may observe the execution, if it is interactive.
    observers: tuple[str, ...] = ()
    #: Whether the execution is recorded, if it is interactive.
    record: RecordRule = NOT_RECORDED
    #: SPIFFE ID patterns of the callers that may play its recording.
    players: tuple[str, ...] = ()
    #: How long the request may wait for its approval.
    approval_timeout: timedelta = timedelta(0)
    #: True if a command of root may reach the host.
    host_access: bool = False

    @property
    def executables(self) -> tuple[str, ...]:
        """Absolute paths that the program may have, in search order; empty when denied."""
        return tuple(executable.path for executable in self.grant.executables) if self.grant else ()

    @property
    def waits(self) -> bool:
        """True if the command's output waits for readers when its limit is reached."""
        return self.grant is not None and self.grant.output.when_full is WhenFull.WAIT

    def approvable_by(self, subject: str, requester: str) -> bool:
        """Return True if this subject may approve the request. Requesters never approve their own."""
        return bool(subject) and subject != requester and may_approve(self.approvers, subject)


def may_observe(observers: Sequence[str], subject: str) -> bool:
    """Return True if a SPIFFE ID matches one of the patterns of observers."""
    return any(Pattern(text).matches(subject) for text in observers)


def may_play(players: Sequence[str], subject: str) -> bool:
    """Return True if a SPIFFE ID matches one of the patterns of players."""
    return any(Pattern(text).matches(subject) for text in players)


def may_approve(approvers: Sequence[str], subject: str) -> bool:
    """Return True if a SPIFFE ID matches one of the patterns of approvers."""
    return any(Pattern(text).matches(subject) for text in approvers)


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, with the verdict of each policy that applies to the request's subject and agent."""

    decision: Decision
    verdicts: tuple[Decision, ...] = ()
