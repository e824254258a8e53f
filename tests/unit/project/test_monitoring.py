"""The alert rules and the dashboard in packaging/monitoring are right, by promtool's own word."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "packaging" / "monitoring"


def expressions() -> Iterator[str]:
    """Every query of the rules and of the dashboard."""
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))["panels"]:
        yield from (target["expr"] for target in panel["targets"])


@pytest.mark.parametrize("command", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")])
def test_promtool_accepts_the_rules(command: tuple[str, ...], need: Callable[[bool, str], None]) -> None:
    need(shutil.which("promtool") is not None, "promtool")
    done = subprocess.run(
        ["promtool", *command], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("expression", list(expressions()))
def test_a_query_asks_for_metrics_that_exist(expression: str) -> None:
    # The page is compared with the metrics by tests of its own.
    names = set(re.findall(r"`(tachikoma_\w+)`", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")))
    asked = {re.sub("_bucket$|_count$", "", name) for name in re.findall(r"tachikoma_\w+", expression)}
    assert asked <= names
    assert asked or expression.startswith("up{")


def test_each_alert_says_what_to_do() -> None:
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary", "action"}
            assert rule["labels"]["severity"] in {"info", "warning", "critical"}
