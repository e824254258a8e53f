"""What the references say is there, and what is there they say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from textwrap import indent

import pytest

from tachikoma.policy.decide import PolicySet
from tachikoma.policy.expectations import load_expectations
from tachikoma.schedules.file import Schedule, ScheduleSet
from tachikoma.vocabulary.policies import ExecPolicy
from tachikoma_orchestrator.schedules.sources import open_schedules

ROOT = Path(__file__).parents[3]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "ARCHITECTURE.md"]


def _page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_generated_tables_are_current() -> None:
    """`make docs` rewrites them."""
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    assert set(tables["TABLES"]) == {"audit.md", "redis.md"}
    for name in tables["TABLES"]:
        page = _page(name)
        assert page.count(tables["begin"](name)) == page.count(tables["END"]) == 1
        assert tables["with_table"](name, page) == page


def test_the_reference_of_settings_is_current() -> None:
    """`make docs` rewrites it."""
    reference = runpy.run_path(str(ROOT / "docs" / "settings_page.py"))
    assert _page("settings.md") == reference["settings_page"]()


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
    for line in _page("schedules.md").split("## Fields")[1].split("A cron expression")[0].splitlines():
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link
