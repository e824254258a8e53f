"""What a response holds of an output stream."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma_worker.output.excerpt import Excerpt

CHUNKS = st.lists(st.binary(max_size=40), max_size=12)


def taken(limit: int, chunks: list[bytes]) -> Excerpt:
    excerpt = Excerpt(limit)
    for chunk in chunks:
        excerpt.add(chunk)
    return excerpt


@given(CHUNKS, st.integers(1, 80))
def test_content_count_and_digests_are_those_of_the_whole(chunks: list[bytes], limit: int) -> None:
    whole = b"".join(chunks)
    head, tail = limit // 2, limit - limit // 2
    expected = whole if len(whole) <= limit else whole[:head] + whole[-tail:]
    excerpt = taken(limit, chunks)
    digest = excerpt.digest()
    assert excerpt.content() == expected
    assert excerpt.total == digest.total_bytes == len(whole)
    assert excerpt.truncated == digest.truncated == (len(whole) > limit)
    assert digest.sha256 == hashlib.sha256(whole).hexdigest()
    assert digest.excerpt_sha256 == hashlib.sha256(expected).hexdigest()


@given(CHUNKS, st.integers(1, 80))
def test_content_can_be_asked_for_at_any_time(chunks: list[bytes], limit: int) -> None:
    excerpt = Excerpt(limit)
    for number, chunk in enumerate(chunks, 1):
        excerpt.add(chunk)
        assert excerpt.content() == taken(limit, [b"".join(chunks[:number])]).content()


@given(st.binary(max_size=200), st.integers(1, 80), st.integers(1, 50))
def test_the_size_of_chunks_makes_no_difference(whole: bytes, limit: int, size: int) -> None:
    chunks = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert taken(limit, chunks).digest() == taken(limit, [whole]).digest()
    assert taken(limit, chunks).content() == taken(limit, [whole]).content()


def test_nothing_is_the_digest_of_nothing() -> None:
    digest = Excerpt(10).digest()
    assert digest.sha256 == digest.excerpt_sha256 == hashlib.sha256().hexdigest()
    assert (digest.total_bytes, digest.truncated) == (0, False)


def test_exactly_the_limit_is_the_whole_and_one_byte_more_is_not() -> None:
    assert taken(4, [b"abcd"]).content() == b"abcd"
    assert not taken(4, [b"abcd"]).truncated
    assert taken(4, [b"abcde"]).content() == b"abde"
    assert taken(4, [b"abcde"]).truncated


@pytest.mark.parametrize("size", [7, 1000, 64 * 1024])
def test_what_is_held_is_bounded_however_much_comes(size: int) -> None:
    excerpt = Excerpt(1000)
    for _ in range(2_000_000 // size):
        excerpt.add(bytes(size))
        assert len(excerpt._head) + len(excerpt._tail) <= 2 * 1000 + size
    assert len(excerpt.content()) == 1000
