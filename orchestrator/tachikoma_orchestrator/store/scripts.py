"""Running the Lua scripts: known to Redis by their hash, several in one round trip."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from tachikoma.errors import Unavailable
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.store import lua

__all__ = ["Call", "Runner", "Script"]

#: Waits, without bound, until everything this connection wrote is on the disk of Redis; WAITAOF(1) of Redis 7.2.
WAIT_FOR_DISK = ("WAITAOF", 1, 0, 0)


@dataclass(frozen=True, slots=True)
class Call:
    """A script with its keys and arguments."""

    script: Script
    keys: Sequence[str]
    args: Sequence[str | int | bytes]

    @property
    def command(self) -> tuple[str | int | bytes, ...]:
        """As Redis takes it."""
        return ("EVALSHA", self.script.sha1, len(self.keys), *self.keys, *self.args)


class Script:
    """A script, by the name of its file."""

    def __init__(self, name: str) -> None:
        self.source = lua.load(name)
        self.sha1 = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, *, keys: Sequence[str], args: Sequence[str | int | bytes]) -> Call:
        """A call of it."""
        return Call(self, keys, args)


class Runner:
    """Runs scripts, and gives them to a Redis that does not have them."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._disk_checked = False

    async def run(self, call: Call) -> Any:
        """Run one script. Raises redis errors."""
        return (await self._run([call], durable=False))[0]

    async def run_both(self, first: Call, second: Call, *, durable: bool) -> tuple[Any, Any]:
        """Run two scripts in one round trip.

        Args:
            first, second: in this order; they must bear repetition.
            durable: whether the second waits until what the first wrote is on disk. Otherwise they are one transaction.

        Raises:
            Unavailable: Redis cannot say what is on its disk.
        """
        if durable:
            await self._check_disk()
        one, two = await self._run([first, second], durable=durable)
        return one, two

    async def _run(self, calls: Sequence[Call], *, durable: bool) -> list[Any]:
        commands = [call.command for call in calls]
        if durable:
            commands.insert(1, WAIT_FOR_DISK)
        for attempt in range(2):
            try:
                if len(commands) == 1:
                    return [await self._redis.execute_command(*commands[0])]
                async with self._redis.pipeline(transaction=not durable) as pipe:
                    for command in commands:
                        pipe.execute_command(*command)
                    answers: list[Any] = await pipe.execute(raise_on_error=False)
                # Raised as they are: what redis-py would put before them quotes the command, and with it the order.
                for answer in answers:
                    if isinstance(answer, Exception):
                        raise answer
            except NoScriptError:
                # Redis was started anew, or emptied of its scripts. What ran of them bears repetition.
                if attempt:
                    raise
                async with self._redis.pipeline(transaction=False) as pipe:
                    for call in calls:
                        pipe.script_load(call.script.source)
                    await pipe.execute()
                continue
            return [answers[0], answers[-1]]
        raise AssertionError("unreachable")

    async def _check_disk(self) -> None:
        """See once that Redis can wait for its disk: what comes after that in a round trip would not heed its error."""
        if self._disk_checked:
            return
        try:
            await self._redis.execute_command("WAITAOF", 1, 0, 1)
        except ResponseError as error:
            raise Unavailable(
                f"the orchestrator's Redis cannot say when the audit trail is on disk ({error}); switch on appendonly "
                "in Redis 7.2 or newer, or set TACHIKOMA_AUDIT_DURABLE=false",
                metadata={"dependency": "redis"},
            ) from None
        self._disk_checked = True
