"""What audit events contain of a request: all of an accepted one, a bounded part of a refused one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.policy.masking.redaction import redact
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.audit.requests import RetainedRequest, clipped, refused, retained

#: Bytes of a refused request in an event, whatever it contains.
MOST_BYTES = 5 * 1024

NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,63}", fullmatch=True)
TEXTS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
    st.sampled_from(["'", "\\", '"', "ä", "😀", "\n", "x", " "]).flatmap(
        lambda character: st.integers(0, 2000).map(lambda number: character * number)
    ),
)


def make(command: list[str], directory: int, variables: int) -> ExecRequest:
    return ExecRequest(
        agent_id="web-1", command=("/bin/x", *command), work_dir="/" + "ä" * directory,
        environment={f"{'V' * (number % 60)}_{number}".lstrip("_0123456789") or "V": "" for number in range(variables)},
    )  # fmt: skip


REQUESTS = st.builds(
    make, st.lists(TEXTS, max_size=10).flatmap(lambda few: st.sampled_from([few, few * 5])), st.integers(0, 2000),
    st.integers(0, 200),
)  # fmt: skip


def whole(request: ExecRequest) -> RetainedRequest:
    return retained(request, redact(request.command))


def size(part: RetainedRequest) -> int:
    return len(part.command.encode()) + len(part.request.to_json().encode())


@given(REQUESTS)
def test_a_refused_request_is_bounded_whatever_it_contains(request: ExecRequest) -> None:
    part = refused(whole(request))
    assert size(part) <= MOST_BYTES
    assert part.request.command[0] == "/bin/x"
    assert (part.request.user, part.request.stdin_bytes) == (request.user, len(request.stdin))


@given(st.lists(st.text("abc -=/.", max_size=60), max_size=8), st.dictionaries(NAMES, st.just("v"), max_size=5))
def test_an_ordinary_request_is_retained_whole(arguments: list[str], environment: dict[str, str]) -> None:
    request = ExecRequest(agent_id="web-1", command=("ls", *arguments), environment=environment, work_dir="/srv")
    assert refused(whole(request)) == whole(request)
    part = whole(request)
    assert refused(part) is part


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("x", "a" * 2000), ("x", f"{'a' * 256}…(+1744)")),
        (("x", *["a" * 200] * 9), ("x", *["a" * 200] * 5, f"{'a' * 17}…(+183)", "…(+3 more)")),
        (("x", *["ä" * 255] * 3), ("x", "ä" * 255, "ä" * 255, "…(+255)")),
        (("x", "\n" * 2000), ("x", f"{chr(92) + 'n'}" * 256 + "…(+1744)")),
    ],
)
def test_the_beginning_is_retained_with_the_number_left_out(command: tuple[str, ...], shown: tuple[str, ...]) -> None:
    assert refused(whole(ExecRequest(agent_id="web-1", command=command))).request.command == shown


def test_names_of_variables_are_retained_from_the_first() -> None:
    request = ExecRequest(agent_id="web-1", command=("x",), environment={f"APP_{n:03}": "" for n in range(200)})
    names = refused(whole(request)).request.environment
    assert names[:2] == ("APP_000", "APP_001")
    assert len(names) < 70
    assert names[-1].startswith("…(+")
    assert len(whole(request).request.environment) == 200


@given(st.text(max_size=200), st.integers(0, 100))
def test_a_clipped_text_says_how_much_it_lacks(text: str, limit: int) -> None:
    text = text.encode(errors="ignore").decode()
    shown = clipped(text, limit)
    if len(text.encode()) <= limit:
        assert shown == text
    else:
        beginning, _, rest = shown.rpartition("…(+")
        assert text.startswith(beginning)
        assert len(beginning.encode()) <= limit
        assert int(rest.rstrip(")")) == len(text) - len(beginning)
