"""The units in packaging/systemd are right, by systemd's own word."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from patience import PATIENCE_SECONDS
from tachikoma_orchestrator.commands.flower import FlowerSettings
from tachikoma_orchestrator.processes.settings import SubmitterSettings
from tachikoma_worker.settings import WorkerSettings

FOLDER = Path(__file__).parents[3] / "packaging" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
#: What `systemd-analyze security` may say at most, of 10. The spawner's commands may do what policy says, not less.
EXPOSURE = {"tachikoma-worker.service": 2.6, "tachikoma-spawner.service": 8.2, "tachikoma-renewal.service": 2.5}
OTHERS_EXPOSURE = 1.5


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units as on a host on which what they start is installed."""
    folder = tmp_path_factory.mktemp("units")
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8")
        (folder / unit.name).write_text(text.replace("/opt/tachikoma/bin/tachikoma", "/bin/true"))
    return folder


def _analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def analyze(need: Callable[[bool, str], None]) -> None:
    need(shutil.which("systemd-analyze") is not None, "systemd-analyze (Debian: systemd)")


def test_systemd_has_no_complaint(installed: Path) -> None:
    done = _analyze("verify", "--man=no", *(str(installed / unit.name) for unit in UNITS))
    # It tells of an unknown setting, and succeeds.
    assert "tachikoma" not in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout


def test_a_mistake_would_be_told(installed: Path, tmp_path: Path) -> None:
    unit = tmp_path / "tachikoma-worker.service"
    unit.write_text((installed / unit.name).read_text().replace("Restart=always", "Restarts=always"))
    assert "'Restarts'" in _analyze("verify", "--man=no", str(unit)).stdout


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_hardening_stays_as_it_is(unit: Path, installed: Path) -> None:
    threshold = f"--threshold={EXPOSURE.get(unit.name, OTHERS_EXPOSURE) * 10:.0f}"
    done = _analyze("security", "--offline=true", threshold, str(installed / unit.name))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", sorted(FOLDER.iterdir()), ids=lambda file: file.name)
def test_every_setting_that_a_unit_names_exists(file: Path) -> None:
    named = set(re.findall(r"\bTACHIKOMA_([A-Z_]*[A-Z])\b", file.read_text(encoding="utf-8")))
    agents = file.name in ("tachikoma-worker.service", "tachikoma-spawner.service", "worker.env")
    settings: type[BaseSettings] = WorkerSettings if agents else SubmitterSettings
    if "flower" in file.name:
        settings = FlowerSettings
    assert named <= {name.upper() for name in settings.model_fields}
