"""Lines of parts: they come back as they were written, also after a process was killed in the middle of one."""

from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.audit import AuditedRequest
from tachikoma_orchestrator.recordings.parts import Event, Origin, Output, encode, is_output, numbered, read_lines

NUMBERS = st.integers(0, 2**40)
OUTPUTS = st.builds(Output, st.integers(1, 2**40), NUMBERS, NUMBERS, st.booleans(), st.binary(max_size=40))
CODES = st.one_of(
    st.tuples(st.just("m"), st.text(max_size=20)),
    st.tuples(st.just("i"), st.binary(max_size=20).map(lambda data: base64.b64encode(data).decode())),
    st.tuples(
        st.just("r"), st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(lambda size: f"{size[0]}x{size[1]}")
    ),
)
EVENTS = st.builds(
    lambda offset, time_us, what, place: Event(offset, time_us, *what, place), NUMBERS, NUMBERS, CODES, NUMBERS
)
ORIGIN = Origin("web-1", "spiffe://e/user/a", "shell@12", AuditedRequest(command=("bash",), tty=True), True, 5)


@given(st.lists(OUTPUTS | EVENTS | st.just(ORIGIN), max_size=6), st.integers(0, 30))
def test_lines_come_back_without_the_one_that_was_cut(lines: list[Output | Event | Origin], cut: int) -> None:
    raw = [encode(line) for line in lines]
    assert list(read_lines(raw)) == lines
    if lines:
        begun = raw[-1][: -1 - cut]
        assert list(read_lines([*raw[:-1], begun])) == lines[:-1]


def test_a_line_of_another_writer_is_ignored() -> None:
    wrong = [
        b"\n",
        b"{}\n",
        b"[]\n",
        b'["o",1]\n',
        b'["r","a","b","c",{},1,1]\n',
        b'["e",1,2,"m","t","x"]\n',
        b"\xff\n",
        # Numbers that are none, or larger than any; data that do not fit their code.
        b'["o",Infinity,0,0,0,""]\n',
        b'["o",1,-1,0,0,""]\n',
        b'["o",1,0,%d,0,""]\n' % 10**400,
        b'["o",1.5,0,0,0,""]\n',
        b'["e",1,2,"r","80",0]\n',
        b'["e",1,2,"r","axb",0]\n',
        b'["e",1,2,"r","800000x24",0]\n',
        b'["e",1,2,"i","***",0]\n',
        b'["e",1,2,"o","x",0]\n',
        b"[" * 100_000 + b"\n",
    ]
    assert list(read_lines(wrong)) == []


@given(st.lists(st.lists(st.integers(1, 30), max_size=20).map(sorted), max_size=4))
def test_each_chunk_of_several_recorders_counts_once(numbers: list[list[int]]) -> None:
    parts = [[Output(number, number, 0, False, bytes([number])) for number in part] for part in numbers]
    assert [output.seq for output in numbered(parts)] == sorted({number for part in numbers for number in part})


def test_parts_are_told_apart_by_their_names() -> None:
    assert is_output("output-1f")
    assert not is_output("events-1f")
