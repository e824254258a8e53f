"""Messages of a session in Redis."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.sessions.messages import (
    MAX_ENTRY_BYTES,
    Answer,
    Entry,
    Notice,
    Offer,
    OfferWanted,
    Sealed,
    decode_entry,
    decode_notice,
    encode_entry,
    encode_notice,
)

TOKENS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=100)
ENTRIES: st.SearchStrategy[Entry] = st.builds(Offer, TOKENS) | st.builds(Sealed, st.binary(max_size=100))
NOTICES: st.SearchStrategy[Notice] = st.one_of(
    st.builds(Answer, TOKENS), st.builds(Sealed, st.binary(max_size=100)), st.just(OfferWanted())
)


@given(ENTRIES)
def test_an_entry_reads_as_it_was_written(entry: Entry) -> None:
    assert decode_entry(encode_entry(entry)) == entry


@given(NOTICES)
def test_a_notice_reads_as_it_was_written(notice: Notice) -> None:
    assert decode_notice(encode_notice(notice)) == notice


@given(st.binary(max_size=60))
def test_garbage_is_no_notice(raw: bytes) -> None:
    try:
        notice = decode_notice(raw)
    except ValueError:
        return
    assert encode_notice(notice) == raw


@given(st.dictionaries(st.sampled_from([b"o", b"f", b"x", b""]), st.binary(max_size=20), max_size=3))
def test_garbage_is_no_entry(fields: dict[bytes, bytes]) -> None:
    try:
        entry = decode_entry(fields)
    except ValueError:
        return
    assert encode_entry(entry) == fields


def test_sizes_have_bounds() -> None:
    with pytest.raises(ValueError, match="not an entry"):
        decode_entry({b"f": bytes(MAX_ENTRY_BYTES + 1)})
    with pytest.raises(ValueError, match="not a notice"):
        decode_notice(b"F" + bytes(MAX_ENTRY_BYTES))
