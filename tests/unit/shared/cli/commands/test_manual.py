"""Manual pages: one for each command, that a formatter of man(7) accepts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tachikoma.cli.commands.examples import EXAMPLES
from tachikoma.cli.commands.manual import pages

PAGES = dict(pages())


def test_each_command_has_a_page(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "share" / "man1"
    assert run("manual", str(folder)).code == 0
    names = {"tachikoma", *(f"tachikoma-{path.replace(' ', '-')}" for path in EXAMPLES)}
    assert {path.stem for path in folder.glob("*.1")} == names == set(PAGES)


def test_a_page_has_what_the_help_has() -> None:
    page = PAGES["tachikoma-exec"].replace("\\-", "-")
    for part in (
        "Run a command on an agent",
        "--isolation shared|private|sealed",
        "May be repeated.",
        "exec -it web-1",
    ):
        assert part in page
    assert "tachikoma-agents-drain" in PAGES["tachikoma-agents"].replace("\\-", "-")
    assert ".BR tachikoma\\-agents (1)" in PAGES["tachikoma-agents-drain"]


def test_text_is_escaped() -> None:
    for page in PAGES.values():
        assert page.isascii()
        assert not [line for line in page.splitlines() if line.startswith("'")]


def test_a_folder_that_cannot_be_written_is_named(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("manual", str(tmp_path / "file" / "man1"))
    assert done.code == 1
    assert f"cannot write manual pages to {tmp_path}/file/man1: Not a directory" in str(done.error)


@pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff to format manual pages with")
@pytest.mark.slow
def test_the_formatter_has_no_warning() -> None:
    for name, page in PAGES.items():
        done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z"], input=page, capture_output=True, text=True)
        assert (name, done.stderr) == (name, "")
