"""What a proposed policy would decide otherwise of the requests there were, for `tachikoma policy diff`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from pydantic import ValidationError

from tachikoma.policy.decide import NO_LABELS, SEARCH_PATH, Decision, PolicySet
from tachikoma.policy.redaction import is_masked
from tachikoma.vocabulary.audit import AuditCode, AuditedRequest, ExecAuditLog
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.requests import ExecRequest

__all__ = ["Change", "Replay"]

#: Events that say what was asked for, each once for a request.
_DECISIONS = {
    AuditCode.ADMITTED,
    AuditCode.APPROVAL_REQUESTED,
    AuditCode.DENIED,
    AuditCode.LIMITED,
    AuditCode.REFUSED,
}


class Change(Model):
    """A request that would be decided otherwise."""

    subject: str
    agent: str
    #: The argv with secrets taken out.
    command: tuple[str, ...]
    before: str
    after: str
    times: int = 1
    #: Whether a part of the command that is masked in the trail may have decided.
    masked: bool = False


class Replay:
    """Decides on the requests of an audit trail by two policies.

    The trail has neither secrets nor values of variables: masked arguments are decided on as they are masked, and
    variables as if they were empty.
    """

    def __init__(self, old: PolicySet, new: PolicySet, labels: Mapping[str, Mapping[str, str]]) -> None:
        """Prepare a replay; labels by the id of agents."""
        self._old = old
        self._new = new
        self._labels = labels
        #: Requests that were decided on.
        self.requests = 0
        #: Whether it counts where requests come from.
        self._by_address = old.names_networks or new.names_networks
        self._seen: dict[tuple[str, str, AuditedRequest, str], Change | None] = {}

    def add(self, event: ExecAuditLog) -> None:
        """Look at an event; those that are no decision on a request say nothing here."""
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
        timeout = None if audited.timeout is None else timedelta(seconds=audited.timeout)
        try:
            request = ExecRequest(
                agent_id=agent, command=audited.command, work_dir=audited.work_dir, user=audited.user,
                environment=dict.fromkeys(audited.environment, ""), timeout=timeout,
                interactive=audited.interactive, tty=audited.tty,
            )  # fmt: skip
        except ValidationError:
            # What an older version took and this one does not is refused by both.
            return None
        labels = self._labels.get(agent, NO_LABELS)
        decisions = [
            policies.decide(request, subject, SEARCH_PATH, labels, address) for policies in (self._old, self._new)
        ]
        before, after = map(_told, decisions)
        # Denied for another reason is denied all the same.
        if before == after or not any(decision.allowed for decision in decisions):
            return None
        masked = any(is_masked(element) for element in audited.command)
        return Change(subject=subject, agent=agent, command=audited.command, before=before, after=after, masked=masked)

    @property
    def changes(self) -> list[Change]:
        """What would be decided otherwise, the most frequent first."""
        return sorted(
            (change for change in self._seen.values() if change is not None), key=lambda change: -change.times
        )


def _told(decision: Decision) -> str:
    """A decision without what changes with every edit of a file."""
    if not decision.allowed:
        return f"denied: {decision.reason}"
    name = decision.policy.partition("@")[0]
    if decision.approvers:
        return f"allowed by {name} with an approval by {' or '.join(decision.approvers)}"
    return f"allowed by {name}"
