"""What is wrong with Sentinels, by their answers."""

from __future__ import annotations

from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from tachikoma.redis.sentinel import Primary
from tachikoma_orchestrator.commands.redis_check.sentinels import Answers, ask_sentinels, sentinel_findings

FIELDS = {
    "ip": "10.0.0.1", "port": "6379", "flags": "master", "num-slaves": "2", "num-other-sentinels": "2", "quorum": "2",
    "down-after-milliseconds": "2000", "failover-timeout": "10000",
}  # fmt: skip


def answers(*changes: dict[str, str] | Exception, listed: bool = False) -> dict[tuple[str, int], Answers]:
    """The answers of three Sentinels; the first ones differ from what is right."""
    given: list[Answers] = [
        change if isinstance(change, Exception) else ({**FIELDS, **change}, listed)
        for change in (*changes, {}, {}, {})[:3]
    ]
    return {(f"s{number}", 26379): answer for number, answer in enumerate(given, 1)}


def found(given: dict[tuple[str, int], Answers]) -> list[str]:
    findings = list(sentinel_findings("tk", given))
    assert all(item.what and item.remedy for item in findings)
    return [f"{item.where}: {item.what}" for item in findings]


def test_all_is_right() -> None:
    assert found(answers()) == []
    assert found(answers(*[{"num-other-sentinels": "4", "quorum": quorum} for quorum in ("3", "4")])) == []


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("down-after-milliseconds", "30000", "calls are UNAVAILABLE for longer"),
        ("down-after-milliseconds", "100", "a short pause of the primary"),
        ("failover-timeout", "180000", "the next one waits 360000 ms"),
        ("num-other-sentinels", "1", "knows 2 Sentinels"),
        ("num-other-sentinels", "0", "knows 1 Sentinels"),
        ("quorum", "1", "a minority"),
        ("quorum", "3", "all must be reachable"),
        ("num-slaves", "0", "knows no replica"),
        ("flags", "master,s_down", "sees the primary as master,s_down"),
    ],
)
def test_each_setting_of_each_sentinel_is_compared(field: str, value: str, what: str) -> None:
    (finding,) = found(answers({field: value}))
    assert finding.startswith("Sentinel s1:26379: ")
    assert what in finding


def test_sentinels_that_disagree_are_found() -> None:
    (finding,) = found(answers({"ip": "10.0.0.2"}))
    assert finding == "Sentinels of tk: name different primaries: 10.0.0.1:6379, 10.0.0.2:6379"


def test_a_sentinel_that_does_not_answer_hides_no_other() -> None:
    assert found(answers(RedisConnectionError("refused"), {"num-slaves": "0"})) == [
        "Sentinel s1:26379: cannot be asked: refused",
        "Sentinel s2:26379: knows no replica, so nothing can replace the primary",
    ]
    assert found(answers(ResponseError("No such master with that name")))[0].startswith(
        "Sentinel s1:26379: does not know the primary"
    )


def test_a_sentinel_that_lets_any_client_do_everything_is_found() -> None:
    assert len(found(answers(listed=True))) == 3


class Asked:
    """A primary whose Sentinels answer as given."""

    name = "tk"

    def __init__(self, *replies: Any) -> None:
        self.replies = replies

    def ask_each(self, *commands: tuple[str, ...]) -> dict[tuple[str, int], Any]:
        assert commands == (("SENTINEL", "MASTER", "tk"), ("ACL", "LIST"))
        return {(f"s{number}", 1): reply for number, reply in enumerate(self.replies, 1)}


def test_what_sentinels_reply_becomes_their_answers() -> None:
    flat = [word for pair in FIELDS.items() for word in pair]
    gone, unknown = RedisConnectionError("gone"), ResponseError("No such master with that name")
    asked = Asked(
        [flat, NoPermissionError("no")], [flat, ["user default on"]], gone, [unknown, NoPermissionError("no")]
    )
    found = ask_sentinels(cast(Primary, asked))
    assert list(found.values()) == [(FIELDS, False), (FIELDS, True), gone, unknown]
