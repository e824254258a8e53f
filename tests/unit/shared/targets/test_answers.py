"""Equal answers are one group, by their digests."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tachikoma.targets.answers import Bodies, difference, grouped
from tachikoma.vocabulary.batches import BatchResult, TargetState

SAME, OTHER = "ab" * 32, "cd" * 32


def result(agent: str, **values: Any) -> BatchResult:
    return BatchResult(
        **{"agent_id": agent, "exec_id": f"e-{agent}", "state": TargetState.SUCCEEDED, "exit_code": 0, **values}
    )


def test_the_largest_group_is_first_and_has_short_names() -> None:
    results = [result(f"web{number}", stdout_sha256=SAME) for number in (10, 2, 3)]
    results += [result("web7", stdout_sha256=OTHER), result("db1", stdout_sha256=SAME, exit_code=1)]
    groups = grouped(results)
    assert [group.names for group in groups] == ["web[2-3,10]", "db1", "web7"]
    assert groups[0].agents == ("web2", "web3", "web10")


def test_targets_without_an_answer_are_grouped_by_their_reason() -> None:
    def missing(agent: str, error: str) -> BatchResult:
        return BatchResult(agent_id=agent, state=TargetState.UNREACHABLE, error=error)

    groups = grouped([missing("a1", "OFFLINE"), missing("a2", "DRAINING"), missing("a3", "OFFLINE")])
    assert [(group.names, group.result.error) for group in groups] == [("a[1,3]", "OFFLINE"), ("a2", "DRAINING")]


def test_an_output_that_came_once_belongs_to_all_equal_answers() -> None:
    bodies = Bodies()
    first = bodies.completed(result("a", stdout_sha256=SAME, stdout=b"x", stderr=b""))
    second = bodies.completed(result("b", stdout_sha256=SAME))
    third = bodies.completed(result("c", stdout_sha256=OTHER))
    assert (first.stdout, second.stdout, third.stdout) == (b"x", b"x", None)


def test_the_memory_for_outputs_is_bounded() -> None:
    bodies = Bodies(limit=10)
    bodies.completed(result("a", stdout_sha256=SAME, stdout=b"x" * 8, stderr=b""))
    bodies.completed(result("b", stdout_sha256=OTHER, stdout=b"y" * 8, stderr=b""))
    assert bodies.completed(result("c", stdout_sha256=SAME)).stdout is None
    assert bodies.completed(result("d", stdout_sha256=OTHER)).stdout == b"y" * 8


def test_a_difference_names_both_groups() -> None:
    first, other = grouped([result("a1", stdout_sha256=SAME), result("a2", stdout_sha256=OTHER)])
    lines = difference(first, other, b"one\ntwo\n", b"one\n\xff\n")
    assert lines[:2] == ["--- a1", "+++ a2"]
    assert "-two" in lines
    assert "+\N{REPLACEMENT CHARACTER}" in lines


def bodied(agent: str, stdout: bytes) -> BatchResult:
    return result(agent, stdout=stdout, stderr=b"", stdout_sha256=hashlib.sha256(stdout).hexdigest())


@pytest.mark.parametrize(
    ("first", "second", "similar"),
    [
        (b"up 3 days, 10:02\n", b"up 15 days,  9:59\n", True),
        (b"web-1: ok\n", b"web-22.example.org: ok\n", True),
        (b"WEB-1 kernel 6.1.0-13\n", b"web-22 kernel 6.1.0-9\n", True),
        (b"nginx is active\n", b"nginx is failed\n", False),
        # A part of a longer name is not the host.
        (b"xweb-1\n", b"yweb-22\n", False),
        (b"one\ntwo\n", b"one\n", False),
        (b"\xff 1\n", b"\xff 2\n", True),
    ],
)
def test_similar_answers_differ_only_in_numbers_and_names(first: bytes, second: bytes, similar: bool) -> None:
    results = [bodied("web-1", first), bodied("web-22", second)]
    assert len(grouped(results)) == 2
    assert len(grouped(results, similar=True)) == (1 if similar else 2)


def test_answers_with_another_exit_code_or_unknown_output_are_not_similar() -> None:
    results = [
        bodied("a", b"1"),
        bodied("b", b"2").model_copy(update={"exit_code": 1}),
        result("c", stdout_sha256=SAME),
    ]
    assert len(grouped(results, similar=True)) == 3
