"""YAML files, and the place of each mistake."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from tachikoma.config.yaml_files import MAX_FILE_BYTES, digest, dotted, read_document, read_files, yaml_files
from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.model import Model


class Item(Model):
    """An entry of the file of this test."""

    name: str
    size_limit: Annotated[int, Field(ge=1)] = 1


class Content(Model):
    """The file of this test."""

    items: tuple[Item, ...]


GOOD = "items:\n  - name: a\n  - name: b\n    sizeLimit: 2\n"


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read_document(text, "f", Content)
    return str(caught.value).splitlines()


def test_a_document_is_read_and_knows_its_places() -> None:
    document = read_document(GOOD, "f", Content)
    assert [(item.name, item.size_limit) for item in document.content.items] == [("a", 1), ("b", 2)]
    assert document.position(("items", 1)) == "f:3:5"
    assert document.position(("items", 1, "sizeLimit")) == "f:4:5"
    # The nearest place that YAML knows.
    assert document.position(("items", 1, "missing")) == "f:3:5"
    assert document.position(()) == "f:1:1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("sizeLimit", "sizelimit"), "f:4:5: items[1].sizelimit: unknown field; did you mean sizeLimit?"),
        (GOOD.replace("sizeLimit", "zzz"), "f:4:5: items[1].zzz: unknown field; known are name, sizeLimit"),
        (GOOD.replace("sizeLimit: 2", "sizeLimit: 0"), "f:4:5: items[1].sizeLimit: Input should be greater than"),
        (GOOD.replace("name: a", "sizeLimit: 1"), "f:2:5: items[0].name: is missing"),
        ("", "f:1:1: must be a mapping with the key 'items'"),
        ("- a", "f:1:1: must be a mapping with the key 'items'"),
        ("items: [", "f:1:9: not YAML: "),
        ("items: 'x", "f:1:"),
    ],
)
def test_a_mistake_has_its_place(text: str, expected: str) -> None:
    (found,) = mistakes(text)
    assert found.startswith(expected)


def test_all_mistakes_are_named() -> None:
    assert len(mistakes(GOOD.replace("name: a", "nam: a").replace("sizeLimit: 2", "sizeLimit: x"))) == 3


@given(st.text(max_size=60))
def test_any_text_is_a_document_or_a_configuration_error(text: str) -> None:
    try:
        found = read_document(text, "f", Content)
    except ConfigurationError:
        return
    assert isinstance(found.content, Content)


def test_a_place_is_written_as_people_do() -> None:
    assert dotted(("policies", 0, "name")) == "policies[0].name"
    assert dotted((0,)) == "[0]"
    assert dotted(()) == ""


def test_a_folder_stands_for_its_yaml_files(tmp_path: Path) -> None:
    for name in ("b.yml", "a.yaml", "a.test.yaml", "note.txt"):
        (tmp_path / name).write_text(name)
    assert [path.name for path in yaml_files(tmp_path)] == ["a.yaml", "b.yml"]
    assert read_files(tmp_path, "file") == [(str(tmp_path / name), name) for name in ("a.yaml", "b.yml")]
    assert yaml_files(tmp_path / "note.txt") == [tmp_path / "note.txt"]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no book in .*; their names end in \.yaml"):
        read_files(tmp_path, "book")
    with pytest.raises(ConfigurationError, match=r"cannot read the book .*missing"):
        read_files(tmp_path / "missing.yaml", "book")
    (tmp_path / "binary.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"cannot read the book .*binary"):
        read_files(tmp_path, "book")
    with (tmp_path / "binary.yaml").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigurationError, match=f"larger than {MAX_FILE_BYTES} bytes"):
        read_files(tmp_path, "book")


def test_the_digest_is_over_the_texts_in_their_order() -> None:
    one = digest([("a", "x"), ("b", "y")])
    assert one == digest([("c", "x"), ("d", "y")])
    assert one != digest([("a", "y"), ("b", "x")])
    assert one != digest([("a", "xy")])
    assert digest([]) == hashlib.sha256().hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        "items: " + "[" * 300 + "]" * 300,
        "items: " + "{a: " * 300 + "}" * 300,
        "\n".join(" " * depth + "items:" for depth in range(400)),
        "[" * 100_000,
        "{" * 100_000,
        # Each level of such keys doubled the time.
        "? " * 30,
        "items: " + "{" * 30 + "a" + ": 1}" * 30,
        "items: " + "[a, " * 30 + "{b: &k {c: 1}, *k : 2}" + "]" * 30,
        "items:\n" + "\n".join("  " * depth + "-" for depth in range(1, 400)),
        "items: 2001-99-99",
        "items: " + "9" * 10_000,
        "items: !!timestamp x",
        "items: &i [*i]",
    ],
    ids=lambda text: text[:20],
)
def test_no_text_is_more_than_a_mistake(text: str) -> None:
    assert mistakes(text)


@given(st.text(alphabet="items:&*[]{}-!<|>'\"\n #?,a1~%@.", max_size=60))
def test_no_other_text_is_more_than_a_mistake(text: str) -> None:
    with suppress(ConfigurationError):
        assert read_document(text, "f", Content).name == "f"
