"""Checks of a part's connection to Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta

from redis.exceptions import RedisError

from tachikoma.diagnosis.findings import Finding
from tachikoma.errors import ConfigurationError
from tachikoma.redis.access import RedisAccess, connect
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.clock import micros_since, milliseconds, now_ms, redis_ms, seconds_of_ms

__all__ = ["check_redis"]

#: Short answers that are timed, and the median time above which each execution is slow.
ANSWERS, SLOW_MS = 9, 5.0
#: Difference of the clocks from which on times are misleading. Beyond a minute, orders are refused.
SKEW_MS = 1000
#: Texts in the errors of a Redis that knows no such user, or another password.
REFUSALS = ("username-password", "Authentication required")


def check_redis(access: Callable[[], RedisAccess], *, clock: bool = True) -> Iterator[Finding]:
    """Check that Redis can be used with a part's own user, answers quickly, and agrees on the time.

    Args:
        access: returns the part's access; its errors become findings.
        clock: whether the part's user may ask for the time. An agent may not: the orchestrators compare its clock, and
            `tachikoma agents` shows a difference.
    """
    try:
        found = access()
    except ConfigurationError as error:
        yield Finding(where="TACHIKOMA_REDIS_…", what=str(error), remedy="correct the setting: docs/settings.md")
        return
    yield from asyncio.run(_collect(found, clock=clock))


async def _collect(access: RedisAccess, *, clock: bool) -> list[Finding]:
    return [finding async for finding in _examine(access, clock)]


async def _examine(access: RedisAccess, clock: bool) -> AsyncIterator[Finding]:
    where = "TACHIKOMA_REDIS_URL"
    client = connect(access, name="doctor", max_connections=1)
    try:
        times: list[timedelta] = []
        for _ in range(ANSWERS):
            start = time.monotonic_ns()
            await client.execute_command("PING")
            times.append(timedelta(microseconds=micros_since(start)))
        if (typical := milliseconds(sorted(times)[ANSWERS // 2])) > SLOW_MS:
            yield Finding(
                where=where,
                what=f"Redis needs {typical:.1f} ms for a short answer; each execution waits several times as long",
                remedy="use a Redis on a nearer network, or one with less load",
            )
        if clock and (finding := await _check_clock(client)) is not None:
            yield finding
    except (RedisError, OSError) as error:
        refused = any(text in str(error) for text in REFUSALS)
        yield Finding(
            where=where,
            what=f"{'Redis refuses user or password' if refused else 'no connection to Redis'}: {error}",
            remedy="compare the password file with the users of Redis: tachikoma redis check --passwords FOLDER"
            if refused
            else "check address, certificates and firewall, and whether Redis runs",
        )
    finally:
        await client.aclose()


async def _check_clock(client: Redis) -> Finding | None:
    """Compare this host's clock with that of Redis."""
    skew = min([now_ms() - redis_ms(*await client.time()) for _ in range(ANSWERS)], key=abs)
    if abs(skew) <= SKEW_MS:
        return None
    order = "ahead of" if skew > 0 else "behind"
    return Finding(
        where="clock",
        what=f"this host's clock is {seconds_of_ms(abs(skew)):.1f} s {order} that of Redis",
        remedy="synchronise both clocks (chrony, systemd-timesyncd)",
    )
