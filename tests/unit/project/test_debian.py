"""The Debian packages: each unit and account is in one of them. `tests/container/packages` builds and uses them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "packaging/debian"
UNITS = ROOT / "packaging/systemd"
BUILD = (FOLDER / "build").read_text(encoding="utf-8")
#: Packages with units.
PACKAGES = ("orchestrator", "worker")
#: Units that an upgrade does not restart. Commands end with the spawner, and Redis has no file of these packages.
NOT_RESTARTED = {"spawner", "redis", "renewal"}


def packed(package: str) -> set[str]:
    """Return the units of a package, as the build names them."""
    (call,) = re.findall(rf'^units "\${package}" ((?:.*\\\n)*.*)$', BUILD, re.MULTILINE)
    names = re.findall(r"tachikoma-(?:\{([a-z,]+)\}|([a-z]+))\.(service|timer)", call)
    return {f"{name}.{kind}" for several, single, kind in names for name in (several or single).split(",")}


def accounts(package: str) -> set[str]:
    (pattern,) = re.findall(rf'^units "\${package}" \'?([a-z|]+)', BUILD, re.MULTILINE)
    return set(pattern.split("|"))


def named(package: str, script: str) -> set[str]:
    """Return the units that a maintainer script names."""
    text = (FOLDER / package / script).read_text(encoding="utf-8")
    return set(re.findall(r"tachikoma-([a-z]+\.(?:service|timer))", text))


def test_each_unit_is_in_one_package() -> None:
    files = sorted(path.name.removeprefix("tachikoma-") for path in UNITS.glob("tachikoma-*"))
    assert sorted(unit for package in PACKAGES for unit in packed(package)) == files


def test_each_account_is_made_by_one_package() -> None:
    listed = re.findall(r"^u tachikoma-([a-z]+) ", (UNITS / "sysusers.conf").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(name for package in PACKAGES for name in accounts(package)) == sorted(listed)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_stops_its_units_and_restarts_those_that_lose_nothing(package: str) -> None:
    units = packed(package)
    # The service of the timer runs for a moment.
    assert named(package, "prerm") == units - {"renewal.service"}
    assert named(package, "postinst") == {unit for unit in units if unit.partition(".")[0] not in NOT_RESTARTED}


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*/p*")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_maintainer_script_is_a_script_of_sh_that_stops_at_an_error(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/bin/sh\n")
    assert "\nset -e\n" in text
    subprocess.run(["sh", "-n", str(script)], check=True)


def test_versions_have_the_order_of_debian(need: Callable[[bool, str], None]) -> None:
    need(shutil.which("dpkg") is not None, "dpkg, which compares versions of packages")
    (expression,) = re.findall(r"sed -E '([^']+)' <<<\"\$release\"", BUILD)
    releases = [
        "1.2.0.dev3+g4f1c0de",
        "1.2.0a1",
        "1.2.0rc1",
        "1.2.0rc2.dev1+g0a1b2c3",
        "1.2.0rc2",
        "1.2.0",
        "1.2.1.dev1",
    ]
    done = subprocess.run(
        ["sed", "-E", expression], input="\n".join(releases), capture_output=True, text=True, check=True
    )
    versions = done.stdout.splitlines()
    assert versions[3] == "1.2.0~rc2~~dev1+g0a1b2c3"
    for lower, higher in pairwise(versions):
        subprocess.run(["dpkg", "--compare-versions", lower, "lt", higher], check=True)
