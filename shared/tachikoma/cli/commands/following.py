"""The output, the interrupts and the exit code of an execution that `tachikoma exec` follows."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from tachikoma.cli.commands.interrupts import NOT_RUN, Interrupts, output_failed
from tachikoma.cli.descriptors import OutputFailed
from tachikoma.cli.lookup import similar_agents
from tachikoma.cli.messages import note
from tachikoma.cli.output import INTERRUPTED, chosen_output, report_failure
from tachikoma.errors import AgentUnknown, PermissionDenied, TachikomaError
from tachikoma.vocabulary.messages import Result
from tachikoma.vocabulary.states import ExecState

__all__ = ["NOT_FOUND", "exit_code", "explain_unknown_agent", "follow", "hint_of"]

TIMED_OUT = 124
NOT_FOUND = 127


async def follow(
    showing: Awaitable[Result | None], cancel: Callable[[str], Awaitable[object]], exec_id: str, agent: str,
    command: Sequence[str],
) -> int:  # fmt: skip
    """Wait for an execution whose output is shown, and return the exit code of this program.

    Args:
        showing: writes the output and returns the result.
        cancel: cancels an execution.
        exec_id: the execution.
        agent: its agent.
        command: its argv.

    Raises:
        TachikomaError: it was refused, or its outcome is unknown.
    """
    interrupts = Interrupts(cancel, exec_id)
    try:
        result = await showing
    except OutputFailed as error:
        return await output_failed(error, cancel, exec_id)
    except AgentUnknown as error:
        raise await explain_unknown_agent(error, agent) from None
    except PermissionDenied as error:
        # An allowlist refuses a whole line of a shell before an agent could miss a program of that name.
        if hint := hint_of("exec", agent, command):
            raise PermissionDenied(f"{error}; {hint}", metadata=error.metadata) from None
        raise
    except asyncio.CancelledError:
        await interrupts.delivered()
        report_failure(
            f"left; the execution continues as {exec_id}", reason="LEFT", code="CANCELLED", metadata={"id": exec_id}
        )
        return INTERRUPTED
    finally:
        interrupts.close()
    assert result is not None
    quiet = chosen_output().for_programs
    if not quiet:
        _hint(agent, command, result)
    return exit_code(result, quiet=quiet)


async def explain_unknown_agent(error: AgentUnknown, agent: str) -> AgentUnknown:
    """Return the error with the agents that its name resembles, of those that this caller may see."""
    # Imported here: with it come all models, which few starts need.
    from tachikoma.client.aio import AsyncClient

    with suppress(TachikomaError):
        async with AsyncClient() as client:
            return similar_agents(error, agent, [known.id for known in await client.agents()])
    return error


def _hint(agent: str, command: Sequence[str], result: Result) -> None:
    """Explain a command that was not found since it was written as for a shell, or after an option of exec."""
    if result.exit_code == NOT_FOUND and result.state is ExecState.FAILED and (hint := hint_of("exec", agent, command)):
        note(hint)


def hint_of(verb: str, target: str, command: Sequence[str]) -> str:
    """Return what is wrong with a command that was written as for a shell, or after an option; empty if nothing is.

    Args:
        verb: `exec` or `run`.
        target: the agent, or the targets with the `--` after them.
        command: the argv.
    """
    program = command[0]
    if program.startswith("-"):
        place = "agent" if verb == "exec" else "targets"
        return f"options of {verb} come before the {place}: tachikoma {verb} {program} … {target} COMMAND"
    if len(command) == 1 and any(c.isspace() for c in program):
        line = f"tachikoma {verb} {target}"
        return f"no shell reads the command; write {line} {program}, or {line} sh -c {shlex.quote(program)}"
    return ""


def exit_code(result: Result, *, quiet: bool) -> int:
    """Return the exit code for a result, and print its error unless `quiet`."""
    if result.error and not quiet:
        note(f"{result.agent_id}: {result.error}")
    if result.state in (ExecState.SUCCEEDED, ExecState.FAILED, ExecState.OUT_OF_MEMORY):
        return result.exit_code
    return {ExecState.TIMED_OUT: TIMED_OUT, ExecState.CANCELLED: INTERRUPTED}.get(result.state, NOT_RUN)
