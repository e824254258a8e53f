"""The bound of events about refused requests, so that a caller without a right cannot fill the audit trail.

Each identity, or address of a caller without one, has a budget: `burst` events at once, and one more in each
`REFILL_SECONDS`. Within it every refusal is an event. Beyond it refusals are counted, and one event in each
`PERIOD_SECONDS` reports their number.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from tachikoma.vocabulary.audit import AuditCode

__all__ = ["DEFAULT_BURST", "PERIOD_SECONDS", "LeftOut", "RefusalBudget", "address_subject"]

#: Events of one subject at once.
DEFAULT_BURST = 200
#: Seconds in which the budget of a subject grows by one event.
REFILL_SECONDS = 120.0
#: Seconds between two events that report the number of refusals without an event of their own.
PERIOD_SECONDS = 600.0
#: Subjects that are remembered. Further ones share one budget, so a caller with many addresses gains nothing.
MAX_SUBJECTS = 1000
#: The subject of all those.
OTHERS = "others"
#: Network of one IPv6 host.
IPV6_HOST_BITS = 64


def address_subject(address: str) -> str:
    """Return the subject of a caller without an identity: its address, or its network with IPv6."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return "an unknown address"
    if parsed.version == 6:
        return str(ip_network((parsed, IPV6_HOST_BITS), strict=False))
    return address


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Refusals of one subject that have no event of their own."""

    subject: str
    #: Number of refusals by audit code.
    numbers: Counter[AuditCode]

    @property
    def reason(self) -> str:
        """The reason in the event."""
        numbers = ", ".join(f"{number} {code}" for code, number in sorted(self.numbers.items()))
        return f"{self.numbers.total()} refusals of {self.subject[:300]} have no event of their own: {numbers}"


@dataclass(slots=True)
class _Budget:
    """The budget of one subject."""

    events: float
    #: Time of the last change, by the monotonic clock.
    at: float
    left_out: Counter[AuditCode] = field(default_factory=Counter)


class RefusalBudget:
    """Decides which refusals are recorded one by one, and counts the others."""

    def __init__(self, burst: int = DEFAULT_BURST, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare budgets.

        Args:
            burst: events of one subject at once.
            clock: the current time in seconds.
        """
        self._burst = float(burst)
        self._clock = clock
        #: By subject, the one used last at the end.
        self._budgets: OrderedDict[str, _Budget] = OrderedDict()

    def admits(self, subject: str) -> bool:
        """Return True, and take one event from the subject's budget, if a refusal may be recorded by itself."""
        budget = self._budget(subject)
        if budget.events < 1:
            return False
        budget.events -= 1
        return True

    def give_back(self, subject: str) -> None:
        """Return an event to the subject's budget: there was no refusal."""
        budget = self._budget(subject)
        budget.events = min(self._burst, budget.events + 1)

    def leave_out(self, subject: str, code: AuditCode, number: int = 1) -> None:
        """Count refusals that get no event of their own."""
        self._budget(subject).left_out[code] += number

    def take_left_out(self) -> Iterator[LeftOut]:
        """Return what was left out since the last call, and forget subjects with a full budget."""
        for subject, budget in list(self._budgets.items()):
            self._refill(budget)
            numbers, budget.left_out = budget.left_out, Counter()
            if budget.events >= self._burst:
                del self._budgets[subject]
            if numbers:
                yield LeftOut(subject, numbers)

    def _budget(self, subject: str) -> _Budget:
        if subject not in self._budgets and len(self._budgets) >= MAX_SUBJECTS:
            subject = OTHERS
        budget = self._budgets.setdefault(subject, _Budget(self._burst, self._clock()))
        self._refill(budget)
        return budget

    def _refill(self, budget: _Budget) -> None:
        now = self._clock()
        budget.events = min(self._burst, budget.events + (now - budget.at) / REFILL_SECONDS)
        budget.at = now
