"""The receipts on which a decision about a batch rests, as its audit event names them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from tachikoma.vocabulary.batches import TargetState

__all__ = ["MAX_NAMED", "Ended", "Grounds"]

#: Most executions that an event names; those that did not succeed come first. Its digest is over all.
MAX_NAMED = 10


class Ended(NamedTuple):
    """A target that has ended, as the ledger has it."""

    agent: str
    state: TargetState
    #: Id of its execution; empty if it has none.
    exec_id: str = ""
    #: SHA-256 of its receipt, in hexadecimal; empty if it has none.
    receipt: str = ""


class Grounds(NamedTuple):
    """The targets on which a decision about a batch is based, as an audit event names them."""

    #: In words, with the ids of executions.
    text: str
    #: SHA-256, in hexadecimal, over the digests of all receipts in the order of the list, that of a health gate last,
    #: each on a line of its own; empty if there is none.
    evidence: str

    @classmethod
    def of(cls, ended: Iterable[Ended], gate: str = "") -> Grounds:
        """Name the targets of a wave.

        Args:
            ended: the targets, in the order of the list.
            gate: SHA-256 of the receipt of the health gate after the wave, in hexadecimal; empty without one.
        """
        targets = list(ended)
        named = sorted(targets, key=lambda target: target.state is TargetState.SUCCEEDED)[:MAX_NAMED]
        words = [f"{target.exec_id or target.agent} {target.state}" for target in named]
        if more := len(targets) - len(named):
            words.append(f"{more} more")
        receipts = "".join(f"{receipt}\n" for receipt in (*(target.receipt for target in targets), gate) if receipt)
        return cls(", ".join(words), hashlib.sha256(receipts.encode()).hexdigest() if receipts else "")
