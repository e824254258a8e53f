"""Labels that operators bind, and changes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tachikoma.vocabulary.labels import MAX_LABELS, BoundLabels, LabelChange

LABELS: TypeAdapter[dict[str, str]] = TypeAdapter(BoundLabels)
NAMES = st.from_regex(r"[a-z][a-z0-9./-]{0,4}[a-z0-9]", fullmatch=True)
VALUES = st.from_regex(r"[a-z=-]{0,6}", fullmatch=True)


@pytest.mark.parametrize("name", ["role", "a", "topology/zone", "a.b_c-d", "R2"])
def test_names_of_letters_digits_and_some_signs_are_valid(name: str) -> None:
    assert LABELS.validate_python({name: "x, y"}) == {name: "x, y"}


@pytest.mark.parametrize(
    "labels",
    [
        {"": "x"}, {"a-": "x"}, {"-a": "x"}, {"a b": "x"}, {"a=b": "x"}, {"a*": "x"}, {"a" * 129: "x"},
        {"a": "x\0y"}, {"a": "x\ny"}, {"a": "\x9b"}, {"a": "\u2028"}, {"a": "x" * 129},
        {f"n{number}": "" for number in range(MAX_LABELS + 1)},
    ],
)  # fmt: skip
def test_labels_that_cannot_be_selected_or_would_break_a_command_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        LABELS.validate_python(labels)


def test_a_change_binds_and_removes() -> None:
    change = LabelChange.parse(["role=db", "site-", "empty=", "rule=a=b-"])
    assert change == LabelChange({"role": "db", "empty": "", "rule": "a=b-"}, ("site",))
    assert change.applied_to({"site": "b1", "role": "web", "rack": "r1"}) == {
        "empty": "", "rack": "r1", "role": "db", "rule": "a=b-",
    }  # fmt: skip
    assert change.words() == "role=db empty= rule=a=b- site-"


@pytest.mark.parametrize("texts", [["role"], ["-"], [""], ["=x"], ["a=1", "a=2"], ["a=1", "a-"], ["a-", "a-"]])
def test_a_change_that_is_not_clear_is_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"neither|twice|not NAME"):
        LabelChange.parse(texts)


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.dictionaries(NAMES, VALUES, max_size=4), st.data())
def test_a_change_can_be_written_and_read_and_applied_twice(
    labels: dict[str, str], bind: dict[str, str], data: st.DataObject
) -> None:
    others = sorted(set(labels) - set(bind))
    remove = data.draw(st.lists(st.sampled_from(others), unique=True)) if others else []
    change = LabelChange(bind, tuple(remove))
    assert LabelChange.parse(change.words().split(" ") if change.words() else []) == change
    after = change.applied_to(labels)
    assert after == {name: value for name, value in {**labels, **bind}.items() if name not in remove}
    assert change.applied_to(after) == after
