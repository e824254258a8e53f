"""Observations about agents that only this orchestrator makes: differences of clocks and formats, and second workers.

They are kept in memory. Each orchestrator hears every heartbeat, so each has its own within a few seconds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import structlog

from tachikoma.identity.signing import CLOCK_SKEW_SECONDS
from tachikoma.streams.heartbeat import LEASE_SECONDS, Contender, Heartbeat
from tachikoma.vocabulary.clock import now_ms, seconds_of_ms
from tachikoma.vocabulary.formats import difference

__all__ = ["Observations", "second_worker"]

log = structlog.get_logger(__name__)

#: Heartbeats that one difference is computed from. A late heartbeat makes a clock look slow, never fast.
SAMPLES = 2
#: Difference from which on a clock is reported, in seconds. Below it, it may be the delay of the heartbeats.
WARNING_SECONDS = 10.0
#: Time for which a second worker is shown after its last message.
CONTENDER_SECONDS = 2 * LEASE_SECONDS


@dataclass(slots=True)
class _Clock:
    """The clock of one run of an agent's worker."""

    run: str
    #: Differences of the last heartbeats, in seconds; positive if the agent's clock is ahead.
    differences: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    #: Whether its difference was logged as too large.
    reported: bool = False


class Observations:
    """The observations about all agents."""

    def __init__(self) -> None:
        self._clocks: dict[str, _Clock] = {}
        #: Which formats of an agent differ, in words; empty for none.
        self._formats: dict[str, str] = {}
        #: The last second worker of an agent, with the monotonic time of its message.
        self._contenders: dict[str, tuple[Contender, float]] = {}

    def heard(self, agent: str, heartbeat: Heartbeat, *, age_seconds: float = 0.0) -> None:
        """Compare formats and clock of an agent with the own ones.

        Args:
            agent: the agent.
            heartbeat: its heartbeat.
            age_seconds: most seconds since it was sent; 0 for one that was sent just now.
        """
        other = difference(heartbeat.formats)
        self._formats[agent] = f"its worker is version {heartbeat.version}, with {other}" if other else ""
        if heartbeat.sent_ms is None:
            self._clocks.pop(agent, None)
            return
        clock = self._clocks.get(agent)
        if clock is None or clock.run != heartbeat.run:
            clock = self._clocks[agent] = _Clock(heartbeat.run)
        ahead = seconds_of_ms(heartbeat.sent_ms - now_ms())
        # Time that passed since then is no difference of the clocks.
        clock.differences.append(ahead if ahead >= 0 else min(0.0, ahead + age_seconds))
        problem = self.obstacle(agent)
        if problem and not clock.reported:
            log.warning("agent.unfit", agent=agent, problem=problem)
        clock.reported = bool(problem)

    def contended(self, agent: str, contender: Contender) -> None:
        """Remember a second worker of an agent."""
        self._contenders[agent] = contender, time.monotonic()

    def obstacle(self, agent: str) -> str:
        """Return why an agent can run nothing although it is online: formats or clock, in words; empty if it can."""
        if formats := self._formats.get(agent):
            return f"{formats}; install the same version on both hosts"
        seconds = self._difference_seconds(agent)
        if abs(seconds) <= CLOCK_SKEW_SECONDS:
            return ""
        return f"{_words(seconds)}; more than {CLOCK_SKEW_SECONDS} s are refused, so set the clocks of both hosts"

    def warnings(self, agent: str) -> Iterator[str]:
        """Yield what operators should know about an agent."""
        obstacle, seconds = self.obstacle(agent), self._difference_seconds(agent)
        if obstacle:
            yield obstacle
        elif abs(seconds) > WARNING_SECONDS:
            yield _words(seconds)
        contender, heard = self._contenders.get(agent, (None, 0.0))
        if contender is not None and time.monotonic() - heard < CONTENDER_SECONDS:
            yield second_worker(contender)

    def _difference_seconds(self, agent: str) -> float:
        clock = self._clocks.get(agent)
        return max(clock.differences) if clock is not None else 0.0


def second_worker(contender: Contender) -> str:
    """Return that a second worker waits, in words."""
    return (
        f"a second worker with its identity waits on host {contender.hostname} (journal {contender.boot}), "
        f"while the one on {contender.holder} holds its lease"
    )


def _words(seconds: float) -> str:
    return f"its clock is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} the orchestrator's"
