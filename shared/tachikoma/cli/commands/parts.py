"""The parts of the system that have settings; each part's modules are imported when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib import import_module
from typing import Any, cast

from tachikoma.cli.components import COMPONENTS
from tachikoma.config.settings import PartSettings
from tachikoma.diagnosis.findings import Finding
from tachikoma.errors import ConfigurationError

__all__ = ["Part", "diagnosis_of", "settings_class"]


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
}


def settings_class(part: Part) -> type[PartSettings]:
    """Return the class of a part's settings.

    Raises:
        ConfigurationError: the part is not installed; the message names the extra.
    """
    return cast(type[PartSettings], _load(part, _CLASSES[part]))


def diagnosis_of(part: Part) -> Callable[[Any], Iterator[Finding]] | None:
    """Return the function that checks a part's surroundings, by its settings; None if it has none of its own.

    Raises:
        ConfigurationError: the part is not installed; the message names the extra.
    """
    return cast(Callable[[Any], Iterator[Finding]], _load(part, _DIAGNOSES[part])) if part in _DIAGNOSES else None


def _load(part: Part, target: str) -> Any:
    module, _, name = target.partition(":")
    (component,) = (component for component in COMPONENTS if component.name == part.value)
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tachikoma"):
            raise
        raise ConfigurationError(component.advice(error)) from None
