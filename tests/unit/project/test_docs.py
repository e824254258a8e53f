"""What the references say is there, and what is there they say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from textwrap import indent

import pytest

import tachikoma
from tachikoma.exec.v1 import remote_execution_pb2
from tachikoma.policy.decide import PolicySet
from tachikoma.policy.tools.expectations import load_expectations
from tachikoma.schedules.file import Schedule, ScheduleSet
from tachikoma.vocabulary.policies import ExecPolicy
from tachikoma_orchestrator.schedules.sources import open_schedules

ROOT = Path(__file__).parents[3]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "ARCHITECTURE.md"]
#: Every document of the project.
WRITTEN = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
#: Folder of each import package.
PACKAGES = {
    "shared": ROOT / "shared/tachikoma",
    "orchestrator": ROOT / "orchestrator/tachikoma_orchestrator",
    "worker": ROOT / "worker/tachikoma_worker",
}
#: Names in documents that look like paths of the repository.
NOT_OURS = {"flowerconfig.py": "Flower's own", "federated/": "below an identity's folder", "dist/": "made by a release"}
#: Ends of file names.
SUFFIXES = {"c", "md", "py", "lua", "json", "pem", "yaml", "conf", "acl"}
#: Names in documents that look like log events: queues and Redis users.
NOT_EVENTS = {"orch.submit", "orch.batch", "app.reports"}
#: Folders at the top of the repository, with which a path in a document may begin.
TOP = {path.name for path in ROOT.iterdir() if path.is_dir()}


def place(page: Path) -> str:
    """Return a page's path in the repository."""
    return str(page.relative_to(ROOT))


def _page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_generated_tables_are_current() -> None:
    """`make docs` rewrites them."""
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    assert set(tables["TABLES"]) == {"audit.md", "metrics.md", "redis.md"}
    for name in tables["TABLES"]:
        page = _page(name)
        assert page.count(tables["begin"](name)) == page.count(tables["END"]) == 1
        assert tables["with_table"](name, page) == page


def test_the_reference_of_settings_is_current() -> None:
    """`make docs` rewrites it."""
    reference = runpy.run_path(str(ROOT / "docs" / "settings_page.py"))
    assert _page("settings.md") == reference["settings_page"]()


@pytest.mark.slow
def test_the_page_of_json_documents_is_current() -> None:
    """`make docs` writes it."""
    generated = runpy.run_path(str(ROOT / "docs" / "json_page.py"))
    assert _page("json.md") == generated["json_page"]()
    assert _page("json.schema.json") == generated["schema_text"]()


@pytest.mark.parametrize("page", ["cli", "grpc", "python"])
@pytest.mark.slow
def test_the_reference_is_current(page: str) -> None:
    """`make docs` writes it."""
    generated = runpy.run_path(str(ROOT / "docs" / f"{page}_page.py"))
    assert _page(f"{page}.md") == generated[f"{page}_page"](), "run `make docs`"


def test_each_program_that_uses_the_library_is_checked_as_python() -> None:
    """`tools/check_snippets.py` checks blocks of this kind only."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")]
    blocks = [
        (page.name, *found)
        for page in pages
        for found in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    ]
    using = [block for block in blocks if re.search(r"^(from|import) tachikoma\b", block[2], re.MULTILINE)]
    assert len(using) >= 5
    assert [block for block in using if block[1] != "python"] == []


def test_the_reference_of_grpc_has_every_call_and_message() -> None:
    listed = set(re.findall(r"^## (\w+)$|^- \*\*`([A-Z]\w+)`\*\*", _page("grpc.md"), re.MULTILINE))
    names = {name for pair in listed for name in pair}
    descriptor = remote_execution_pb2.DESCRIPTOR
    calls = {method.name for service in descriptor.services_by_name.values() for method in service.methods}
    assert calls <= names
    assert set(descriptor.message_types_by_name) | set(descriptor.enum_types_by_name) <= names


def test_the_reference_of_python_has_every_public_name() -> None:
    assert set(re.findall(r"^### (\w+)$", _page("python.md"), re.MULTILINE)) == set(tachikoma.__all__)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a <b> and `<c>`", "a \\<b> and `<c>`"),
        ("*one*  [two]\n  three", "\\*one\\* \\[two\\] three"),
        ("a ` alone", "a \\` alone"),
    ],
)
def test_generated_text_has_no_markup_but_code(text: str, shown: str) -> None:
    assert runpy.run_path(str(ROOT / "docs" / "markdown_text.py"))["plain"](text) == shown


def test_a_wrapped_line_begins_no_list() -> None:
    wrapped = runpy.run_path(str(ROOT / "docs" / "markdown_text.py"))["wrapped"]
    assert wrapped("a" * 118 + " - b").splitlines() == ["a" * 118, "\\- b"]


def test_every_field_of_a_policy_is_explained() -> None:
    listed = set()
    for line in _page("policy.md").split("## Fields")[1].split("## Patterns")[0].splitlines():
        if line.startswith("| `"):
            listed |= set(re.findall(r"`(\w+)`", line.split("|")[1]))
    assert listed == {info.alias or name for name, info in ExecPolicy.model_fields.items()}


def test_the_examples_of_the_policy_reference_are_right(tmp_path: Path) -> None:
    commands, tests = re.findall(r"```yaml\n(.*?)```", _page("policy.md"), re.DOTALL)
    head = "policies:\n  - name: web\n    subjects: [a]\n    agents: [b]\n"
    found = PolicySet.parse(head + indent(commands, "    "), "example")
    assert len(found.policies[0].allowed) == 4
    assert found.secrets(["/usr/local/bin/deploy", "--key", "x", "y"], ()) == {2}
    assert found.secrets(["/usr/local/bin/vault-login", "x", "y"], ()) == {1, 2}
    file = tmp_path / "policy.test.yaml"
    file.write_text(tests)
    assert len(load_expectations(file)) == 2


def test_every_field_of_a_schedule_is_explained() -> None:
    listed = set()
    for line in _page("schedules.md").split("## Fields")[1].split("Cron expressions work")[0].splitlines():
        if line.startswith("| `"):
            listed |= set(re.findall(r"`(\w+)`", line.split("|")[1]))
    assert listed == {info.alias or name for name, info in Schedule.model_fields.items()}


def test_the_examples_of_schedules_are_right_and_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedules, policy = re.findall(r"```yaml\n(.*?)```", _page("schedules.md"), re.DOTALL)
    (python,) = re.findall(r"```python\n(.*?)```", _page("schedules.md"), re.DOTALL)
    written = ScheduleSet.parse(schedules, "example").schedules
    PolicySet.parse(policy, "example")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "example_of_the_page.py").write_text(python)
    made = open_schedules("example_of_the_page:app").current.schedules
    assert made.keys() == written.keys()
    for name, schedule in made.items():
        assert schedule.timing == written[name].timing
        assert schedule.request.command == written[name].request.command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    known = set(re.findall(r"\*\*`(\w+)`\*\*", _page("settings.md")))
    named = set(re.findall(r"TACHIKOMA_[A-Z_]*[A-Z]", page.read_text(encoding="utf-8")))
    assert named <= known


def anchors(page: Path) -> set[str]:
    """Return the anchors that a forge gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", WRITTEN, ids=place)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", WRITTEN, ids=place)
def test_every_decision_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for number in re.findall(r"docs/decisions/(\d{4})", text):
        assert list((ROOT / "docs/decisions").glob(f"{number}-*.md")), number


def where(path: str, page: Path) -> list[Path]:
    """Return the files that a path in a page can mean.

    `shared/…` and `worker/…` name the folder or its package. A path without a prefix is in the orchestrator, or a
    file in any room if it has no folder. The contributors' page writes paths relative to any package.
    """
    first, _, rest = path.partition("/")
    if first in ("shared", "worker"):
        return [ROOT / path, PACKAGES[first] / rest]
    if first in TOP or (not rest and (ROOT / path).exists()):
        return [ROOT / path]
    if not rest and path.startswith("test_"):
        return list((ROOT / "tests").rglob(path))
    if not rest:
        return [found for folder in (*PACKAGES.values(), ROOT / "worker/spawner") for found in folder.rglob(path)]
    packages = PACKAGES.values() if page.name == "CONTRIBUTING.md" else [PACKAGES["orchestrator"]]
    return [page.parent / path, *(package / path for package in packages)]


@pytest.mark.parametrize("page", [page for page in WRITTEN if page.name != "CHANGELOG.md"], ids=place)
def test_every_module_that_is_named_exists(page: Path) -> None:
    """A name after the path, as in `worker/transport.py: plain`, must be in the file."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for path, name in re.findall(r"`([\w./-]+\.(?:py|lua|c|h|proto)|[\w./]+/)(?:: ([\w.]+))?`", text):
        if path in NOT_OURS:
            continue
        found = [file for file in where(path, page) if file.exists()]
        assert found, path
        assert not name or any(name in file.read_text(encoding="utf-8") for file in found), f"{path}: {name}"


def test_the_demo_in_the_readme_has_the_titles_of_the_program() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    demo = (PACKAGES["shared"] / "cli/commands/demo.py").read_text(encoding="utf-8").replace("{root}", "/usr")
    titles = re.findall(r"^── (.+?) ─+$", readme, re.MULTILINE)
    assert len(titles) >= 6
    assert [title for title in titles if f'"{title}"' not in demo] == []


def test_every_log_event_that_is_named_exists() -> None:
    """The changelog's left column has the names that are gone."""
    source = "\n".join(
        path.read_text(encoding="utf-8") for folder in PACKAGES.values() for path in folder.rglob("*.py")
    )
    subjects = {event.partition(".")[0] for event in re.findall(r"log\.\w+\(\s*\"([a-z_]+\.[a-z_]+)\"", source)}
    assert len(subjects) > 10
    for page in WRITTEN:
        text = re.sub(r"^  \| `[^|]*\|", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for event in re.findall(r"`([a-z_]+\.[a-z_]+)`", text):
            subject, _, rest = event.partition(".")
            if subject in subjects and rest not in SUFFIXES and event not in NOT_EVENTS:
                assert f'"{event}"' in source, f"{place(page)}: {event}"


def test_every_module_in_the_table_of_rooms_exists() -> None:
    rooms = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("### Rooms")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", rooms, re.MULTILINE)
    assert len(rows) >= 10
    for room, modules in rows:
        for module in re.findall(r"`([\w/]+)`", modules):
            place_of = PACKAGES["orchestrator"] / room / module
            assert place_of.is_dir() or place_of.with_suffix(".py").is_file(), place_of


def test_every_test_that_the_security_model_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", _page("attackers.md"))
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_numbers_of_sizing_are_measured() -> None:
    """Those of other pages: performance.md, batches.md and the Redis configuration."""
    measured = " ".join(_page("performance.md").split())
    for number in ("73 MiB", "10.5", "42.6", "8,200", "9.2"):
        assert number in measured
    sizing = _page("sizing.md")
    for shown in ("73 MiB", "10.5 ms", "about 43", "about 8 KB", "about 9 ms"):
        assert shown in sizing


def test_the_glossary_has_each_term_once_and_in_order() -> None:
    terms = re.findall(r"^- \*\*(.+?)\*\*: [A-Z`]", _page("glossary.md"), re.MULTILINE)
    assert len(terms) == _page("glossary.md").count("\n- ")
    folded = [term.casefold() for term in terms]
    assert folded == sorted(set(folded))
