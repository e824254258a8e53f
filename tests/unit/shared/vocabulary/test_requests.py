"""Bounds of a request, and its JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.identifiers import new_id
from tachikoma.vocabulary.request_rules import (
    MAX_ARGUMENTS,
    MAX_COMMAND_BYTES,
    MAX_ENVIRONMENT_BYTES,
    MAX_ENVIRONMENT_ENTRIES,
    MAX_PATH_BYTES,
    MAX_STDIN_BYTES,
    MAX_TIMEOUT,
)
from tachikoma.vocabulary.requests import ExecRequest, Terminal, WindowSize, make_request

#: Reads like "root"; the letters in the middle are Cyrillic.
CYRILLIC = "r\u043e\u043et"

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def request(**values: Any) -> ExecRequest:
    return ExecRequest(**{"agent_id": "agent-1", "command": ["/bin/true"], **values})


def wrong(field: str, match: str, **values: Any) -> None:
    """The request is refused, and the message names the field and says why."""
    with pytest.raises(InvalidRequest) as caught:
        request(**values)
    told = str(caught.value).removeprefix("invalid ExecRequest: ")
    assert told.startswith(field)
    assert match in told


# --- command ----------------------------------------------------------------------------------------------------------


def test_the_largest_number_of_arguments_is_taken_and_one_more_is_not() -> None:
    assert len(request(command=["x"] * MAX_ARGUMENTS).command) == 1024
    wrong("command", "at most 1024", command=["x"] * (MAX_ARGUMENTS + 1))


def test_the_largest_command_is_taken_and_one_byte_more_is_not() -> None:
    longest = "x" * (MAX_COMMAND_BYTES - len("/bin/true") - 2)
    assert request(command=["/bin/true", longest]).command[1] == longest
    wrong("command", "131073 bytes", command=["/bin/true", longest + "x"])


def test_the_size_of_a_command_is_counted_in_bytes_not_in_characters() -> None:
    wrong("command", "bytes", command=["/bin/true", "ä" * (MAX_COMMAND_BYTES // 2)])


def test_empty_arguments_count_as_well() -> None:
    # Each has its closing NUL, so that nobody gets 128 KiB of them for nothing.
    assert request(command=["x", *[""] * (MAX_ARGUMENTS - 1)]).command[-1] == ""


@pytest.mark.parametrize("command", [[], ()])
def test_an_empty_argv_is_refused(command: object) -> None:
    wrong("command", "at least 1", command=command)


def test_an_empty_program_is_refused() -> None:
    wrong("command", "the program, is empty", command=["", "x"])


@pytest.mark.parametrize("command", [["a\0b"], ["/bin/echo", "\0"], ["/bin/echo", "x\0"]])
def test_a_nul_in_the_argv_is_refused(command: list[str]) -> None:
    wrong("command", "NUL", command=command)


@pytest.mark.parametrize("command", ["/bin/true", b"/bin/true", "ls -l"])
def test_one_string_is_no_argv(command: object) -> None:
    wrong("command", "not one string", command=command)


@pytest.mark.parametrize("command", [None, 5, {"a": 1}, [1], [None], [["x"]]])
def test_other_things_are_no_argv(command: object) -> None:
    wrong("command", "", command=command)


@pytest.mark.parametrize("field", ["command", "work_dir", "user", "requested_by", "id", "agent_id"])
def test_a_lone_surrogate_is_refused_everywhere(field: str) -> None:
    value: object = "/\udc80"
    with pytest.raises(InvalidRequest):
        request(**{field: [value] if field == "command" else value})


@pytest.mark.parametrize("environment", [{"A\udc80": "x"}, {"A": "\udc80"}])
def test_a_lone_surrogate_in_the_environment_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        request(environment=environment)


@pytest.mark.parametrize("argument", ["", " ", "a b", "\n", "-x", "ä€😀", "\x1b[31m", "$(id)", "\u202e"])
def test_any_other_argument_is_taken_as_it_is(argument: str) -> None:
    assert request(command=["/bin/echo", argument]).command == ("/bin/echo", argument)


# --- environment ------------------------------------------------------------------------------------------------------


def test_the_largest_number_of_variables_is_taken_and_one_more_is_not() -> None:
    most = {f"V{n}": "" for n in range(MAX_ENVIRONMENT_ENTRIES)}
    assert request(environment=most).environment == most
    wrong("environment", "at most 256", environment={**most, "ONE": "more"})


def test_the_largest_environment_is_taken_and_one_byte_more_is_not() -> None:
    longest = "x" * (MAX_ENVIRONMENT_BYTES - len("A") - 2)
    assert request(environment={"A": longest}).environment["A"] == longest
    wrong("environment", "131073 bytes", environment={"A": longest + "x"})


@pytest.mark.parametrize("name", ["", "=", "A=B", "=A"])
def test_a_name_with_an_equals_sign_or_none_at_all_is_refused(name: str) -> None:
    wrong("environment", "not a variable name", environment={name: "x"})


@pytest.mark.parametrize("environment", [{"A\0": "x"}, {"A": "\0"}])
def test_a_nul_in_the_environment_is_refused(environment: dict[str, str]) -> None:
    wrong("environment", "NUL", environment=environment)


# --- the rest of a request --------------------------------------------------------------------------------------------


def test_the_largest_input_is_taken_and_one_byte_more_is_not() -> None:
    assert len(request(stdin=bytes(MAX_STDIN_BYTES)).stdin) == 4 * 1024 * 1024
    wrong("stdin", "at most 4194304", stdin=bytes(MAX_STDIN_BYTES + 1))


@pytest.mark.parametrize("value", ["", "-a", "a.b", "a\n", "x" * 64, "a b", "a/b", "*"])
@pytest.mark.parametrize("field", ["id", "agent_id"])
def test_bad_ids_are_refused(field: str, value: str) -> None:
    wrong(field, "is not an id", **{field: value})


def test_fresh_ids_are_ids_and_do_not_repeat() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {request(id=value).id for value in ids} == ids


@pytest.mark.parametrize("timeout", [0, -1, "0s", "-5m", timedelta(0), timedelta(microseconds=-1), 1e-9])
def test_a_timeout_must_be_longer_than_zero(timeout: object) -> None:
    wrong("timeout", "longer than zero", timeout=timeout)


def test_the_longest_timeout_is_seven_days() -> None:
    assert request(timeout="168h").timeout == MAX_TIMEOUT == timedelta(days=7)
    wrong("timeout", "not be longer than 7 days", timeout=MAX_TIMEOUT + timedelta(microseconds=1))


def test_the_shortest_timeout_is_a_microsecond() -> None:
    assert request(timeout="1us").timeout == timedelta(microseconds=1)


@pytest.mark.parametrize("user", ["", "root", "www-data", "_apt", "a.b", "svc$", "x" * 32])
def test_a_user_is_taken_by_name(user: str) -> None:
    assert request(user=user).user == user


@pytest.mark.parametrize(
    "user", ["0", "1000", "#0", "#-1", "-1", "+1", " root", "root ", "ro ot", "root\n", "röot", CYRILLIC, "a:b", "a/b"]
)
def test_a_user_by_number_or_with_strange_characters_is_refused(user: str) -> None:
    wrong("user", "is not a user name", user=user)


def test_a_user_name_has_at_most_32_characters() -> None:
    wrong("user", "is not a user name", user="x" * 33)


@pytest.mark.parametrize("path", ["tmp", "./tmp", "../tmp", "~", " /tmp", "C:\\"])
def test_a_working_directory_is_absolute(path: str) -> None:
    wrong("work_dir", "not an absolute path", work_dir=path)


def test_a_working_directory_holds_no_nul() -> None:
    wrong("work_dir", "NUL", work_dir="/tmp\0")


def test_a_working_directory_is_no_longer_than_the_kernel_takes() -> None:
    longest = "/" + "x" * (MAX_PATH_BYTES - 1)
    assert request(work_dir=longest).work_dir == longest
    wrong("work_dir", "longer than 4096", work_dir=longest + "x")


def test_a_requester_is_no_longer_than_a_spiffe_id() -> None:
    wrong("requested_by", "at most 2048", requested_by="x" * 2049)


def test_a_request_time_needs_a_zone() -> None:
    wrong("request_time", "zone", request_time=datetime(2026, 1, 1))  # noqa: DTZ001


def test_a_time_that_utc_cannot_hold_is_a_wrong_request_like_any_other() -> None:
    with pytest.raises(InvalidRequest, match="request_time"):
        make_request(
            {"agent_id": "a", "command": ["x"], "request_time": datetime.fromisoformat("0001-01-01T00:00:00+05:00")}
        )


@pytest.mark.parametrize("field", ["comand", "agentID", "Command", "shell", "work-dir"])
def test_an_unknown_field_is_refused_not_ignored(field: str) -> None:
    wrong(field, "not permitted", **{field: "x"})


def test_a_request_that_says_only_what_it_must_gets_careful_defaults() -> None:
    made = request()
    assert made.timeout is None  # policy says how long
    assert (made.stdin, made.environment, made.work_dir, made.user) == (b"", {}, "", "")
    assert not made.interactive
    assert not made.tty
    assert made.request_time.tzinfo is UTC


@pytest.mark.parametrize("missing", ["agent_id", "command"])
def test_agent_and_command_must_be_said(missing: str) -> None:
    values: dict[str, Any] = {"agent_id": "agent-1", "command": ["/bin/true"]}
    del values[missing]
    with pytest.raises(InvalidRequest, match="required"):
        ExecRequest(**values)


# --- values do not change ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "value"), [("command", ("x",)), ("agent_id", "b"), ("user", "root"), ("new", 1)])
def test_a_request_cannot_be_changed(field: str, value: object) -> None:
    made = request()
    with pytest.raises(ValidationError):
        setattr(made, field, value)
    assert made == request(id=made.id, request_time=made.request_time)


def test_changing_the_list_a_request_was_made_of_does_not_change_it() -> None:
    command, environment = ["/bin/true"], {"A": "1"}
    made = request(command=command, environment=environment)
    command.append("x")
    environment["B"] = "2"
    assert made.command == ("/bin/true",)
    assert made.environment == {"A": "1"}


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_a_request_of_the_spec_is_read_from_json() -> None:
    made = ExecRequest.model_validate_json(
        json.dumps(
            {
                "id": "job-7",
                "agentId": "web-1",
                "command": ["/usr/bin/uname", "-a"],
                "workDir": "/srv",
                "environment": {"LANG": "C"},
                "stdin": "aGk=",
                "timeout": "1m30s",
                "user": "web",
                "interactive": False,
                "tty": False,
                "requestedBy": "spiffe://tachikoma.local/user/alice",
                "requestTime": "2026-01-31T12:00:00Z",
            }
        )
    )
    assert made.stdin == b"hi"
    assert made.timeout == timedelta(seconds=90)
    assert made.request_time == NOW


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
REQUESTS = st.fixed_dictionaries(
    {
        "id": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True),
        "agent_id": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True),
        "command": st.lists(TEXT.filter(bool), min_size=1, max_size=5),
        "work_dir": TEXT.map(lambda text: f"/{text}"),
        "environment": st.dictionaries(TEXT.filter(lambda name: name and "=" not in name), TEXT, max_size=4),
        "stdin": st.binary(max_size=50),
        "timeout": st.none() | st.timedeltas(min_value=timedelta(microseconds=1), max_value=MAX_TIMEOUT),
        "user": st.sampled_from(["", "root", "web"]),
        "interactive": st.booleans(),
        "tty": st.booleans(),
        "terminal": st.none() | st.builds(Terminal, columns=st.integers(0, 65535), type=st.just("screen")),
        "requested_by": TEXT,
        "request_time": st.datetimes(timezones=st.just(UTC)),
    }
).map(lambda values: ExecRequest(**values))


@given(REQUESTS)
def test_any_request_survives_json(made: ExecRequest) -> None:
    assert ExecRequest.model_validate_json(made.to_json()) == made
    assert ExecRequest.model_validate(made.to_dict() | {"stdin": made.stdin}) == made


# --- untrusted values -------------------------------------------------------------------------------------------------


def test_make_request_makes_requests() -> None:
    assert make_request({"agent_id": "a", "command": ["x"]}).agent_id == "a"


def test_make_request_puts_what_is_wrong_into_an_invalid_request() -> None:
    with pytest.raises(InvalidRequest, match=r"invalid request: command: .*not one string"):
        make_request({"agent_id": "a", "command": "x"})


def test_a_terminal_has_a_size_and_a_type() -> None:
    terminal = Terminal(type="screen-256color", rows=50, columns=132, x_pixels=1056, y_pixels=800)
    assert terminal.size == WindowSize(50, 132, 1056, 800)
    assert Terminal.from_dict(terminal.to_dict()) == terminal
    assert Terminal().size == WindowSize(24, 80, 0, 0)


@pytest.mark.parametrize("kind", ["", "a b", "x\0", "../x", "-x", "é", "x" * 65, "x=y", "x\n"])
def test_a_type_is_a_name_of_terminfo(kind: str) -> None:
    with pytest.raises(InvalidRequest):
        Terminal(type=kind)


@pytest.mark.parametrize("field", ["rows", "columns", "x_pixels", "y_pixels"])
@pytest.mark.parametrize("value", [-1, 65536])
def test_a_size_fits_the_kernels(field: str, value: int) -> None:
    with pytest.raises(ValidationError):
        Terminal.model_validate({field: value})
