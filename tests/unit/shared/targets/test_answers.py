"""Equal answers are one group, by their digests."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tachikoma.targets.answers import Answers, Cut, cuts, difference, grouped
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
    answers = Answers()
    first = answers.add(result("a", stdout_sha256=SAME, stdout=b"x", stderr=b""))
    second = answers.add(result("b", stdout_sha256=SAME))
    third = answers.add(result("c", stdout_sha256=OTHER))
    assert (first.stdout, second.stdout, third.stdout) == (b"x", b"x", None)
    assert [one.stdout for one in answers.results] == [None, None, None]
    assert [(group.names, group.result.stdout) for group in answers.groups()] == [("a,b", b"x"), ("c", None)]


def test_an_output_without_digests_belongs_to_its_answer_alone() -> None:
    answers = Answers()
    assert answers.add(result("a", stdout=b"x", stderr=b"")).stdout == b"x"
    assert answers.add(result("b", state=TargetState.LOST)).stdout is None


def test_the_memory_for_outputs_is_bounded() -> None:
    answers = Answers(limit=10)
    answers.add(result("a", stdout_sha256=SAME, stdout=b"x" * 8, stderr=b""))
    answers.add(result("b", stdout_sha256=OTHER, stdout=b"y" * 8, stderr=b""))
    assert answers.add(result("c", stdout_sha256=SAME)).stdout is None
    assert answers.add(result("d", stdout_sha256=OTHER)).stdout == b"y" * 8
    assert [group.result.stdout for group in answers.groups()] == [None, b"y" * 8]


def test_the_output_of_many_hosts_is_dropped_last() -> None:
    answers = Answers(limit=20)
    answers.add(result("a1", stdout_sha256=SAME, stdout=b"x" * 8, stderr=b""))
    for number in range(10):
        answers.add(result(f"b{number}", stdout_sha256=f"{number:064}", stdout=b"y" * 8, stderr=b""))
        assert answers.add(result(f"c{number}", stdout_sha256=SAME)).stdout == b"x" * 8
    assert answers.groups()[0].result.stdout == b"x" * 8


def test_a_group_of_similar_answers_shows_one_that_is_kept() -> None:
    answers = Answers(similar=True, limit=10)
    for number in range(5):
        answers.add(bodied(f"web-{number}", b"%d ok    \n" % number))
    (group,) = answers.groups()
    assert (group.names, group.result.agent_id, group.result.stdout) == ("web-[0-4]", "web-4", b"4 ok    \n")


def test_a_difference_names_both_groups() -> None:
    first, other = grouped([bodied("a1", b"one\ntwo\n"), bodied("a2", b"one\n\xff\n")])
    lines = difference(first, other)
    assert lines[:2] == ["--- a1", "+++ a2"]
    assert "-two" in lines
    assert "+\N{REPLACEMENT CHARACTER}" in lines


def test_a_difference_contains_standard_error() -> None:
    answers = [
        result(agent, stdout=b"same\n", stderr=text, stderr_sha256=agent) for agent, text in (("a1", b""), ("a2", b"x"))
    ]
    assert difference(*grouped(answers)) == ["--- a1: stderr", "+++ a2: stderr", "@@ -0,0 +1 @@", "+x"]


def test_a_part_of_an_output_is_a_cut() -> None:
    assert cuts(result("a", stdout=b"xy", stdout_bytes=2, stderr=b"", stderr_bytes=0)) == []
    assert cuts(result("a", stdout_bytes=2)) == []
    assert cuts(result("a", stdout=b"xy", stdout_bytes=3, stderr=b"", stderr_bytes=7)) == [
        Cut("standard output", 2, 3),
        Cut("standard error", 0, 7),
    ]


def test_cut_outputs_are_compared_by_their_digests_and_never_similar() -> None:
    part = b"1 line\n"
    cut = [
        result(agent, stdout=part, stderr=b"", stdout_bytes=99, stdout_sha256=digest)
        for agent, digest in (("a", SAME), ("b", OTHER), ("c", OTHER))
    ]
    assert [group.names for group in grouped(cut, similar=True)] == ["b,c", "a"]
    whole = [one.model_copy(update={"stdout_bytes": len(part)}) for one in cut]
    assert len(grouped(whole, similar=True)) == 1


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
