"""Commands that are imported when they run, in every installation: with all packages, and without those of an extra."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tachikoma.cli.components import COMPONENTS, Component
from tachikoma.errors import ConfigurationError

ROOT = Path(__file__).parents[4]
DISTRIBUTION = "tachikoma-exec"
#: What `pip install tachikoma-exec[…]` may name.
INSTALLATIONS = ["", "orchestrator", "worker", "flower", "all"]

#: Runs command lines in one process in which some packages cannot be imported, and tells how each ended.
SCRIPT = """\
import importlib.abc, json, sys
import contextlib, io

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

blocked, lines = set(json.loads(sys.argv[1])), json.loads(sys.argv[2])
sys.meta_path.insert(0, Missing())
from tachikoma.cli import main
found = []
for line in lines:
    out, err, code = io.StringIO(), io.StringIO(), None
    sys.argv = ["tachikoma", *line]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    found.append({"code": code, "out": out.getvalue(), "err": err.getvalue(), "modules": sorted(sys.modules)})
json.dump(found, sys.stdout)
"""


def normal(name: str) -> str:
    """A distribution's name as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_with(extra: str) -> set[str]:
    """Distributions that an installation brings, with those that they need."""
    found: set[str] = set()
    pending: list[tuple[str, frozenset[str]]] = [(DISTRIBUTION, frozenset({extra} - {""}))]
    seen = set(pending)
    while pending:
        name, extras = pending.pop()
        found.add(normal(name))
        for text in requires(name) or []:
            needed = Requirement(text)
            active = needed.marker is None or any(
                needed.marker.evaluate({"extra": chosen}) for chosen in (extras or {""})
            )
            step = (needed.name, frozenset(needed.extras))
            if active and step not in seen:
                seen.add(step)
                pending.append(step)
    return found


#: Looks at each installed file, so it is asked once.
owners_of_packages = functools.cache(packages_distributions)


def missing_in(extra: str) -> list[str]:
    """Import packages that only other installations have."""
    present, all_of_them = installed_with(extra), installed_with("all")
    return sorted(
        package
        for package, owners in owners_of_packages().items()
        if {normal(owner) for owner in owners} <= all_of_them - present
    )


def run_without(blocked: list[str], *lines: list[str]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(blocked), json.dumps(lines)],
        capture_output=True, check=True, text=True, timeout=120,
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_installations_are_those_of_the_package() -> None:
    offered = set(distribution(DISTRIBUTION).metadata.get_all("Provides-Extra") or [])
    assert set(INSTALLATIONS) - {""} <= offered
    assert {component.extra for component in COMPONENTS} <= set(INSTALLATIONS)
    assert "celery" in missing_in("")
    assert "celery" not in missing_in("worker")
    assert missing_in("all") == []


@pytest.mark.parametrize("extra", INSTALLATIONS)
@pytest.mark.slow
def test_every_installation_lists_all_commands_and_runs_those_it_has(extra: str) -> None:
    lines = [["--help"], *([component.name, "--help"] for component in COMPONENTS)]
    general, *each = run_without(missing_in(extra), *lines)
    assert general["code"] == 0
    assert all(f" {component.name} " in general["out"] for component in COMPONENTS)
    present = {"", extra} | ({"orchestrator"} if extra == "flower" else set())
    for component, done in zip(COMPONENTS, each, strict=True):
        if component.extra in present or extra == "all":
            assert (done["code"], done["err"]) == (0, ""), component.name
            assert "Usage: tachikoma" in done["out"]
        elif done["code"] != 0:
            # One line that says what to install. (A command may also do with the packages that there are.)
            assert done["code"] == 1
            assert re.fullmatch(
                rf"tachikoma: `tachikoma {component.name}` needs the package [a-z_]+, which is not installed; "
                rf"run: pip install 'tachikoma-exec\[{component.extra}\]'\n",
                done["err"],
            ), done["err"]


@pytest.mark.slow
def test_without_extras_no_component_runs() -> None:
    lines = [[component.name, "--help"] for component in COMPONENTS if component.extra]
    assert [done["code"] for done in run_without(missing_in(""), *lines)] == [1] * len(lines)


def test_help_imports_no_component_and_no_celery() -> None:
    (done,) = run_without([], ["--help"])
    loaded = set(done["modules"])
    top = {name.partition(".")[0] for name in loaded}
    assert not top & {"tachikoma_orchestrator", "tachikoma_worker", "celery", "kombu", "redis", "flower", "sentry_sdk"}
    assert not loaded & {component.target.partition(":")[0] for component in COMPONENTS}
    assert not loaded & {"tachikoma.dev.stack", "tachikoma.policy.decide", "tachikoma.schedules.file"}


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
def test_a_component_has_the_help_line_that_is_listed(component: Component) -> None:
    command = component.load()
    assert component.help == command.help.splitlines()[0]


def test_components_are_sorted_by_name() -> None:
    names = [component.name for component in COMPONENTS]
    assert names == sorted(set(names))


def test_a_missing_module_of_ours_is_a_mistake_and_no_missing_extra() -> None:
    component = Component("x", "tachikoma_worker.no_such_module:x", "X.", "worker")
    with pytest.raises(ModuleNotFoundError):
        component.load()


def test_a_package_that_is_missing_inside_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'kombu.utils'", name="kombu.utils")

    monkeypatch.setattr("tachikoma.cli.components.import_module", missing)
    with pytest.raises(ConfigurationError, match=r"needs the package kombu, .* 'tachikoma-exec\[worker\]'"):
        Component("worker", "m:worker", "W.", "worker").load()
    with pytest.raises(ModuleNotFoundError):
        Component("policy", "m:policy", "P.").load()
