"""Options of the worker's commands, as values instead of long parameter lists."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.pairs import parse_pairs

__all__ = ["CAPABILITY_HELP", "CGROUP_HELP", "CGROUP_NAME_HELP", "WorkerOptions", "with_options"]

CAPABILITY_HELP = "CAP_… that commands run as root may keep where policy grants it. May be repeated."
CGROUP_HELP = "top, own, or the path of a cgroup: where cgroups are created."
CGROUP_NAME_HELP = "Name of the directory that contains the cgroups."

O = TypeVar("O")  # noqa: E741 (options)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """Options of `tachikoma worker`; None for an option that was not given."""

    agent_id: Annotated[str | None, typer.Option(help="Id of the agent that this worker runs.")] = None
    redis_url: Annotated[str | None, typer.Option(help="redis://, rediss://, unix:///path or rediss+sentinel://…")] = (
        None
    )
    identity: Annotated[str | None, typer.Option(help="Folder with the agent's X.509-SVID, or unix:///path.")] = None
    data: Annotated[Path | None, typer.Option(help="Folder of the journal; it must survive restarts.")] = None
    label: Annotated[list[str] | None, typer.Option(help="NAME=value. May be repeated.")] = None
    slots: Annotated[int | None, typer.Option(help="Commands that run at the same time.")] = None
    user: Annotated[str | None, typer.Option(help="User for requests that name none.")] = None
    limits: Annotated[
        str | None, typer.Option(help="enforce, or best-effort to run commands whose limits this host cannot enforce.")
    ] = None
    capability: Annotated[list[str] | None, typer.Option(help=CAPABILITY_HELP)] = None
    local_policy: Annotated[Path | None, typer.Option(help="A policy file of this agent's own; only narrows.")] = None
    cgroup: Annotated[str | None, typer.Option(help=CGROUP_HELP)] = None
    cgroup_name: Annotated[str | None, typer.Option(help=CGROUP_NAME_HELP)] = None
    sweep_up: Annotated[
        bool,
        typer.Option("--sweep", help="Kill the processes and remove the cgroups that a killed worker left, and exit."),
    ] = False
    spawner: Annotated[Path | None, typer.Option(help="Socket of a spawner that is already running.")] = None
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None

    def settings(self) -> dict[str, Any]:
        """Return the options that are settings, by the setting's name.

        Raises:
            ConfigurationError: a label is not NAME=value.
        """
        try:
            labels = parse_pairs(self.label) if self.label else None
        except ValueError as error:
            raise ConfigurationError(f"--label: {error}") from None
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("label", "capability", "sweep_up", "ready_fd")
        }
        return {**given, "labels": labels, "capabilities": tuple(self.capability) if self.capability else None}


def with_options(kind: type[O]) -> Callable[[Callable[[typer.Context, O], None]], Callable[..., None]]:
    """Return a decorator that gives a command one option for each field of a dataclass.

    The decorated function receives the context and one value of the dataclass. Each field is annotated with its
    `typer.Option` and has the option's default.

    Args:
        kind: the dataclass.
    """

    def decorate(command: Callable[[typer.Context, O], None]) -> Callable[..., None]:
        def run(context: typer.Context, **given: Any) -> None:
            command(context, kind(**given))

        hints = get_type_hints(kind, include_extras=True)
        parameters = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        ]
        first = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        # Typer reads name, help and options of a command from these.
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {}
        run.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
        return run

    return decorate
