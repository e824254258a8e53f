"""Limits of resources and output, and capabilities."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.limits import (
    CAPABILITIES,
    OutputLimit,
    ResourceLimits,
    WhenFull,
    capability_mask,
    memory_limit,
)


def test_capabilities_are_bits_of_the_kernels_numbers() -> None:
    assert len(CAPABILITIES) == len(set(CAPABILITIES)) == 41
    # linux/capability.h
    assert capability_mask(["CAP_CHOWN"]) == 1 << 0
    assert capability_mask(["CAP_NET_BIND_SERVICE", "CAP_KILL"]) == 1 << 10 | 1 << 5
    assert capability_mask(["CAP_CHECKPOINT_RESTORE"]) == 1 << 40
    assert capability_mask(["all"]) == 2**41 - 1
    assert capability_mask([]) == 0


@pytest.mark.parametrize("names", [["chown"], ["CAP_CHOWN", "all"], ["CAP_"], [""]])
def test_other_capabilities_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="is not a capability"):
        capability_mask(names)


@given(st.sets(st.sampled_from(CAPABILITIES)))
def test_each_capability_is_one_bit(names: set[str]) -> None:
    mask = capability_mask(sorted(names))
    assert {name for number, name in enumerate(CAPABILITIES) if mask >> number & 1} == names


@pytest.mark.parametrize(
    "values",
    [
        *(
            {"memory": 1},
            {"memory": -1},
            {"memory": 2**53},
            {"cpus": 0},
            {"cpus": float("inf")},
            {"cpus": float("nan")},
        ),
        *({"pids": 0}, {"cpu_weight": 10_001}, {"io_read": 1}, {"io_write": 4095}, {"swap": -1}, {"cores": 1}),
        *({"open_files": 15}, {"open_files": 2**20 + 1}, {"oom_group": 7}),
    ],
)
def test_limits_have_bounds(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        ResourceLimits(**values)


def test_bytes_are_written_as_people_do() -> None:
    assert ResourceLimits(memory="512MiB").memory == 512 * 2**20
    assert OutputLimit(limit="16MiB").limit == 16 * 2**20


sizes = st.none() | st.integers(2**20, 2**40)
limits = st.builds(
    ResourceLimits,
    memory=sizes,
    swap=sizes,
    cpus=st.none() | st.floats(0.01, 64),
    pids=st.none() | st.integers(1, 100),
    io_read=sizes,
    io_write=sizes,
    cpu_weight=st.none() | st.integers(1, 10_000),
    open_files=st.none() | st.integers(16, 2**20),
    oom_group=st.none() | st.booleans(),
)


@given(limits, limits)
def test_the_lower_of_each_limit_counts(one: ResourceLimits, other: ResourceLimits) -> None:
    lower = one.lowered_by(other)
    assert lower == other.lowered_by(one)
    assert lower.lowered_by(one) == lower
    for name in ResourceLimits.model_fields:
        given_values = {getattr(one, name), getattr(other, name)} - {None}
        # A command that one of them kills as a whole is killed as a whole.
        lowest = max if name == "oom_group" else min
        assert getattr(lower, name) == (lowest(given_values) if given_values else None)
    assert one.lowered_by(None) is one


@given(limits, limits)
def test_a_default_counts_where_there_is_no_limit(one: ResourceLimits, defaults: ResourceLimits) -> None:
    filled = one.filled_by(defaults)
    for name in ResourceLimits.model_fields:
        own = getattr(one, name)
        assert getattr(filled, name) == (getattr(defaults, name) if own is None else own)
    assert filled.filled_by(defaults) == filled


def test_later_fields_are_written_only_if_they_are_set() -> None:
    assert not {"openFiles", "oomGroup"} & set(ResourceLimits(pids=1).model_dump(by_alias=True))
    assert ResourceLimits(open_files=64).model_dump(by_alias=True)["openFiles"] == 64


def test_a_wait_for_a_reader_has_a_limit_unless_policy_wants_none() -> None:
    assert OutputLimit().wait_seconds == 60
    assert OutputLimit(when_full=WhenFull.WAIT).wait_seconds is None
    for when_full in WhenFull:
        limit = OutputLimit.model_validate({"whenFull": when_full, "waitLimit": "5m"})
        assert limit.wait_seconds == 300
    # Workers of 0.2.0 refuse a field that they do not know.
    assert set(OutputLimit().model_dump(by_alias=True)) == {"limit", "whenFull"}
    with pytest.raises(ValidationError):
        OutputLimit.model_validate({"waitLimit": "61m"})


@given(sizes, sizes, st.sampled_from(WhenFull), st.sampled_from(WhenFull))
def test_the_lower_output_limit_counts_with_the_first_behaviour(
    one: int | None, other: int | None, first: WhenFull, second: WhenFull
) -> None:
    lower = OutputLimit(limit=one, when_full=first).lowered_by(OutputLimit(limit=other, when_full=second))
    given_values = {one, other} - {None}
    assert lower == OutputLimit(limit=min(given_values) if given_values else None, when_full=first)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("none", None),
        ("50%", 2 * 2**30),
        ("12.5%", 2**29),
        ("100%", 4 * 2**30),
        ("2GiB", 2 * 2**30),
        ("1048576", 2**20),
    ],
)
def test_memory_is_a_part_of_the_hosts_or_a_number_of_bytes(text: str, found: int | None) -> None:
    assert memory_limit(text, 4 * 2**30) == found


@pytest.mark.parametrize("text", ["", "0%", "101%", "-1%", "%", "much", "1KiB", "nan%"])
def test_other_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (several libraries word it)
        memory_limit(text, 4 * 2**30)
