"""What is installed, and what an import brings with it."""

from __future__ import annotations

import configparser
import inspect
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path, PurePath
from typing import Any, get_args, get_origin, get_type_hints

import pytest

import tachikoma

ROOT = Path(__file__).parents[3]
#: Folder of each import package.
FOLDERS = {"tachikoma": "shared", "tachikoma_orchestrator": "orchestrator", "tachikoma_worker": "worker"}
GENERATED = {"__pycache__", "tachikoma_exec.egg-info"}


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def files() -> list[tuple[str, Path]]:
    """Every file in the import packages, with the package it is in."""
    found = []
    for top, folder in FOLDERS.items():
        for path in sorted((ROOT / folder / top).rglob("*")):
            if path.is_file() and not GENERATED & set(path.parts):
                found.append((".".join(path.parent.relative_to(ROOT / folder).parts), path))
    return found


def test_every_package_is_listed_and_every_listed_one_exists(setup_cfg: configparser.ConfigParser) -> None:
    listed = lines(setup_cfg["options"]["packages"])
    existing = {package for package, path in files() if path.name == "__init__.py"}
    assert Counter(listed) == Counter(existing)


def test_every_module_is_in_a_package(setup_cfg: configparser.ConfigParser) -> None:
    listed = lines(setup_cfg["options"]["packages"])
    assert {package for package, path in files() if path.suffix == ".py"} <= set(listed)


def test_every_other_file_is_listed_as_package_data(setup_cfg: configparser.ConfigParser) -> None:
    data = {
        package: [pattern.strip() for pattern in patterns.split(",")]
        for package, patterns in setup_cfg["options.package_data"].items()
    }
    left_out = [
        str(path.relative_to(ROOT))
        for package, path in files()
        # The spawner is built beside the modules, and packaged by setup.py.
        if path.suffix != ".py"
        and path.name != "tachikoma-spawner"
        and not any(PurePath(path.name).match(pattern) for pattern in data.get(package, []))
    ]
    assert not left_out


@pytest.mark.parametrize("package", FOLDERS)
def test_every_import_package_says_that_it_is_typed(package: str) -> None:
    assert (ROOT / FOLDERS[package] / package / "py.typed").is_file()


@pytest.mark.parametrize("name", tachikoma.__all__)
def test_a_public_name_is_there(name: str) -> None:
    assert getattr(tachikoma, name) is not None


def test_no_public_name_is_listed_twice() -> None:
    assert [name for name, count in Counter(tachikoma.__all__).items() if count > 1] == []


def classes_of(annotation: Any) -> Iterator[type]:
    """The classes that an annotation names."""
    for part in get_args(annotation):
        yield from itertools.chain.from_iterable(map(classes_of, part)) if isinstance(part, list) else classes_of(part)
    kind = get_origin(annotation) or annotation
    if inspect.isclass(kind):
        yield kind


def named_by(public: type) -> Iterator[type]:
    """The classes that fields and methods of a public class name."""
    for field in getattr(public, "model_fields", {}).values():
        yield from classes_of(field.annotation)
    for name, member in inspect.getmembers(public):
        method = member.fget if isinstance(member, property) else member
        # Sessions are made by clients, and pydantic's own methods name nothing of ours.
        internal = name.startswith("_") and (
            name != "__init__" or public in (tachikoma.AsyncSession, tachikoma.Session)
        )
        if not internal and inspect.isfunction(method) and method.__module__.startswith("tachikoma"):
            hints = get_type_hints(method, localns={name: getattr(tachikoma, name) for name in tachikoma.__all__})
            yield from itertools.chain.from_iterable(map(classes_of, hints.values()))


def test_every_type_that_public_names_name_is_public() -> None:
    public = {kind for name in tachikoma.__all__ if inspect.isclass(kind := getattr(tachikoma, name))}
    named = set(itertools.chain.from_iterable(map(named_by, public)))
    assert tachikoma.ResourceLimits in named
    hidden = {kind.__qualname__ for kind in named - public if kind.__module__.startswith("tachikoma")}
    assert hidden == set()


@pytest.mark.parametrize("module", ["tachikoma", "tachikoma.cli", "tachikoma.dev.stack"])
@pytest.mark.slow
def test_a_client_needs_neither_celery_nor_redis(module: str) -> None:
    script = f"import {module}, json, sys; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    imported = set(json.loads(done.stdout))
    assert module.split(".")[0] in imported
    assert not imported & {"celery", "kombu", "redis", "sentry_sdk", "tachikoma_orchestrator", "tachikoma_worker"}


def module_of(path: Path) -> str:
    """The name a file of ours is imported by."""
    folder = next(ROOT / folder for folder in FOLDERS.values() if ROOT / folder in path.parents)
    return ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize(
    ("package", "other"),
    [("tachikoma_orchestrator", "tachikoma_worker"), ("tachikoma_worker", "tachikoma_orchestrator")],
)
@pytest.mark.slow
def test_no_component_imports_the_other(package: str, other: str) -> None:
    modules = [module_of(path) for name, path in files() if name.startswith(package) and path.suffix == ".py"]
    assert package in modules
    script = f"import {', '.join(modules)}, sys; sys.exit({other!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_every_entry_point_leads_somewhere(setup_cfg: configparser.ConfigParser) -> None:
    promised = {line.partition("=")[0].strip() for line in lines(setup_cfg["options.entry_points"]["console_scripts"])}
    scripts = entry_points(group="console_scripts")
    installed = {point.name: point for point in scripts if point.value.startswith("tachikoma")}
    assert set(installed) == promised
    for point in installed.values():
        assert point.load() is not None
