"""Every command of `tachikoma`, each imported when it runs.

Names and help lines are written here. So `tachikoma --help` imports no command, and works in every installation. All
components are in one wheel; an installation without a component's extra lacks its dependencies only.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import typer.core
import typer.main

from tachikoma.cli.plain_values import keep_plain_values
from tachikoma.config import trace_export
from tachikoma.errors import ConfigurationError

__all__ = ["COMPONENTS", "LASTING", "Component", "ComponentCommand", "name_values"]

#: Options that show the help of a command.
HELP_OPTIONS = frozenset({"-h", "--help"})
#: Largest width of the choices of an option in its help; an option with longer ones shows its name instead.
CHOICES_WIDTH = 22
#: Name of the package for pip.
DISTRIBUTION = "tachikoma-exec"


@dataclass(frozen=True, slots=True)
class Component:
    """A command that is known before its module is imported."""

    name: str
    #: Module and name of its `typer.Typer`, as `module:name`; or a module whose `add_to` adds it.
    target: str
    #: First line of its help.
    help: str
    #: The extra that installs its dependencies; empty if it needs none.
    extra: str = ""

    def load(self) -> Any:
        """Import the command.

        Raises:
            ConfigurationError: a package that it needs is not installed; the message names the extra.
        """
        try:
            return self._command()
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if not self.extra or package.startswith("tachikoma"):
                raise
            raise ConfigurationError(self.advice(error)) from None

    def advice(self, error: ModuleNotFoundError) -> str:
        """Return what to do about a package that is not installed."""
        package = (error.name or "").partition(".")[0]
        return (
            f"`tachikoma {self.name}` needs the package {package}, which is not installed; "
            f"run: pip install '{DISTRIBUTION}[{self.extra}]'"
        )

    def _command(self) -> Any:
        path, _, name = self.target.partition(":")
        if self.extra:
            # Its loggers print to standard output until this is done; it sets the level of its settings itself.
            import_module("tachikoma.config.logs").configure("warning")
        module = import_module(path)
        # Of a group of their own: a command has no options of the whole application.
        commands = typer.Typer()
        if name:
            commands.add_typer(getattr(module, name), name=self.name)
        else:
            module.add_to(commands)
        command = typer.main.get_group(commands).commands[self.name]
        for found in _with_below(command):
            name_values(found)
        return command


def name_values(command: Any) -> None:
    """Show names or choices for values in the help of a command, instead of types of Python.

    A flag shows nothing. Typer would show `<bool>`, `<list[str]>`, or a list of states that is wider than the screen.
    """
    context = command.context_class(command, help_option_names=sorted(HELP_OPTIONS))
    for found in command.get_params(context):
        keep_plain_values(found)
        if found.param_type_name == "argument":
            found.metavar = found.metavar or found.name.upper()
            found.display_type_rich = _no_type
        elif found.metavar is None:
            found.metavar = "" if found.is_flag or found.count else _value_name(found, context)


def _with_below(command: Any) -> Iterator[Any]:
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from _with_below(below)


def _no_type(ctx: Any) -> None:
    """Show no type; the name of an argument is beside it."""


def _value_name(found: Any, context: Any) -> str:
    """Return the choices of an option; its name if it has no choices, or too many."""
    descriptor = found.type_descriptor
    if descriptor.is_choice and not descriptor.is_list:
        choices = str(found.display_type(context)).strip("<>")
        if len(choices) <= CHOICES_WIDTH:
            return choices
    return str(found.name).upper()


class ComponentCommand(typer.core.TyperCommand):
    """The entry of a component in the list of commands; running it imports the component."""

    #: Name of the component that was run last; empty if none was.
    last: ClassVar[str] = ""

    def __init__(self, component: Component) -> None:
        super().__init__(component.name, help=component.help)
        self.component = component

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Make the context of the real command, which then runs or shows its help."""
        if self.component.name not in LASTING:
            # gRPC reads it when it is loaded. Its lines about failed handshakes say less than our own messages.
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")
            trace_export.configure_client(f"tachikoma {self.component.name}")
        command = self.component.load()
        command.name = self.component.name
        # A group shows its help also without the option.
        if hasattr(command, "commands") or HELP_OPTIONS.intersection(args):
            # Imported here: most starts show no help.
            from tachikoma.cli.commands import examples

            examples.complete(command, command.name)
        ComponentCommand.last = command.name
        context = command.make_context(info_name, args, parent=parent, **extra)
        # All modules are there now (see `tachikoma.cli.program`). They stay, so the collector need not look at them.
        if not gc.isenabled():
            gc.freeze()
            gc.enable()
        return context


_CLIENT = "tachikoma.cli.commands"
_ORCHESTRATOR = "tachikoma_orchestrator.commands"
_WORKER = "tachikoma_worker.command"

#: Every command, by name.
COMPONENTS = (
    Component(
        "agents", f"{_CLIENT}.agents", "List the agents and their state; drain, resume, label, enroll and revoke them."
    ),
    Component(
        "approvals",
        f"{_CLIENT}.approvals",
        "List the waiting executions that you may approve or have requested, or show one in full.",
    ),
    Component("approve", f"{_CLIENT}.approvals", "Show everything that a waiting execution would run, and approve it."),
    Component("audit", f"{_CLIENT}.audit", "Read, verify and export the audit trail."),
    Component("batches", f"{_CLIENT}.batches:batches", "List batches, show one, approve, cancel and retry them."),
    Component(
        "beat",
        f"{_ORCHESTRATOR}.beat:beat",
        "Run Celery beat for the schedules; several may run at once.",
        "orchestrator",
    ),
    Component(
        "cancel",
        f"{_CLIENT}.executions",
        "Cancel executions and print what happened to each. The exit code is 1 if any could not be cancelled.",
    ),
    Component(
        "config",
        f"{_CLIENT}.configuration:config",
        "Show and check the settings of a part, as it would start with them.",
    ),
    Component("demo", f"{_CLIENT}.demo", "Start the whole system, run real work on it, show what happened, and stop."),
    Component("dev", f"{_CLIENT}.dev", "Run the whole system on this machine, in the foreground; Ctrl-C stops it."),
    Component(
        "doctor",
        f"{_CLIENT}.doctor",
        "Find problems of a part on this host, and print remedies.",
    ),
    Component(
        "exec", f"{_CLIENT}.execute", "Run a command on an agent, stream its output, and exit with its exit code."
    ),
    Component(
        "flower",
        f"{_ORCHESTRATOR}.flower:flower",
        "Run Flower, the web pages that show executions and agents; it changes nothing.",
        "flower",
    ),
    Component(
        "identity",
        f"{_CLIENT}.identity:identity",
        "Show your identity, whom you trust, and what rotating the root would break.",
    ),
    Component(
        "login",
        f"{_CLIENT}.users",
        "Create an identity and a client profile with a token. Every later command renews the identity when it is due.",
    ),
    Component("logs", f"{_CLIENT}.logs", "Show the output of an execution, also of one that has ended."),
    Component("manual", f"{_CLIENT}.manual", "Write a manual page for each command into a folder, for man(1)."),
    Component(
        "orchestrator",
        f"{_ORCHESTRATOR}.orchestrator:orchestrator",
        "Run the orchestrator: the gRPC server and its background parts.",
        "orchestrator",
    ),
    Component("play", f"{_CLIENT}.recordings", "Play a recording of an interactive execution at this terminal."),
    Component("policy", f"{_CLIENT}.policy:policy", "Check, explain, test and compare policy files."),
    Component("ps", f"{_CLIENT}.executions", "List executions, newest first."),
    Component(
        "recordings",
        f"{_CLIENT}.recordings:recordings",
        "List, search and export recordings of interactive executions.",
    ),
    Component(
        "redis",
        f"{_ORCHESTRATOR}.redis:redis",
        "Create the users of a Redis server, check the server, back it up and restore it.",
        "orchestrator",
    ),
    Component(
        "reject",
        f"{_CLIENT}.approvals",
        "Reject a waiting execution; it never runs, and its requester sees the reason.",
    ),
    Component("run", f"{_CLIENT}.run", "Run a command on many agents, and show their answers."),
    Component("schedule", f"{_CLIENT}.schedule:schedule", "Show, pause, resume and run schedules; check their files."),
    Component("sessions", f"{_CLIENT}.sessions:sessions", "List interactive executions, attach to them and end them."),
    Component(
        "setup",
        f"{_ORCHESTRATOR}.setup.command:setup",
        "Set up an orchestrator on this host, with its Redis; safe to repeat.",
        "orchestrator",
    ),
    Component("shell", f"{_CLIENT}.execute", "Run a login shell on an agent; the same as `exec -it AGENT -- bash -l`."),
    Component("spawner", f"{_WORKER}:spawner", "Run a spawner for a worker that is not root.", "worker"),
    Component("status", f"{_CLIENT}.executions", "Show the state of an execution, and the history of its states."),
    Component(
        "submitter",
        f"{_ORCHESTRATOR}.submitter:submitter",
        "Run a submitter, which admits the requests of Celery applications and celery beat.",
        "orchestrator",
    ),
    Component("users", f"{_CLIENT}.users", "List people, create login tokens for them, and revoke them."),
    Component(
        "version",
        f"{_CLIENT}.version",
        "Show the versions of this installation, for bug reports.",
    ),
    Component("worker", f"{_WORKER}:worker", "Run an agent's worker, which runs commands on this host.", "worker"),
)

#: Commands that run services or start processes, and end as other Python programs do.
LASTING = frozenset({"demo", "dev", *(component.name for component in COMPONENTS if component.extra)})
