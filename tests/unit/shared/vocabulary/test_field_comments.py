"""`help()` shows the comments of fields, and JSON schemas do not repeat them."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
from typing import Any

import pytest

import tachikoma
from tachikoma import ExecRequest, ResourceLimits
from tachikoma.vocabulary.field_comments import DocumentedFields, comments
from tachikoma.vocabulary.model import Model


class Ours(Model):
    """A value.

    Its second sentence.
    """

    #: The first, of two
    #: lines.
    first: int
    second: int = 0


class Inherited(Ours):
    """A value with one field more."""

    #: The third.
    third: int = 0


def fields_of(kind: Any) -> list[str]:
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return list(getattr(kind, "model_fields", ()))


WITH_FIELDS = [
    name for name in tachikoma.__all__
    if inspect.isclass(getattr(tachikoma, name)) and fields_of(getattr(tachikoma, name))
]  # fmt: skip


def test_help_has_the_docstring_and_each_field_with_its_comment() -> None:
    assert inspect.getdoc(Inherited) == (
        "A value with one field more.\n\nAttributes:\n"
        "    first: The first, of two lines.\n    second\n    third: The third."
    )
    assert inspect.getdoc(Ours(first=1)) == inspect.getdoc(Ours)
    # Python 3.13 takes the indentation off itself.
    assert inspect.cleandoc(str(Ours.__doc__)) == "A value.\n\nIts second sentence."
    shown = pydoc.plain(pydoc.render_doc(Ours))
    assert "first: The first, of two lines." in shown


@pytest.mark.parametrize("name", WITH_FIELDS)
def test_help_of_each_public_class_shows_its_fields(name: str) -> None:
    kind = getattr(tachikoma, name)
    lines = [line.strip() for line in (inspect.getdoc(kind) or "").splitlines()]
    for field in fields_of(kind):
        assert any(line == field or line.startswith(f"{field}: ") for line in lines), field


def test_help_says_what_the_fields_of_a_request_mean() -> None:
    text = inspect.getdoc(ExecRequest) or ""
    assert "    limits: " in text
    assert "    memory: " in (inspect.getdoc(ResourceLimits) or "")


def test_a_schema_describes_a_class_by_its_own_docstring() -> None:
    assert Ours.model_json_schema()["description"] == "A value.\n\nIts second sentence."


def test_a_class_without_source_has_its_docstring_only() -> None:
    made: Any = {}
    exec("class Made:\n    '''A value.'''\n    field: int", made)
    kind = made["Made"]
    assert comments(kind) == {}
    kind.__doc__ = DocumentedFields.of(kind)
    assert inspect.getdoc(kind) == "A value."
