"""Rewrites the generated tables of the documentation: `make docs`. A test compares the tables with their source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tachikoma.audit import codes
from tachikoma.redis import names
from tachikoma_orchestrator import metrics

FOLDER = Path(__file__).parent
#: For each page: the module that its table is generated from, and the function that makes it.
TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "audit.md": (codes.__name__, codes.markdown_table),
    "metrics.md": (metrics.__name__, metrics.markdown_table),
    "redis.md": (names.__name__, names.markdown_table),
}
END = "<!-- end of the generated table -->\n"


def begin(page: str) -> str:
    """Return the line that a page's table follows."""
    return f"<!-- generated from {TABLES[page][0]} by `make docs` -->\n"


def with_table(page: str, text: str) -> str:
    """Return the text of a page with its current table."""
    before, _, rest = text.partition(begin(page))
    _, _, after = rest.partition(END)
    return before + begin(page) + TABLES[page][1]() + END + after


if __name__ == "__main__":
    for page in TABLES:
        file = FOLDER / page
        file.write_text(with_table(page, file.read_text(encoding="utf-8")), encoding="utf-8")
