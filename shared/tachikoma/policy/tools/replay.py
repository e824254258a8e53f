"""Past requests that a proposed policy would decide differently, for `tachikoma policy diff`."""

from __future__ import annotations

from collections.abc import Mapping

from tachikoma.errors import InvalidRequest
from tachikoma.policy.decide import NO_LABELS, SEARCH_PATH, PolicySet
from tachikoma.policy.decision import Decision
from tachikoma.policy.masking.redaction import is_masked
from tachikoma.vocabulary.audit import AuditCode, AuditedRequest, ExecAuditLog
from tachikoma.vocabulary.model import Model

__all__ = ["Change", "Replay"]

#: Events that contain the request; one of them per request.
_DECISIONS = {
    AuditCode.ADMITTED,
    AuditCode.APPROVAL_REQUESTED,
    AuditCode.DENIED,
    AuditCode.LIMITED,
    AuditCode.REFUSED,
}


class Change(Model):
    """A request that the new policy decides differently."""

    #: SPIFFE ID of the requester.
    subject: str
    #: Id of the agent.
    agent: str
    #: The argv with secrets masked.
    command: tuple[str, ...]
    #: The decision of the old policy, for people.
    before: str
    #: The decision of the new policy, for people.
    after: str
    #: Number of such requests in the trail.
    times: int = 1
    #: True if an argument is masked in the trail, so that the decision on the real command may differ.
    masked: bool = False


class Replay:
    """A comparison of two policies by the requests of an audit trail.

    The trail contains neither secrets nor values of variables. Masked arguments are decided on as they are masked, and
    variables as if they were empty.
    """

    def __init__(self, old: PolicySet, new: PolicySet, labels: Mapping[str, Mapping[str, str]]) -> None:
        """Prepare a replay; `labels` holds the labels of each agent by its id."""
        self._old = old
        self._new = new
        self._labels = labels
        #: Number of requests that were compared.
        self.requests = 0
        #: Whether a decision can depend on the address that a request comes from.
        self._by_address = old.names_networks or new.names_networks
        self._seen: dict[tuple[str, str, AuditedRequest, str], Change | None] = {}

    def add(self, event: ExecAuditLog) -> None:
        """Compare the decisions on the request of an event; events without a request are ignored."""
        if event.request is None or event.event not in _DECISIONS:
            return
        self.requests += 1
        address = event.client_ip if self._by_address else ""
        key = (event.requested_by, event.agent_id, event.request, address)
        if key in self._seen:
            known = self._seen[key]
            if known is not None:
                self._seen[key] = known.model_copy(update={"times": known.times + 1})
            return
        self._seen[key] = self._compare(*key)

    def _compare(self, subject: str, agent: str, audited: AuditedRequest, address: str) -> Change | None:
        try:
            request = audited.as_request(agent)
        except InvalidRequest:
            # A request of an older version that is not valid any more is refused by both.
            return None
        labels = self._labels.get(agent, NO_LABELS)
        decisions = [
            policies.decide(request, subject, SEARCH_PATH, labels, address) for policies in (self._old, self._new)
        ]
        before, after = map(_describe, decisions)
        # A denial for another reason is no change.
        if before == after or not any(decision.allowed for decision in decisions):
            return None
        masked = any(is_masked(element) for element in audited.command)
        return Change(subject=subject, agent=agent, command=audited.command, before=before, after=after, masked=masked)

    @property
    def changes(self) -> list[Change]:
        """The requests that are decided differently, the most frequent first."""
        return sorted(
            (change for change in self._seen.values() if change is not None), key=lambda change: -change.times
        )


def _describe(decision: Decision) -> str:
    """Describe a decision without digests, which change with every edit of a file."""
    if not decision.allowed:
        return f"denied: {decision.reason}"
    name = decision.policy.partition("@")[0]
    if decision.approvers:
        return f"allowed by {name} with an approval by {' or '.join(decision.approvers)}"
    return f"allowed by {name}"
