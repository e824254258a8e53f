"""Messages about an execution on the descriptors of this process, and notes of this program beside them."""

from __future__ import annotations

from tachikoma.cli.descriptors import write_all
from tachikoma.cli.show import clock, warn
from tachikoma.cli.tables import printable
from tachikoma.vocabulary.messages import Message, OutputKind, Status
from tachikoma.vocabulary.states import ExecState

__all__ = ["BROKEN_PIPE", "note", "note_approval", "write_message"]

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
        case OutputKind.GAP:
            note(f"{message.missing_bytes} bytes of output are missing")
        case OutputKind.STATUS if message.status is not None:
            note_approval(message.status)


def note(text: str) -> None:
    """Print a message of this program, apart from the output of the other host's command."""
    warn(f"tachikoma: {printable(text)}")


def note_approval(status: Status) -> None:
    """Print the approval that an execution waits for, or the one that it got."""
    if status.state is ExecState.PENDING_APPROVAL:
        note(f"waiting until {clock(status.deadline)} for an approval by {' or '.join(status.approvers)}")
        note(f"to approve: tachikoma approve {status.id}")
    elif status.approved_by:
        note(f"approved by {status.approved_by}: {status.approval_reason}")
