"""Messages about an execution on the descriptors of this process, and notes of this program beside them."""

from __future__ import annotations

from tachikoma.cli.descriptors import write_all
from tachikoma.cli.show import clock, warn
from tachikoma.cli.tables import printable
from tachikoma.vocabulary.messages import Message, OutputKind, Status
from tachikoma.vocabulary.states import ExecState

__all__ = ["BROKEN_PIPE", "note", "note_approval", "notes_of", "write_message"]

#: Exit code when the reader of the output has gone, as a shell reports SIGPIPE.
BROKEN_PIPE = 141


async def write_message(message: Message) -> None:
    """Write a chunk to the descriptor it belongs to, or a note about a gap or an approval to standard error.

    Raises:
        OutputFailed: the descriptor takes no more output.
    """
    match message.kind:
        case OutputKind.STDOUT | OutputKind.SCREEN:
            await write_all(1, message.data)
        case OutputKind.STDERR:
            await write_all(2, message.data)
        case _:
            for text in notes_of(message):
                note(text)


def notes_of(message: Message) -> list[str]:
    """Return what a person is shown of a message without output: a gap, or an approval."""
    if message.kind is OutputKind.GAP:
        return [f"{message.missing_bytes} bytes of output are missing"]
    return _approval_of(message.status) if message.status is not None else []


def note(text: str) -> None:
    """Print a message of this program, apart from the output of the other host's command."""
    warn(f"tachikoma: {printable(text)}")


def note_approval(status: Status) -> None:
    """Print the approval that an execution waits for, or the one that it got."""
    for text in _approval_of(status):
        note(text)


def _approval_of(status: Status) -> list[str]:
    if status.state is ExecState.PENDING_APPROVAL:
        return [
            f"waiting until {clock(status.deadline)} for an approval by {' or '.join(status.approvers)}",
            f"to approve: tachikoma approve {status.id}",
        ]
    return [f"approved by {status.approved_by}: {status.approval_reason}"] if status.approved_by else []
