"""Rewrites the generated tables of the documentation: `make docs`. A test compares the tables with their source."""

from __future__ import annotations

from pathlib import Path

from tachikoma.audit.codes import markdown_table

AUDIT_PAGE = Path(__file__).parent / "audit.md"
BEGIN = "<!-- generated from tachikoma.audit.codes by `make docs` -->\n"
END = "<!-- end of the generated table -->\n"


def with_table(page: str) -> str:
    """Return the text of `audit.md` with the current table of audit codes."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + markdown_table() + END + after


if __name__ == "__main__":
    AUDIT_PAGE.write_text(with_table(AUDIT_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
