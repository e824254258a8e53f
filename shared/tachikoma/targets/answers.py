"""The answers of many agents, grouped by equality: by the digests in their receipts, never by their bytes."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tachikoma.targets.nodesets import fold, in_order
from tachikoma.vocabulary.batches import BatchResult

__all__ = ["AnswerGroup", "Answers", "Cut", "cuts", "difference", "grouped"]

#: Bytes of distinct outputs that are kept. An output that no answer had for the longest time goes first.
MAX_BODIES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class AnswerGroup:
    """Agents with the same state, exit code and output."""

    #: In the order of node sets.
    agents: tuple[str, ...]
    #: The result of one of them, with its output if that is kept.
    result: BatchResult

    @property
    def names(self) -> str:
        """The agents as a node set."""
        return fold(self.agents)


@dataclass(frozen=True, slots=True)
class Cut:
    """A stream of which only a part has come."""

    #: `standard output` or `standard error`.
    name: str
    #: Number of bytes that have come.
    shown: int
    #: Number of bytes that the command wrote.
    total: int


def cuts(result: BatchResult) -> list[Cut]:
    """Return the streams of a result of which only a part has come."""
    streams = (
        ("standard output", result.stdout, result.stdout_bytes),
        ("standard error", result.stderr, result.stderr_bytes),
    )
    return [Cut(name, len(data), total) for name, data, total in streams if data is not None and len(data) < total]


class Answers:
    """The results of a batch as they come. Their outputs are kept once each, at most `limit` bytes altogether.

    A watched batch sends each distinct output once, with the first result that has it.
    """

    def __init__(self, *, similar: bool = False, limit: int = MAX_BODIES) -> None:
        """Begin without results.

        Args:
            similar: treat answers as equal that differ only in numbers, times, and the names of their hosts. Only
                answers whose complete output has come are compared in this way, others by their digests.
            limit: bytes of outputs that are kept.
        """
        self._similar = similar
        self._limit = limit
        self._size = 0
        self._kept: dict[tuple[str, str], tuple[bytes, bytes]] = {}
        self._groups: dict[object, list[BatchResult]] = {}
        #: All results, without their outputs.
        self.results: list[BatchResult] = []

    def add(self, result: BatchResult) -> BatchResult:
        """Take a result, and return it with its output, if that came with it or is kept of an earlier equal one."""
        # Without digests nothing says which other results have the same output.
        if result.stdout is not None and any(_digests(result)):
            self._keep(result)
        whole = self._with_output(result)
        bare = result if result.stdout is None else result.model_copy(update={"stdout": None, "stderr": None})
        self.results.append(bare)
        self._groups.setdefault(_key(whole, similar=self._similar), []).append(bare)
        return whole

    def groups(self) -> list[AnswerGroup]:
        """Return the groups of equal answers so far, the largest first, each with an output if one is kept.

        Targets without an answer are grouped by their error.
        """
        ordered = sorted(self._groups.values(), key=lambda members: (-len(members), members[0].agent_id))
        return [
            AnswerGroup(tuple(in_order(one.agent_id for one in members)), self._shown(members)) for members in ordered
        ]

    def _shown(self, members: list[BatchResult]) -> BatchResult:
        # Similar answers have different outputs, of which the first may be dropped already.
        return self._with_output(next((one for one in members if _digests(one) in self._kept), members[0]))

    def _with_output(self, result: BatchResult) -> BatchResult:
        body = self._kept.pop(_digests(result), None)
        if body is None:
            return result
        # It is the latest again, so that the outputs of many hosts are dropped last.
        self._kept[_digests(result)] = body
        return result.model_copy(update={"stdout": body[0], "stderr": body[1]})

    def _keep(self, result: BatchResult) -> None:
        body = (result.stdout or b"", result.stderr or b"")
        if _digests(result) not in self._kept:
            self._kept[_digests(result)] = body
            self._size += sum(map(len, body))
        # One output is never too large: it is at most 64 KiB a stream.
        while self._size > self._limit and len(self._kept) > 1:
            oldest = self._kept.pop(next(iter(self._kept)))
            self._size -= sum(map(len, oldest))


def _digests(result: BatchResult) -> tuple[str, str]:
    return result.stdout_sha256, result.stderr_sha256


def grouped(results: Iterable[BatchResult], *, similar: bool = False) -> list[AnswerGroup]:
    """Return the groups of equal answers, the largest first; the arguments are those of `Answers`."""
    answers = Answers(similar=similar)
    for result in results:
        answers.add(result)
    return answers.groups()


def _key(result: BatchResult, *, similar: bool) -> object:
    """Return the value that equal answers share: small, also of a large output."""
    if not result.exec_id:
        return result.state, result.error
    if not similar or result.stdout is None or cuts(result):
        return result.answer
    masked = [_masked(result.agent_id, data or b"") for data in (result.stdout, result.stderr)]
    return result.state, result.exit_code, *(hashlib.sha256(data).digest() for data in masked)


def _masked(agent: str, data: bytes) -> bytes:
    """Return an output with placeholders for the parts that differ between hosts: the name, numbers and times."""
    # The search for a name that is not there takes longer than all the rest.
    if agent.lower().encode() in data.lower():
        data = re.sub(rb"(?i)(?<![\w.-])" + re.escape(agent.encode()) + rb"(?:\.[\w-]+)*", b"{agent}", data)
    # A number that is longer by a digit is often padded with one space less.
    return re.sub(rb"  +", b" ", re.sub(rb"\d+", b"#", data))


def difference(first: AnswerGroup, other: AnswerGroup) -> list[str]:
    """Return the lines of a unified diff between the outputs of two groups, as far as these have come."""
    before, after = first.result, other.result
    lines = _difference(first.names, before.stdout, other.names, after.stdout)
    return lines + _difference(f"{first.names}: stderr", before.stderr, f"{other.names}: stderr", after.stderr)


def _difference(first: str, before: bytes | None, other: str, after: bytes | None) -> list[str]:
    old, new = ((body or b"").decode(errors="replace").splitlines() for body in (before, after))
    return list(difflib.unified_diff(old, new, first, other, lineterm="", n=1))
