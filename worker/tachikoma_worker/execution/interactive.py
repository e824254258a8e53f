"""The session of an interactive command, as its execution sees it: facts, output window, and the serving task."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from tachikoma.identity.signed_messages import WorkOrder
from tachikoma_worker.confinement.process import Process
from tachikoma_worker.execution.context import Context
from tachikoma_worker.execution.verdict import Stop
from tachikoma_worker.output.records import Facts, SessionFacts
from tachikoma_worker.output.window import OutputWindow
from tachikoma_worker.sessions.session import Session, SessionEnd

__all__ = ["forget_session", "interactive", "session_facts"]


def session_facts(order: WorkOrder) -> SessionFacts | None:
    """Return the facts of an interactive command, or None for another one."""
    if not order.request.interactive:
        return None
    grant = order.grant
    return SessionFacts(
        terminal=order.request.tty, idle_seconds=grant.idle_seconds, detached_seconds=grant.detached_seconds
    )


def interactive(
    context: Context, exec_id: str, process: Process, facts: Facts, stop: Callable[[Stop], None], *, resumed: bool
) -> tuple[OutputWindow, Callable[[], Coroutine[object, object, None]] | None]:
    """Return the output window of a command, and its session, or None for a command that is not interactive.

    Args:
        context: the agent.
        exec_id: the execution.
        process: the command.
        facts: the facts of its start.
        stop: called with the reason when the command is to be ended.
        resumed: whether an earlier worker served the session.
    """
    if facts.session is None:
        return OutputWindow(), None
    window = OutputWindow(terminal=facts.session.terminal)
    mailbox = context.mailbox(exec_id)

    def end(why: SessionEnd) -> None:
        stop(Stop(why.value))

    last_use = context.last_use(exec_id)
    session = Session(context.party, mailbox, process, window, facts.session, last_use, facts.order_sha256, end)
    return window, lambda: session.run(resumed=resumed)


async def forget_session(context: Context, exec_id: str) -> None:
    """Remove the data that only a running session needs: its last use, and its input in Redis."""
    context.last_use(exec_id).remove()
    await context.mailbox(exec_id).remove()
