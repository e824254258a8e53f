"""Words that readers had to decode occur nowhere: the field has a word for each."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("shared/tachikoma", "orchestrator/tachikoma_orchestrator", "worker/tachikoma_worker", "worker/spawner")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
#: Pattern of each riddle, and the field's word for it. A space is any white space.
WORDS = {
    r"who(so)?ever": "caller, requester, operator, owner",
    r"who asks": "caller, requester",
    r"cut(s|ting)?( an?| the)?( it| agent)? off": "revoke, end, disconnect",
    r"(made|begun|told|begins?|makes?|tells?) anew": "recreate, restart, repeat",
    r"nudg(e|es|ed|ing)": "hint, trigger",
    r"heed(s|ed|ing)?": "honour, apply",
    r"thr(ow|ows|ew|own|owing)( it| them)? out": "disconnect, remove",
    r"how far (it is|they are)": "progress, position",
    r"how they stand": "state, status",
    r"in force": "active, current",
    r"(is|are) believed": "trusted, accepted",
    r"due times?": "scheduled time",
}
RIDDLE = re.compile("|".join(rf"\b{word}\b".replace(" ", r"\s+") for word in WORDS), re.IGNORECASE)
#: Texts that may stay, with the reason.
ALLOWED = {"`nudge.unknown`": "the changelog names the event that was renamed"}


def python_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the strings and the blocks of comments of a module, with their first lines."""
    block: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            block.append(token.string.lstrip("#: "))
        elif token.type not in (tokenize.NL, tokenize.NEWLINE):
            if block:
                yield token.start[0] - len(block), "\n".join(block)
                block = []
            if token.type == tokenize.STRING or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
                yield token.start[0], token.string


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the blocks of comments of a Lua script, a C file or the API definition, with their first lines."""
    mark = re.compile(r"--(.*)" if path.suffix == ".lua" else r"(?://|/\*|^\s*\*)(.*)")
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    found = ((number, mark.search(line)) for number, line in lines)
    for is_comment, group in groupby(found, lambda item: item[1] is not None):
        if is_comment:
            block = [(number, match[1]) for number, match in group if match]
            yield block[0][0], "\n".join(text for _, text in block)


def riddles(path: Path) -> list[str]:
    """Return the place and text of each riddle in a file."""
    if path.suffix == ".md":
        texts: Iterator[tuple[int, str]] = iter([(1, path.read_text(encoding="utf-8"))])
    else:
        texts = python_texts(path) if path.suffix == ".py" else comments(path)
    found = []
    for first, text in texts:
        for part in ALLOWED:
            text = text.replace(part, "")
        for match in RIDDLE.finditer(text):
            line = first + text.count("\n", 0, match.start())
            found.append(f"{path.relative_to(ROOT)}:{line}: {' '.join(match[0].split())}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documents_use_the_words_of_the_field(page: Path) -> None:
    assert not riddles(page)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.slow
def test_code_uses_the_words_of_the_field(package: str) -> None:
    kinds = (".py", ".lua", ".c", ".h", ".proto")
    files = [path for path in sorted((ROOT / package).rglob("*")) if path.suffix in kinds and "_pb2" not in path.name]
    assert files
    assert not [riddle for path in files for riddle in riddles(path)]


def test_riddles_are_found_and_words_of_the_field_are_not() -> None:
    for text in ("Whoever asks", "was cut off", "cut the agent\noff", "is made  anew", "a nudge", "thrown out"):
        assert RIDDLE.search(text), text
    for text in ("revoke", "cut output", "indeed", "exceeds", "in forces", "made"):
        assert not RIDDLE.search(text), text
