"""The bounds of a request. `test_requests.py` has the same inputs for the model, which reports what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from tachikoma.vocabulary import request_rules as rules


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (rules.check_command, ("true",)),
        (rules.check_command, ("sh", "-c", "a\nb", "")),
        (rules.check_command, ("x" * (rules.MAX_COMMAND_BYTES - 1),)),
        (rules.check_environment, {}),
        (rules.check_environment, {"A": "", "b.c-d": "é"}),
        (rules.check_environment, {"A": "x" * (rules.MAX_ENVIRONMENT_BYTES - 3)}),
        (rules.check_work_dir, ""),
        (rules.check_work_dir, "/"),
        (rules.check_work_dir, "/" + "x" * (rules.MAX_PATH_BYTES - 1)),
        (rules.check_user, ""),
        (rules.check_user, "_apt"),
        (rules.check_user, "x" * 32),
        (rules.check_timeout, timedelta(microseconds=1)),
        (rules.check_timeout, rules.MAX_TIMEOUT),
    ],
)
def test_what_is_within_its_bounds_passes(check: Callable[[Any], None], value: Any) -> None:
    check(value)


@pytest.mark.parametrize(
    ("check", "value", "told"),
    [
        (rules.check_command, ("", "x"), "the program, is empty"),
        (rules.check_command, ("x", "a\0b"), "element 1 contains a NUL"),
        (rules.check_command, ("\udc80",), "not valid UTF-8"),
        (rules.check_command, ("x" * rules.MAX_COMMAND_BYTES,), "bytes; at most"),
        (rules.check_environment, {"": "x"}, "not a variable name"),
        (rules.check_environment, {"a=b": "x"}, "not a variable name"),
        (rules.check_environment, {"a\0": "x"}, "a name contains a NUL"),
        (rules.check_environment, {"a": "\0"}, "the value of a contains a NUL"),
        (rules.check_environment, {"a": "\udc80"}, "not valid UTF-8"),
        (rules.check_environment, {"A": "x" * (rules.MAX_ENVIRONMENT_BYTES - 2)}, "bytes; at most"),
        (rules.check_work_dir, "tmp", "not an absolute path"),
        (rules.check_work_dir, "/a\0", "NUL"),
        (rules.check_work_dir, "/\udc80", "not valid UTF-8"),
        (rules.check_work_dir, "/" + "é" * (rules.MAX_PATH_BYTES // 2), "longer than"),
        (rules.check_user, "0", "numeric"),
        (rules.check_user, "x" * 33, "not a user name"),
        (rules.check_user, "a b", "not a user name"),
        (rules.check_user, "é", "not a user name"),
        (rules.check_timeout, timedelta(0), "longer than zero"),
        (rules.check_timeout, rules.MAX_TIMEOUT + timedelta(microseconds=1), "7 days"),
    ],
)
def test_what_is_beyond_a_bound_is_refused_with_the_reason(check: Callable[[Any], None], value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check(value)
