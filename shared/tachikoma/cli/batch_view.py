"""Batches on the terminal: a line of progress, the lines of each host, and the groups of equal answers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress

import typer

from tachikoma.cli.show import clock, warn
from tachikoma.cli.tables import printable, shortened
from tachikoma.cli.terminal import window_size
from tachikoma.errors import InvalidRequest
from tachikoma.targets.answers import AnswerGroup, cuts, difference
from tachikoma.targets.nodesets import fold
from tachikoma.vocabulary.batches import ApprovalNeed, BatchResult, BatchState, BatchStatus, TargetState
from tachikoma.vocabulary.model import Model

__all__ = [
    "FAILED",
    "NOT_RUN",
    "BatchReport",
    "HostLines",
    "Progress",
    "describe_needs",
    "exit_code",
    "host_line",
    "note_approval",
    "show_groups",
    "show_totals",
    "states_of",
]

#: Exit codes: some targets failed; some did not run, or their end is unknown.
FAILED, NOT_RUN = 1, 125
#: Seconds between two redraws of the line of progress.
REDRAW_SECONDS = 0.25
#: Targets that a line names at most, in characters.
MAX_NAMES = 200
#: Clears the line (ECMA-48, EL).
CLEAR = "\r\x1b[2K"

_ENDED_WELL = TargetState.SUCCEEDED
_RAN = frozenset({TargetState.FAILED, TargetState.TIMED_OUT, TargetState.OUT_OF_MEMORY})
_OPEN = frozenset({TargetState.PENDING, TargetState.RUNNING})


class BatchReport(Model):
    """A batch, and the results of its targets."""

    batch: BatchStatus
    #: The results of the targets that have ended.
    results: tuple[BatchResult, ...]


def exit_code(results: Iterable[BatchResult]) -> int:
    """Return the exit code for the ends of all targets: 0, 1 if some failed, 125 if some have no known end."""
    states = {result.state for result in results}
    if states - _RAN - {_ENDED_WELL}:
        return NOT_RUN
    return FAILED if states & _RAN else 0


def states_of(text: str, option: str) -> tuple[TargetState, ...]:
    """Return the states that an option names, separated by commas; `failed` is all but success, which none stand for.

    Raises:
        InvalidRequest: one is no state.
    """
    names = [name.strip() for name in text.split(",")]
    try:
        # Also with `failed`, so that a wrong name beside it is reported.
        states = tuple(TargetState(name.upper().replace("-", "_")) for name in names)
        if "failed" in names:
            return tuple(TargetState) if TargetState.SUCCEEDED in states else ()
        return states
    except ValueError:
        known = ", ".join(state.lower() for state in TargetState)
        raise InvalidRequest(f"{option}: {text[:80]!r} is no state; write failed, or some of {known}") from None


def host_line(line: str) -> str:
    """Return a line of output as it follows its host: with spaces for tabs, and no control characters."""
    return printable(line.removesuffix("\r").expandtabs())


def words(state: TargetState) -> str:
    """Return a state as people read it: `not started`."""
    return state.lower().replace("_", " ")


class Progress:
    """One line with the progress of a batch: redrawn in place on a terminal, else a line for each change.

    A change that comes too soon after the last redraw is drawn by a timer, so that the line is never stale.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, quiet: bool) -> None:
        """Show nothing yet.

        Args:
            loop: clock and timers.
            quiet: True to never show anything.
        """
        self._loop = loop
        self._terminal = sys.stderr.isatty()
        self._quiet = quiet
        self._drawn_at = float("-inf")
        self._visible = False
        self._text = ""
        self._timer: asyncio.TimerHandle | None = None

    def update(self, status: BatchStatus) -> None:
        """Show a status, at once or when the next redraw is due."""
        ended = sum(number for state, number in status.totals.items() if state not in _OPEN)
        counts = ", ".join(f"{number} {words(state)}" for state, number in status.totals.items())
        text = f"{ended}/{status.total}: {counts}"
        if self._quiet or text == self._text:
            return
        self._text = text
        if self._terminal:
            self._draw_when_due()
        else:
            warn(text)

    def clear(self) -> None:
        """Remove the line, so that other lines can be printed. It is drawn again when the next redraw is due."""
        if self._visible:
            self._visible = False
            _to_terminal(CLEAR)
            self._draw_when_due()

    def close(self) -> None:
        """Remove the line for good."""
        self.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _draw_when_due(self) -> None:
        if self._timer is None:
            delay = self._drawn_at + REDRAW_SECONDS - self._loop.time()
            self._timer = self._loop.call_later(max(0.0, delay), self._draw)

    def _draw(self) -> None:
        self._timer = None
        # A line that folds could not be removed again.
        _to_terminal(CLEAR + shortened(self._text, window_size(2).columns - 1))
        self._drawn_at = self._loop.time()
        self._visible = True


def _to_terminal(text: str) -> None:
    # As with `warn`, a closed terminal changes no outcome.
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def describe_needs(needs: Iterable[ApprovalNeed]) -> Iterable[str]:
    """Yield in words which policies require an approval of a batch, and by which callers."""
    for need in needs:
        number = f"{need.targets} targets, more than {need.above}" if need.above else f"{need.targets} targets"
        yield f"policy {need.policy} requires an approval of {number}, by {' or '.join(need.approvers)}"


def note_approval(status: BatchStatus) -> None:
    """Print the approval that a batch waits for."""
    if status.state is BatchState.PENDING_APPROVAL:
        for need in describe_needs(status.needs):
            warn(printable(need))
        warn(f"waiting until {clock(status.deadline)}; to approve: tachikoma batches approve {status.id}")


class HostLines:
    """The output of each host with its name in front of every line."""

    def __init__(self, width: int = 0) -> None:
        self._width = width
        self._coloured = sys.stdout.isatty()

    def show(self, result: BatchResult) -> None:
        """Print the output of one target to standard output and error, and why it did not succeed."""
        self._width = max(self._width, len(result.agent_id))
        for data, error in ((result.stdout, False), (result.stderr, True)):
            for line in (data or b"").decode(errors="replace").splitlines():
                typer.echo(f"{self._prefix(result)}  {host_line(line)}", err=error)
        for note in _notes(result):
            warn(f"{self._prefix(result)}  {note}")
        if result.state is not _ENDED_WELL:
            typer.echo(f"{self._prefix(result)}  {describe(result)}", err=True)

    def _prefix(self, result: BatchResult) -> str:
        name = f"{result.agent_id:<{self._width}}"
        if not self._coloured:
            return name
        return typer.style(name, fg="green" if result.state is _ENDED_WELL else "red")


def describe(result: BatchResult) -> str:
    """Return in words how a target ended."""
    text = words(result.state)
    if result.state is TargetState.FAILED and result.exit_code > 0:
        text += f" with exit code {result.exit_code}"
    return f"{text}: {printable(result.error)}" if result.error else text


def _notes(result: BatchResult) -> Iterable[str]:
    """Yield in words which output of a target is not here, and the command that prints all of it."""
    if result.stdout is None:
        if result.stdout_bytes + result.stderr_bytes:
            yield f"its output is not available; see `tachikoma logs {result.exec_id}`"
        return
    for cut in cuts(result):
        yield f"{cut.shown} of {cut.total} bytes of {cut.name}; all of them: `tachikoma logs {result.exec_id}`"


def show_groups(groups: Sequence[AnswerGroup], *, bodies: bool, diff: bool = False) -> None:
    """Print the groups of equal answers, the largest first.

    Args:
        groups: all groups.
        bodies: print the output of each group.
        diff: print it as its difference from the largest group.
    """
    total = sum(len(group.agents) for group in groups)
    for place, group in enumerate(groups):
        percent = round(100 * len(group.agents) / total)
        typer.echo(f"--- {len(group.agents)} ({percent} %) {_short(group.names)}: {describe(group.result)}")
        if diff and place:
            _difference(groups[0], group)
        elif bodies or diff:
            _body(group)


def _difference(largest: AnswerGroup, group: AnswerGroup) -> None:
    if largest.result.stdout is None and group.result.stdout is not None:
        _notices(["no difference, since the output of the largest group is not available:"])
    if largest.result.stdout is None or group.result.stdout is None:
        _body(group)
        return
    _notices(_notes(group.result))
    lines = difference(largest, group)
    if cuts(largest.result) or cuts(group.result):
        what = "only the parts that are here are compared"
        _notices([what if lines else f"{what}: these do not differ"])
    _lines(lines)


def _body(group: AnswerGroup) -> None:
    _notices(_notes(group.result))
    for data in (group.result.stdout, group.result.stderr):
        _lines((data or b"").decode(errors="replace").splitlines())


def _notices(notes: Iterable[str]) -> None:
    """Print notices between the groups, where they belong, as lines like those of their heads."""
    for note in notes:
        typer.echo(f"--- {note}")


def _lines(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(host_line(line))


def show_totals(status: BatchStatus, results: Sequence[BatchResult]) -> None:
    """Print the number of targets in each state, with the names of those that did not succeed, and why it stopped."""
    for state in status.totals:
        if state is _ENDED_WELL:
            continue
        names = fold(result.agent_id for result in results if result.state is state)
        warn(f"{status.totals[state]} {words(state)}: {_short(names)}")
    succeeded = status.totals.get(_ENDED_WELL, 0)
    outcome = f"; {words_of_state(status)}" if status.reason else ""
    warn(f"{status.id}: {succeeded} of {status.total} targets succeeded{outcome}")


def words_of_state(status: BatchStatus) -> str:
    """Return the state of a batch and its reason, in words."""
    return f"{status.state.lower()}: {printable(status.reason)}"


def _short(names: str) -> str:
    return names if len(names) <= MAX_NAMES else names[: MAX_NAMES - 1] + "…"
