"""The quotas of one identity, which never count for another."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from tachikoma.errors import ResourceExhausted
from tachikoma_orchestrator.admission.call_quotas import RECEIVED_AT_ONCE, CallQuotas

ALICE, BOB = "spiffe://a/user/alice", "spiffe://a/user/bob"


def test_an_identity_has_only_so_many_calls_and_another_its_own() -> None:
    quotas = CallQuotas(calls=3, streams=3)
    with ExitStack() as calls:
        for _ in range(3):
            calls.enter_context(quotas.call(ALICE, stream=False))
        with pytest.raises(ResourceExhausted, match="3 calls in progress") as caught, quotas.call(ALICE, stream=False):
            pass
        assert (caught.value.metadata, caught.value.retry_after_seconds) == ({"limit": "calls"}, 1.0)
        with quotas.call(BOB, stream=True):
            pass
    with quotas.call(ALICE, stream=False):
        assert list(quotas._usage) == [ALICE]
    assert quotas._usage == {}


def test_streams_have_a_quota_of_their_own() -> None:
    quotas = CallQuotas(calls=10, streams=1)
    with quotas.call(ALICE, stream=True):
        with pytest.raises(ResourceExhausted, match="1 streams in progress"), quotas.call(ALICE, stream=True):
            pass
        with quotas.call(ALICE, stream=False):
            pass


def test_requests_in_progress_have_bounded_bytes_but_one_always_fits() -> None:
    quotas = CallQuotas(request_bytes=100)
    with quotas.call(ALICE, stream=False):
        with (
            quotas.holding(ALICE, 1000),
            pytest.raises(ResourceExhausted, match="requests of 1000 bytes"),
            quotas.holding(ALICE, 1),
        ):
            pass
        with quotas.holding(ALICE, 60), quotas.holding(ALICE, 40):
            pass


async def test_requests_are_received_a_few_at_a_time() -> None:
    quotas = CallQuotas()
    receiving = most = 0

    async def receive() -> None:
        nonlocal receiving, most
        with quotas.call(ALICE, stream=False):
            async with quotas.receiving(ALICE):
                receiving += 1
                most = max(most, receiving)
                await asyncio.sleep(0)
                receiving -= 1

    await asyncio.gather(*[receive() for _ in range(5 * RECEIVED_AT_ONCE)])
    assert most == RECEIVED_AT_ONCE
    assert quotas._usage == {}
