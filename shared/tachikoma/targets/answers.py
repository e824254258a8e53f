"""The answers of many agents, grouped by equality: by the digests in their receipts, never by their bytes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tachikoma.targets.nodesets import fold, in_order
from tachikoma.vocabulary.batches import BatchResult

__all__ = ["AnswerGroup", "Bodies", "difference", "grouped"]

#: Bytes of distinct outputs that are kept for the groups; the oldest go first.
MAX_BODIES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class AnswerGroup:
    """Agents with the same state, exit code and output."""

    #: In the order of node sets.
    agents: tuple[str, ...]
    #: The result of one of them.
    result: BatchResult

    @property
    def names(self) -> str:
        """The agents as a node set."""
        return fold(self.agents)


class Bodies:
    """Outputs by their digests: a watched batch sends each distinct one only once."""

    def __init__(self, limit: int = MAX_BODIES) -> None:
        self._limit = limit
        self._size = 0
        self._kept: dict[tuple[str, str], tuple[bytes, bytes]] = {}

    def completed(self, result: BatchResult) -> BatchResult:
        """Return a result with its output, if this result or an earlier equal one contained the output."""
        key = (result.stdout_sha256, result.stderr_sha256)
        if result.stdout is not None:
            self._keep(key, (result.stdout, result.stderr or b""))
            return result
        if key not in self._kept:
            return result
        stdout, stderr = self._kept[key]
        return result.model_copy(update={"stdout": stdout, "stderr": stderr})

    def _keep(self, key: tuple[str, str], body: tuple[bytes, bytes]) -> None:
        if key in self._kept:
            return
        self._kept[key] = body
        self._size += sum(map(len, body))
        while self._size > self._limit and len(self._kept) > 1:
            oldest = self._kept.pop(next(iter(self._kept)))
            self._size -= sum(map(len, oldest))


def grouped(results: Iterable[BatchResult], *, similar: bool = False) -> list[AnswerGroup]:
    """Return the groups of equal answers, the largest first. Targets without an answer are grouped by their error.

    Args:
        results: the answers.
        similar: treat answers as equal that differ only in numbers, times, and the names of their hosts. Only answers
            whose output has come are compared in this way.
    """
    groups: dict[object, list[BatchResult]] = {}
    for result in results:
        key: object = result.answer if result.exec_id else (result.state, result.error)
        if similar and result.stdout is not None:
            masked = tuple(_masked(result.agent_id, data or b"") for data in (result.stdout, result.stderr))
            key = (result.state, result.exit_code, masked)
        groups.setdefault(key, []).append(result)
    ordered = sorted(groups.values(), key=lambda members: (-len(members), members[0].agent_id))
    return [AnswerGroup(tuple(in_order(one.agent_id for one in members)), members[0]) for members in ordered]


def _masked(agent: str, data: bytes) -> bytes:
    """Return an output with placeholders for the parts that differ between hosts: the name, numbers and times."""
    name = re.sub(rb"(?i)(?<![\w.-])" + re.escape(agent.encode()) + rb"(?:\.[\w-]+)*", b"{agent}", data)
    # A number that is longer by a digit is often padded with one space less.
    return re.sub(rb" +", b" ", re.sub(rb"\d+", b"#", name))


def difference(first: AnswerGroup, other: AnswerGroup, first_body: bytes, other_body: bytes) -> list[str]:
    """Return the lines of a unified diff between the outputs of two groups."""
    before, after = (body.decode(errors="replace").splitlines() for body in (first_body, other_body))
    return list(difflib.unified_diff(before, after, first.names, other.names, lineterm="", n=1))
