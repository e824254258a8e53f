"""Places of an installation, and the units with the paths of this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma.setup.layout import Layout


def test_everything_is_below_the_root(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for path in (layout.settings, layout.units, layout.state("worker"), layout.home):
        assert path.is_relative_to(tmp_path)
    assert Layout().settings == Path("/etc/tachikoma")
    assert Layout().state("worker") == Path("/var/lib/tachikoma-worker")


@pytest.mark.parametrize("name", ["tachikoma-worker.service", "tachikoma-orchestrator.service"])
def test_units_name_the_paths_of_this_installation(name: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    unit = layout.unit(name)
    assert unit.path.is_relative_to(tmp_path)
    assert unit.package.is_relative_to(tmp_path)
    assert "/opt/tachikoma" not in unit.content
    assert f"ExecStart={layout.program()} " in unit.content
    assert f"EnvironmentFile={tmp_path}/etc/tachikoma/" in unit.content


def test_the_homes_of_accounts_are_below_the_root(tmp_path: Path) -> None:
    assert (
        f'u tachikoma-worker - "Tachikoma worker" {tmp_path}/var/lib/tachikoma-worker\n' in Layout(tmp_path).accounts()
    )


def test_a_file_that_this_installation_lacks_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"share/tachikoma/systemd/none\.service"):
        Layout().unit("none.service")


def test_variables_without_a_value_are_left_out() -> None:
    assert Layout.environment(agent_id="web-1", redis_url="").splitlines()[1:] == ["TACHIKOMA_AGENT_ID=web-1"]
