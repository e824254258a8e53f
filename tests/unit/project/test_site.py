"""The documentation as a web site: every page is in its navigation, and it works without a network."""

from __future__ import annotations

import io
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[3]
HOOKS = runpy.run_path(str(ROOT / "tools/site_hooks.py"))
SITE: dict[str, Any] = YAML(typ="safe").load(io.StringIO((ROOT / "mkdocs.yml").read_text(encoding="utf-8")))


def entries(navigation: Any) -> Iterator[str]:
    """Yield the page of each entry of a navigation."""
    if isinstance(navigation, str):
        yield navigation
    for below in navigation.values() if isinstance(navigation, dict) else navigation:
        if not isinstance(navigation, str):
            yield from entries(below)


def test_every_page_is_in_the_navigation_once() -> None:
    """`tools/site_hooks.py` adds the decisions."""
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} | {*HOOKS["TOP_PAGES"], "decisions/README.md"}
    named = list(entries(SITE["nav"]))
    assert set(named) == pages
    assert len(named) == len(pages)


def test_every_decision_is_a_page() -> None:
    found = HOOKS["decisions"](ROOT / "docs/decisions")
    assert found[0] == "decisions/README.md"
    assert len(found) == len(list((ROOT / "docs/decisions").glob("*.md")))


def test_no_font_is_loaded_from_elsewhere() -> None:
    assert SITE["theme"]["font"] is False
    assert not {"extra_css", "extra_javascript"} & SITE.keys()


@pytest.mark.parametrize(
    ("text", "folder", "shown"),
    [
        ("[a](docs/audit.md#events)", "", "[a](audit.md#events)"),
        ("[a](docs/decisions)", "", "[a](decisions/README.md)"),
        ("[a](../SECURITY.md)", "", "[a](SECURITY.md)"),
        ("[the alerts](../packaging/monitoring)", "", "the alerts"),
        ("[the README](../README.md#from-python)", "", "the README"),
        ("[the README](README.md)", "", "the README"),
        ("[a](../../ARCHITECTURE.md)", "decisions", "[a](../ARCHITECTURE.md)"),
        ("[a](README.md)", "decisions", "[a](README.md)"),
        ("[a](https://example.org/docs/x)", "", "[a](https://example.org/docs/x)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(text: str, folder: str, shown: str) -> None:
    assert HOOKS["local_links"](text, folder) == shown


@pytest.mark.parametrize(
    ("html", "refused"),
    [
        ('<script src="https://example.org/x.js"></script>', True),
        ("<img alt=x src=//example.org/x.png>", True),
        ('<link rel="stylesheet" href="https://fonts.googleapis.com/css?family=x">', True),
        ('<link href="https://fonts.gstatic.com" rel=preconnect crossorigin>', True),
        ('<script src="assets/javascripts/bundle.js"></script>', False),
        ('<link rel="stylesheet" href="assets/main.css"><a href="https://example.org">', False),
        ('<link rel="canonical" href="https://example.org/page">', False),
    ],
)
def test_a_page_that_loads_from_another_server_is_refused(html: str, refused: bool) -> None:
    assert bool(HOOKS["FOREIGN"].search(html)) is refused


def test_the_readme_leads_to_the_site() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(docs/index.md)" in readme
    assert re.search(r"`make site`", readme)
