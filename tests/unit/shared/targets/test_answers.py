"""Equal answers are one group, by their digests."""

from __future__ import annotations

from typing import Any

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
