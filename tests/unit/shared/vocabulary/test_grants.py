"""Bounds of a grant."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tachikoma.vocabulary.grants import Grant, GrantedExecutable

FILE = GrantedExecutable(path="/bin/x")


def test_a_grant_gives_nothing_that_it_does_not_name() -> None:
    grant = Grant(executables=(FILE,))
    assert (grant.interpreters, grant.capabilities, grant.work_dir_root, grant.kill_grace) == (False, 0, "", None)
    assert (FILE.named, FILE.sha256) == (False, ())
    assert Grant.model_validate_json(grant.model_dump_json()) == grant


@pytest.mark.parametrize(
    "values",
    [
        {"executables": ()},
        {"capabilities": -1},
        {"capabilities": 2**64},
        {"kill_grace": -0.1},
        {"kill_grace": 600.1},
        {"kill_grace": float("nan")},
        {"executables": ({"path": "/bin/x", "sha256": ["ab"]},)},
        {"executables": ({"path": "/bin/x", "setuid": True},)},
        {"more": 1},
    ],
)
def test_a_grant_has_bounds(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Grant.model_validate({"executables": (FILE,), **values})
