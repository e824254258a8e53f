"""Limits where neither policy nor request has any."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.limits import DEFAULT_MEMORY, DEFAULT_PIDS, ResourceLimits
from tachikoma_worker.cgroups.defaults import default_limits, with_defaults
from tachikoma_worker.cgroups.limits import CONTROLLERS, needed

GIB = 2**30


def test_a_command_is_limited_by_default() -> None:
    found = default_limits(DEFAULT_MEMORY, DEFAULT_PIDS, 100)
    assert (found.pids, found.cpu_weight, found.swap, found.cpus) == (4096, 100, None, None)
    assert found.memory is not None
    assert default_limits("none", 0, 1) == ResourceLimits(cpu_weight=1)


@given(st.frozensets(st.sampled_from(CONTROLLERS)), st.none() | st.integers(1, 100))
def test_a_default_needs_no_controller_that_the_host_lacks(controllers: frozenset[str], pids: int | None) -> None:
    limits = ResourceLimits(pids=pids, open_files=64)
    filled = with_defaults(limits, default_limits("1GiB", 4096, 100), controllers)
    assert needed(filled) - needed(limits) <= controllers
    assert filled.open_files == 64
    assert filled.pids == (pids or (4096 if "pids" in controllers else None))
    assert filled.memory == (GIB if "memory" in controllers else None)
