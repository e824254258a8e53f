"""The parts of the system that have settings; each part's modules are imported when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib import import_module
from typing import Annotated, Any, cast

import typer

from tachikoma.cli.components import COMPONENTS
from tachikoma.config.settings import PartSettings
from tachikoma.diagnosis import installed
from tachikoma.diagnosis.findings import Finding
from tachikoma.diagnosis.installed import Installed
from tachikoma.errors import ConfigurationError

__all__ = ["InstalledOption", "Part", "diagnosis_of", "enter_installed", "server_diagnosis_of", "settings_class"]

InstalledOption = Annotated[
    bool,
    typer.Option(
        "--installed",
        help="Use the settings of the part's unit on this host, also if this shell has some of them.",
    ),
]


class Part(StrEnum):
    """The parts of the system that have settings."""

    ORCHESTRATOR = "orchestrator"
    SUBMITTER = "submitter"
    WORKER = "worker"
    FLOWER = "flower"
    BEAT = "beat"


#: Module and class of each part's settings.
_CLASSES = {
    Part.ORCHESTRATOR: "tachikoma_orchestrator.processes.settings:OrchestratorSettings",
    Part.SUBMITTER: "tachikoma_orchestrator.processes.settings:SubmitterSettings",
    Part.WORKER: "tachikoma_worker.settings:WorkerSettings",
    Part.FLOWER: "tachikoma_orchestrator.commands.flower:FlowerSettings",
    Part.BEAT: "tachikoma_orchestrator.commands.beat:BeatSettings",
}
#: Module and function of the checks of each part's surroundings.
_DIAGNOSES = {
    Part.ORCHESTRATOR: "tachikoma_orchestrator.commands.diagnosis:diagnose_orchestrator",
    Part.SUBMITTER: "tachikoma_orchestrator.commands.diagnosis:diagnose_submitter",
    Part.WORKER: "tachikoma_worker.diagnosis:diagnose",
    Part.FLOWER: "tachikoma_orchestrator.commands.diagnosis:diagnose_flower",
    Part.BEAT: "tachikoma_orchestrator.commands.diagnosis:diagnose_beat",
}
#: The same, of checks of a server that need more rights than the part's user has; root makes them before it becomes
#: that user.
_SERVER_DIAGNOSES = {Part.ORCHESTRATOR: "tachikoma_orchestrator.commands.diagnosis:diagnose_server"}


def settings_class(part: Part) -> type[PartSettings]:
    """Return the class of a part's settings.

    Raises:
        ConfigurationError: the part is not installed; the message names the extra.
    """
    return cast(type[PartSettings], _load(part, _CLASSES[part]))


def enter_installed(part: Part, *, forced: bool) -> Installed | None:
    """Take over the settings of a part's unit, and return the unit; None if those of this process count.

    The unit's settings count if this process has none, or if they are `forced`.

    Raises:
        ConfigurationError: they are forced and the part is not installed on this host, or a file cannot be read.
    """
    if not forced and installed.is_configured(settings_class(part)):
        return None
    found = installed.find(part)
    if found is not None:
        found.enter()
    elif forced:
        raise ConfigurationError(
            f"the {part} is not installed on this host: there is no tachikoma-{part}.service with its settings; "
            "set TACHIKOMA_… as the part has them, and leave --installed out"
        )
    return found


def diagnosis_of(part: Part) -> Callable[[Any], Iterator[Finding]]:
    """Return the function that checks a part's surroundings, by its settings.

    Raises:
        ConfigurationError: the part is not installed; the message names the extra.
    """
    return cast(Callable[[Any], Iterator[Finding]], _load(part, _DIAGNOSES[part]))


def server_diagnosis_of(part: Part) -> Callable[[Any], Iterator[Finding]] | None:
    """Return the function that checks the server of a part, by the part's settings; None if the part has none.

    Raises:
        ConfigurationError: the part is not installed; the message names the extra.
    """
    found = _SERVER_DIAGNOSES.get(part)
    return None if found is None else cast(Callable[[Any], Iterator[Finding]], _load(part, found))


def _load(part: Part, target: str) -> Any:
    module, _, name = target.partition(":")
    (component,) = (component for component in COMPONENTS if component.name == part.value)
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tachikoma"):
            raise
        raise ConfigurationError(component.advice(error)) from None
