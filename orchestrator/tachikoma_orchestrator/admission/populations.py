"""The sizes of the sets of agents that policies select, for limits in percent."""

from __future__ import annotations

import time

from tachikoma.policy.decision import Decision
from tachikoma.policy.patterns import AgentSelector
from tachikoma_orchestrator.agents.registry import Registry

__all__ = ["REFRESH_SECONDS", "Populations"]

#: Seconds for which a size is used before it is counted again.
REFRESH_SECONDS = 10.0
#: Sizes that are remembered.
MAX_REMEMBERED = 1000


class Populations:
    """Counts the known agents that the selectors of a policy match, by bound labels and by id."""

    def __init__(self, registry: Registry) -> None:
        """Prepare the counts.

        Args:
            registry: the known agents.
        """
        self._registry = registry
        #: Monotonic time of the count, and its result, by the texts of the selectors.
        self._sizes: dict[tuple[str, ...], tuple[float, int]] = {}

    async def most_targets(self, decision: Decision) -> int | None:
        """Return the most executions under the deciding policy that may be open at once; None for no limit.

        Raises:
            redis errors: the agents could not be read.
        """
        limits = [] if decision.max_targets is None else [decision.max_targets]
        if decision.max_targets_percent is not None:
            limits.append(max(1, await self._size(decision) * decision.max_targets_percent // 100))
        return min(limits, default=None)

    async def _size(self, decision: Decision) -> int:
        key = decision.agents
        counted, size = self._sizes.get(key, (-REFRESH_SECONDS, 0))
        if time.monotonic() - counted >= REFRESH_SECONDS:
            known = await self._registry.known_labels()
            selectors = [AgentSelector(text) for text in key]
            size = sum(
                any(selector.matches(agent, labels) for selector in selectors) for agent, labels in known.items()
            )
            if len(self._sizes) >= MAX_REMEMBERED:
                self._sizes.clear()
            self._sizes[key] = time.monotonic(), size
        return size
