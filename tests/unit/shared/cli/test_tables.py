"""Tables at every width, and their pictures on real terminals of 40, 80 and 200 columns."""

from __future__ import annotations

import fcntl
import os
import pkgutil
import pty
import re
import struct
import subprocess
import sys
import termios
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pictures
from patience import PATIENCE_SECONDS
from tachikoma.cli import commands, tables
from tachikoma.cli.tables import Cell, Column, fitted, printable

# Tests here start Python, which takes most of their time.
pytestmark = pytest.mark.slow

PICTURES = Path(__file__).parent / "pictures"
COLUMNS = (Column("ID", is_id=True), Column("AGENT", 1, elastic=True), Column("STATE"), Column("COMMAND", elastic=True))
IDS = ("4f1c2a9d8e7b6a5f4c3d2e1f", "4f1c2a9d00000a5f4c3d2e1f", "nightly-2026-01-31")


def lines(columns: tuple[Column, ...], rows: list[tuple[str, ...]], width: int | None) -> list[str]:
    """A table as text."""
    cells = [[Cell(text) for text in row] for row in rows]
    return ["".join(cell.text for cell in line).rstrip() for line in fitted(columns, cells, width)]


def rows(command: str = "ls") -> list[tuple[str, ...]]:
    return [(exec_id, "web-1", "SUCCEEDED", command) for exec_id in IDS]


@given(st.text())
def test_no_foreign_text_controls_the_terminal(text: str) -> None:
    shown = printable(text)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert printable(shown) == shown


def test_without_a_limit_nothing_is_shortened() -> None:
    long = "x" * 3000
    assert lines(COLUMNS, rows(long), None)[1] == f"{IDS[0]}  web-1  SUCCEEDED  {long}"


@pytest.mark.parametrize("ids", [(), ("7",)])
def test_the_heading_of_ids_stays_whole(ids: tuple[str, ...]) -> None:
    columns = (*COLUMNS[:3], Column("A LONG HEADING"))
    assert lines(columns, [(one, "", "", "") for one in ids], 30)[0].startswith("ID  ")


def test_ids_are_shortened_first_and_stay_unambiguous() -> None:
    shown = lines(COLUMNS, rows(), 50)
    assert [line.split()[0] for line in shown[1:]] == [exec_id[:23] for exec_id in IDS]
    shown = lines(COLUMNS, rows(), 36)
    assert [line.split()[0] for line in shown[1:]] == ["4f1c2a9d8", "4f1c2a9d0", "nightly-2"]


def test_ids_that_differ_only_at_their_end_fold_no_line() -> None:
    shown = lines(COLUMNS, [("n" * 62 + end, "web-1", "SUCCEEDED", "ls -l") for end in "ab"], 40)
    assert len(set(shown[1:])) == 1
    assert re.match(r"^n{8,}… {2}SUCCEEDED", shown[1])
    assert max(map(len, shown)) <= 40
    ended = lines(COLUMNS, [("n" * 62 + end, "web-1", "SUCCEEDED", "ls -l") for end in "ab"], 100)
    assert [line.split()[0] for line in ended[1:]] == ["n" * 62 + "a", "n" * 62 + "b"]


def test_then_columns_are_left_out_by_priority() -> None:
    assert lines(COLUMNS, rows(), 29)[0] == "ID         STATE      COMMAND"


def test_a_long_value_ends_with_an_ellipsis() -> None:
    shown = lines(COLUMNS, rows("find / -name core -delete"), 40)
    assert shown[1] == "4f1c2a9d8  SUCCEEDED  find / -name core…"


@given(
    st.integers(40, 200),
    st.lists(
        st.tuples(
            # Ids that differ early, late or not at all.
            st.text("ab", max_size=3).map(lambda end: "n" * 60 + end)
            | st.text(st.characters(codec="utf-8"), max_size=60),
            *[st.text(st.characters(codec="utf-8"), max_size=60)] * 3,
        ),
        max_size=5,
    ),
)
def test_no_line_is_wider_than_the_terminal(width: int, given_rows: list[tuple[str, ...]]) -> None:
    clean = [tuple(printable(text).replace("\n", "") for text in row) for row in given_rows]
    for line in fitted(COLUMNS, [[Cell(text) for text in row] for row in clean], width):
        assert tables._text_width("".join(cell.text for cell in line).rstrip()) <= width


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=30), st.integers(1, 30))
def test_wide_characters_are_not_split(text: str, width: int) -> None:
    assert tables._text_width(tables._cut(text, width, is_id=False)) <= width


def test_a_table_in_a_pipe_has_plain_lines_and_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    tables.table((Column("A"), Column("B")), [("1\x1b", long), (Cell("2", "red"), "y\nz")])
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown] == [["A", "B"], [r"1\x1b", long], ["2", r"y\nz"]]


#: Prints every list of the command line.
LISTS = Path(__file__).with_name("pictured.py")


#: Command lines whose output is no table: values are whole, and the terminal folds them.
TEXT = {"tachikoma status", "tachikoma run", "tachikoma run --preview"}


def picture(width: int) -> str:
    """The lists on a terminal of a width."""
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {**os.environ, "TZ": "UTC", "NO_COLOR": "1"}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen([sys.executable, str(LISTS)], stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown = bytearray()
    try:
        while part := os.read(reader, 65536):
            shown += part
    except OSError:
        # Linux ends a terminal without writers with EIO.
        pass
    os.close(reader)
    assert process.wait(PATIENCE_SECONDS) == 0, shown.decode()
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_lists_look_as_in_their_pictures(width: int) -> None:
    shown = picture(width)
    for part in re.split(r"^\$ ", shown, flags=re.MULTILINE):
        line, *rows = part.splitlines() or [""]
        if line not in TEXT:
            assert all(len(row) <= width for row in rows), line
    assert "\x1b" not in shown
    pictures.compare(shown, PICTURES / f"lists-{width}.txt")


def columns_of_commands() -> dict[str, tuple[Column, ...]]:
    """The columns of each table, by module and name."""
    found = {}
    for module in pkgutil.iter_modules(commands.__path__):
        loaded = import_module(f"{commands.__name__}.{module.name}")
        for name, value in vars(loaded).items():
            if isinstance(value, tuple) and value and all(isinstance(item, Column) for item in value):
                found[f"{module.name}.{name}"] = value
    return found


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_table_is_in_the_pictures(width: int) -> None:
    headings = [re.split(" {2,}", line) for line in (PICTURES / f"lists-{width}.txt").read_text().splitlines()]
    tables = columns_of_commands()
    assert len(tables) >= 12
    for place, columns in tables.items():
        names = [column.name for column in columns]
        needed = {column.name for column in columns if column.priority == 0}
        assert any(set(line) <= set(names) and needed <= set(line) for line in headings), place
