"""Commands that are imported when they run: those of the orchestrator and the worker, and some of the client.

Their names and help lines are written here, so that `tachikoma --help` imports none of them and works in every
installation. All components are in one wheel; an installation without a component's extra lacks its dependencies only.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer.core
import typer.main

from tachikoma.errors import ConfigurationError

__all__ = ["COMPONENTS", "Component", "ComponentCommand"]

#: Name of the package for pip.
DISTRIBUTION = "tachikoma-exec"


@dataclass(frozen=True, slots=True)
class Component:
    """A command that is known before its module is imported."""

    name: str
    #: Module and name of its `typer.Typer`, as `module:name`.
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
        module, _, name = self.target.partition(":")
        try:
            return typer.main.get_command(getattr(import_module(module), name))
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if not self.extra or package.startswith("tachikoma"):
                raise
            raise ConfigurationError(
                f"`tachikoma {self.name}` needs the package {package}, which is not installed; "
                f"run: pip install '{DISTRIBUTION}[{self.extra}]'"
            ) from None


class ComponentCommand(typer.core.TyperCommand):
    """Stands for a component in the list of commands; running it imports the component."""

    def __init__(self, component: Component) -> None:
        super().__init__(component.name, help=component.help)
        self.component = component

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Make the context of the real command, which then runs or shows its help."""
        command = self.component.load()
        command.name = self.component.name
        return command.make_context(info_name, args, parent=parent, **extra)


_CLIENT = "tachikoma.cli.commands"
_ORCHESTRATOR = "tachikoma_orchestrator.commands"
_WORKER = "tachikoma_worker.command"

#: Every component, by name.
COMPONENTS = (
    Component(
        "beat",
        f"{_ORCHESTRATOR}.beat:beat",
        "Run Celery beat for the schedules; several may run at once.",
        "orchestrator",
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
        "orchestrator",
        f"{_ORCHESTRATOR}.orchestrator:orchestrator",
        "Run the orchestrator: the gRPC server and its background parts.",
        "orchestrator",
    ),
    Component("policy", f"{_CLIENT}.policy:policy", "Check, explain, test and compare policy files."),
    Component(
        "redis",
        f"{_ORCHESTRATOR}.redis:redis",
        "Create the users of a Redis server, and check the server.",
        "orchestrator",
    ),
    Component("schedule", f"{_CLIENT}.schedule:schedule", "Show, pause, resume and run schedules; check their files."),
    Component("spawner", f"{_WORKER}:spawner", "Run a spawner for a worker that is not root.", "worker"),
    Component(
        "submitter",
        f"{_ORCHESTRATOR}.submitter:submitter",
        "Run a submitter, which admits the requests of Celery applications and celery beat.",
        "orchestrator",
    ),
    Component("worker", f"{_WORKER}:worker", "Run an agent's worker, which runs commands on this host.", "worker"),
)
