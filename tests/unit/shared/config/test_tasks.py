"""Supervision of background tasks."""

from __future__ import annotations

import asyncio

import pytest

from tachikoma.config.tasks import cancel_all, supervised


class Broken(Exception):
    pass


async def test_a_part_that_fails_ends_the_block_and_the_other_parts_with_its_error() -> None:
    ended: list[str] = []
    failing = asyncio.Event()

    async def fails() -> None:
        await failing.wait()
        raise Broken("reason")

    async def runs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("part")

    async def process() -> None:
        async with supervised(fails(), runs()):
            # Both have begun.
            await asyncio.sleep(0)
            failing.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("block")

    with pytest.raises(Broken, match="reason"):
        await process()
    assert sorted(ended) == ["block", "part"]


async def test_the_end_of_the_block_cancels_all_parts_and_waits_for_them() -> None:
    ended: list[str] = []

    async def part(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    async with supervised(part("first")) as supervisor:
        supervisor.start(part("second"))
        await asyncio.sleep(0)
    assert sorted(ended) == ["first", "second"]


async def test_a_part_that_returns_leaves_the_others_alone() -> None:
    async def short() -> int:
        return 7

    async with supervised() as supervisor:
        other = supervisor.start(asyncio.Event().wait())
        assert await supervisor.start(short()) == 7
        assert not other.done()


async def test_an_error_of_the_block_is_raised_as_it_is() -> None:
    with pytest.raises(Broken):
        async with supervised(asyncio.Event().wait()):
            raise Broken


async def test_a_cancelled_process_cancels_its_parts() -> None:
    cancelled = asyncio.Event()

    async def part() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def process() -> None:
        async with supervised(part()):
            await asyncio.Event().wait()

    task = asyncio.create_task(process())
    # It has begun after one turn of the loop.
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()


@pytest.mark.slow
async def test_a_part_that_loses_a_cancellation_is_cancelled_again() -> None:
    lost = 0

    async def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1
                if lost > 1:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await cancel_all([task])
    assert task.done()
    assert lost == 2
