"""The decision of policy on each target of a batch: the required approvals, and the digests that an approval binds."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from tachikoma.policy.decision import Decision
from tachikoma.vocabulary.batches import ApprovalNeed
from tachikoma_orchestrator.batches.frozen import Frozen
from tachikoma_orchestrator.batches.gates import gate_verdict
from tachikoma_orchestrator.batches.starter import Starter

__all__ = ["Examination", "needs_of"]


def needs_of(decisions: Iterable[Decision]) -> tuple[ApprovalNeed, ...]:
    """Return the policies that require an approval, for the decisions on the targets of a batch; sorted by name."""
    found: dict[str, list[Decision]] = {}
    for decision in decisions:
        if decision.allowed and decision.batch_approvers:
            found.setdefault(decision.policy.partition("@")[0], []).append(decision)
    needs = []
    for name, under in sorted(found.items()):
        # A policy that requires an approval of each request has no number below which none is needed.
        above = 0 if under[0].approvers else under[0].approval_above or 0
        if len(under) > above:
            needs.append(ApprovalNeed(policy=name, targets=len(under), above=above, approvers=under[0].batch_approvers))
    return tuple(needs)


@dataclass(frozen=True, slots=True)
class Examination:
    """The decisions of the active policies on all targets of a batch."""

    #: The policies that require an approval; empty if the batch may start.
    needs: tuple[ApprovalNeed, ...]
    #: Shortest time that these policies let a request wait for its approval.
    approval_timeout: timedelta
    #: For each target the digest of what it would run (`Verdict.binding`), in the order of the list.
    bindings: tuple[str, ...]
    #: Targets that policy denies.
    denied: tuple[str, ...]
    #: The same for the first health gate; empty without a gate, or if policy denies it.
    gate: str
    #: SHA-256 over the batch and all bindings, in hexadecimal.
    digest: str

    @classmethod
    async def of(cls, starter: Starter, frozen: Frozen) -> Examination:
        """Decide by policy on all targets of a batch, without blocking other calls for long."""
        decisions, bindings, denied = [], [], []
        for agent in frozen.targets:
            verdict = await starter.verdict(frozen, agent)
            bindings.append(verdict.binding)
            if verdict.state is not None or verdict.allowed is None:
                denied.append(agent)
            else:
                decisions.append(verdict.allowed.decision)
            await asyncio.sleep(0)
        gate = await gate_verdict(starter, frozen, 0) if frozen.request.gate is not None else None
        if gate is not None and gate.allowed is not None:
            decisions.append(gate.allowed.decision)
        needs = needs_of(decisions)
        names = {need.policy for need in needs}
        waits = [found.approval_timeout for found in decisions if found.policy.partition("@")[0] in names]
        gate_binding = gate.binding if gate is not None else ""
        content = json.dumps([frozen.id, frozen.request.digest(frozen.targets), bindings, gate_binding])
        digest = hashlib.sha256(content.encode()).hexdigest()
        return cls(needs, min(waits, default=timedelta(0)), tuple(bindings), tuple(denied), gate_binding, digest)
