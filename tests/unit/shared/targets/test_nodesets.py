"""Node sets: bounded before they are expanded, and folded as ClusterShell does."""

from __future__ import annotations

import time

import pytest
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.errors import InvalidRequest
from tachikoma.targets.expressions import resolve
from tachikoma.targets.nodesets import MAX_NAMES, expand, fold, in_order
from tachikoma.vocabulary.identifiers import ID_PATTERN


def test_ranges_are_expanded_with_their_zeros() -> None:
    assert expand("web[08-11,20]") == ["web08", "web09", "web10", "web11", "web20"]
    assert expand("r[1-2]-n[1-2]") == ["r1-n1", "r1-n2", "r2-n1", "r2-n2"]
    assert expand("n[0-8/4]") == ["n0", "n4", "n8"]


@pytest.mark.parametrize(
    "text",
    [
        "a[0-9999999]",
        "a[0-200]b[0-200]",
        f"a[1-{'9' * 18}]",
        f"a[1-{'9' * 5000}]",
        "a[0-9999999/2]",
        "a[-1-99999999]",
        "a[+1-99999999]",
        "a[1-9_999_999]",
        "a[1-٩٩٩٩٩٩٩٩]",
        "[1-1-1-1-99999999",
    ],
)
def test_a_huge_set_is_refused_before_it_is_made(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(InvalidRequest):
        expand(text)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    "text",
    [
        "n[08-101]",
        "n[1-",
        "n[3-1]",
        "n[a-b]",
        "n[1-3/0]",
        "n]",
        "n[1-1-1-1-1]",
        "n[1-2-3-4]",
        "n[-5]",
        "n[]",
        "n[1,]",
        "n[1[2-3]]",
        "[1-1-1-1-1[1-8]",
        "n[1-3/-1]",
        "n[1-3/1/2]",
        "n[1/2]",
        "n[0x1]",
        "n[1-²]",
        "n[1-3][4-5]",
    ],
)
def test_a_mistake_is_named(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is no node set"):
        expand(text)


def test_groups_of_this_host_are_not_read() -> None:
    assert expand("@all") == ["@all"]
    assert expand("*") == ["*"]


def test_the_largest_set_is_allowed() -> None:
    assert len(expand(f"a[1-{MAX_NAMES}]")) == MAX_NAMES


@given(st.sets(st.from_regex(ID_PATTERN, fullmatch=True), max_size=40))
def test_what_is_folded_can_be_expanded_again(names: set[str]) -> None:
    folded = fold(names)
    assert {str(name) for name in NodeSet(folded, resolver=RESOLVER_NOGROUP)} == names
    assert sorted(in_order(names)) == sorted(names)
    assert set(resolve([folded] if names else [], {})) == names


def test_names_that_are_no_ids_are_left_out() -> None:
    assert fold(["web1", "web2", "x,y", ""]) == "web[1-2]"


def test_numbers_are_in_their_order() -> None:
    assert in_order(["web10", "web2", "db1"]) == ["db1", "web2", "web10"]
