"""The format of the audit log: its lines, its files, and where it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit_chain import chain, event, events
from tachikoma.audit import chain as module
from tachikoma.audit.chain import (
    FIRST_PREV,
    ChainEnd,
    audit_files,
    encode,
    last_number,
    line_digest,
    read_end,
    read_events,
    read_lines,
)
from tachikoma.errors import ConfigurationError
from tachikoma.identity.file_source import FileSvidSource


def test_a_line_names_the_digest_of_the_one_before_it() -> None:
    first, end = ChainEnd().append("chain", {"host": "ä"})
    assert first == b'{"line":1,"prev":"%s","chain":{"host":"\xc3\xa4"}}' % FIRST_PREV.encode()
    second, end = end.append_event(event(1))
    assert f'{{"line":2,"prev":"{line_digest(first)}","event":{{'.encode() in second
    assert (end.line, end.head, end.cursor, end.seq, end.unsigned) == (2, line_digest(second), event(1).cursor, 1, 1)


def test_an_event_without_a_number_leaves_the_number_as_it_was() -> None:
    altered = event(5).model_copy(update={"seq": 0})
    end = ChainEnd(seq=4).append_event(altered)[1]
    assert (end.cursor, end.seq) == (altered.cursor, 4)
    assert last_number([event(3), altered], 0) == 3
    assert last_number([altered], 7) == 7


def test_files_are_listed_from_the_oldest_and_others_are_not(tmp_path: Path) -> None:
    names = ["audit-000000000001.jsonl", "audit-000000000040.jsonl", "audit.jsonl"]
    for name in [*names[::-1], "audit-1.jsonl", "audit-000000000001.jsonl.gz", "other.jsonl"]:
        (tmp_path / name).write_text("")
    assert [file.name for file in audit_files(tmp_path)] == names
    assert [file.name for file in audit_files(tmp_path / "audit.jsonl")] == names
    with pytest.raises(ConfigurationError, match="there is no audit log"):
        audit_files(tmp_path / "no.jsonl")


@given(
    contents=st.lists(st.lists(st.binary(max_size=9).map(lambda it: it.replace(b"\n", b"_")), max_size=6), max_size=3),
    rest=st.binary(max_size=9).map(lambda it: it.replace(b"\n", b"_")),
    block=st.integers(1, 20),
)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_lines_are_read_backwards_as_they_are_read_forwards(
    contents: list[list[bytes]], rest: bytes, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of the blocks in which the files are read; what follows the last line break is left out."""
    monkeypatch.setattr(module, "BLOCK_BYTES", block)
    files = [tmp_path / str(number) for number in range(len(contents))]
    for file, lines in zip(files, contents, strict=True):
        file.write_bytes(b"".join(line + b"\n" for line in lines) + rest)
    assert list(module._lines_backwards(files)) == [line for lines in contents for line in lines][::-1]


@given(
    seqs=st.lists(st.booleans(), max_size=30), every=st.integers(0, 7), cuts=st.lists(st.integers(0, 40), max_size=3)
)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_the_end_that_is_read_is_the_end_that_was_written(
    seqs: list[bool], every: int, cuts: list[int], tmp_path: Path, identity: FileSvidSource
) -> None:
    """Over any number of files, with events that have a number and events that have none."""
    given = [event(at).model_copy(update={} if known else {"seq": 0}) for at, known in enumerate(seqs, 1)]
    end = ChainEnd()
    expected = ChainEnd()
    lines = chain(identity, given, every=every)
    items = iter(given)
    for line in lines:
        kind = "event" if b'"event":{' in line else "checkpoint" if b'"checkpoint":' in line else "chain"
        if kind == "event":
            expected = expected.append_event(next(items))[1]
        elif kind == "checkpoint":
            token = line.split(b'"checkpoint":"')[1].split(b'"')[0].decode()
            expected = expected.append_checkpoint(token)[1]
        else:
            expected = ChainEnd(line=1, head=line_digest(line[:-1]))
    places = sorted({min(cut, len(lines)) for cut in cuts})
    files = []
    for number, (begin, stop) in enumerate(zip([0, *places], [*places, len(lines)], strict=True)):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(b"".join(lines[begin:stop]))
    end = read_end(files)
    assert end == expected


def test_a_file_that_is_no_audit_log_has_no_end(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    for content in (b"hello\n", b"[]\n", b'{"line":"x"}\n', b'{"line":1,"event":{}}\n'):
        file.write_bytes(content)
        with pytest.raises((ValueError, TypeError, KeyError)):
            read_end([file])


def test_events_are_read_as_they_were_written(tmp_path: Path, identity: FileSvidSource) -> None:
    file = tmp_path / "audit.jsonl"
    file.write_bytes(b"".join(chain(identity, events(1, 20), every=7)))
    assert list(read_events(tmp_path)) == events(1, 20)
    assert [number for _, number, _ in read_lines([file])] == list(range(1, 25))


@pytest.mark.parametrize("line", [b"x", b"[" * 9999, b"5", encode({"event": {"seq": "x"}})])
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "audit.jsonl"
    file.write_bytes(encode({"chain": {}}) + b"\n" + line + b"\n")
    with pytest.raises(ConfigurationError, match=f"^{file}:2: "):
        list(read_events(file))
