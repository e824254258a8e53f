"""The application `tachikoma`: its options, its commands, and how an error ends it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from tachikoma.cli import descriptors
from tachikoma.cli.components import COMPONENTS, ComponentCommand, name_values
from tachikoma.cli.output import chosen_output, expect_output, report, report_failure
from tachikoma.client import PROFILE_VARIABLE
from tachikoma.config import logs, trace_export
from tachikoma.errors import TachikomaError

__all__ = ["app", "run"]

#: Exit code of a command that failed; `exec` has its own (see `execute`).
FAILED = 1


class _Group(typer.core.TyperGroup):
    """All commands, by name."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for component in COMPONENTS:
            self.add_command(ComponentCommand(component))

    def main(self, args: Sequence[str] | None = None, *others: Any, **extra: Any) -> Any:
        """Run a command line. With `-o json`, wrong usage and a refused confirmation are printed as JSON, too."""
        words = sys.argv[1:] if args is None else list(args)
        name_values(self)
        expect_output(words)
        if not chosen_output().for_programs:
            return super().main(words, *others, **extra)
        try:
            code = super().main(words, *others, **(extra | {"standalone_mode": False}))
        except typer.Abort:
            report_failure("not confirmed", reason="ABORTED", code="ABORTED")
            code = FAILED
        except typer.TyperException as error:
            code = _report_usage(error)
        # Commands return nothing, so a number is the code of a `typer.Exit`.
        sys.exit(code if isinstance(code, int) else 0)


def _report_usage(error: typer.TyperException) -> int:
    """Report a command line that is wrong, and return the exit code."""
    context = getattr(error, "ctx", None)
    command = {"command": str(context.command_path)} if context is not None else {}
    report_failure(error.format_message(), reason="USAGE", code="INVALID_ARGUMENT", metadata=command)
    return error.exit_code


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run commands on many machines: by policy, at most once, with an audit trail.",
)


def _version(requested: bool) -> None:
    if requested:
        # Imported here, since no other command needs it.
        from importlib.metadata import version

        typer.echo(f"tachikoma {version('tachikoma-exec')}")
        raise typer.Exit


@app.callback()
def _options(
    profile: Annotated[
        str | None,
        typer.Option(help="Client profile to use instead of the user's own.", envvar=PROFILE_VARIABLE),
    ] = None,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    if profile:
        os.environ[PROFILE_VARIABLE] = profile


def run() -> NoReturn:
    """Run the command line of this process; a `TachikomaError` becomes one message and exit code 1."""
    descriptors.prepare()
    # Components configure logs themselves.
    logs.show_warnings()
    try:
        try:
            app()
        finally:
            # At exit Python would only complain about output that cannot be written.
            sys.stdout.flush()
            trace_export.finish()
    except TachikomaError as error:
        report(error)
        sys.exit(FAILED)
    except descriptors.OutputFailed as error:
        descriptors.abandon_output()
        if not error.reader_gone:
            report_failure(str(error), reason="OUTPUT_FAILED", code="ABORTED")
        sys.exit(FAILED)
    sys.exit(0)
