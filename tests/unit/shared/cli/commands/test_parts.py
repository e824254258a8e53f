"""The parts of the system."""

from __future__ import annotations

import pytest

from tachikoma.cli.commands.parts import Part, diagnosis_of, server_diagnosis_of, settings_class
from tachikoma.cli.components import COMPONENTS
from tachikoma.config.settings import PartSettings
from tachikoma.errors import ConfigurationError


@pytest.mark.parametrize("part", Part)
def test_each_part_is_a_command_and_has_settings(part: Part) -> None:
    assert part.value in {component.name for component in COMPONENTS}
    assert issubclass(settings_class(part), PartSettings)
    assert callable(diagnosis_of(part))
    assert (server_diagnosis_of(part) is not None) == (part is Part.ORCHESTRATOR)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ModuleNotFoundError("No module named 'celery'", name="celery")

    monkeypatch.setattr("tachikoma.cli.commands.parts.import_module", missing)
    with pytest.raises(ConfigurationError, match=r"pip install 'tachikoma-exec\[worker\]'"):
        settings_class(Part.WORKER)
