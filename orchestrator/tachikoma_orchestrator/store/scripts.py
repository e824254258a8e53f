"""Calls of the Lua scripts: each is known to Redis by its hash, and two can share one round trip.

A script takes its keys, one JSON object with all named arguments, and payloads: texts and bytes that JSON cannot hold,
or that are too large to escape. `docs/decisions/0022` says why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from redis.exceptions import NoScriptError, ResponseError

from tachikoma.errors import Unavailable
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.metrics import REDIS_SECONDS
from tachikoma_orchestrator.store import lua
from tachikoma_orchestrator.store.known import Known, known

__all__ = ["Call", "JsonObject", "Runner", "Script", "flat"]

#: Arguments of a script. Without None, which is true in Lua, and without float, which loses digits there.
JsonValue: TypeAlias = "str | int | bool | Sequence[JsonValue] | Mapping[str, JsonValue]"
JsonObject: TypeAlias = Mapping[str, JsonValue]

#: Waits, without limit, until everything this connection wrote is on the disk of Redis; WAITAOF(1) of Redis 7.2.
WAIT_FOR_DISK = ("WAITAOF", 1, 0, 0)
#: Longest wait for the replicas, in milliseconds.
REPLICAS_MS = 2000


def flat(values: Mapping[str, str]) -> list[str]:
    """Return names and values as one list, the form in which HSET and XADD take them and Lua keeps their order."""
    return [part for pair in values.items() for part in pair]


@dataclass(frozen=True, slots=True)
class Call:
    """A script with its keys and arguments."""

    script: Script
    keys: Sequence[str]
    args: JsonObject
    payloads: Sequence[str | bytes]

    @property
    def command(self) -> tuple[str | int | bytes, ...]:
        """The Redis command."""
        args = json.dumps(self.args, ensure_ascii=False, separators=(",", ":"))
        return ("EVALSHA", self.script.sha1, len(self.keys), *self.keys, args, *self.payloads)


class Script:
    """A Lua script and its hash, by the name of its file."""

    def __init__(self, name: str) -> None:
        self.source = lua.load(name)
        self.sha1 = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, *, keys: Sequence[str], args: JsonObject, payloads: Sequence[str | bytes] = ()) -> Call:
        """Return a call of the script.

        Args:
            keys: the Redis keys it uses, in the order that its header documents.
            args: its named arguments.
            payloads: its other arguments, in the order that its header documents.
        """
        return Call(self, keys, args, payloads)


class Runner:
    """Runs scripts, and loads them into a Redis that does not know them."""

    def __init__(self, redis: Redis, values: Known | None = None) -> None:
        """Prepare a runner of scripts.

        Args:
            redis: the connections.
            values: known facts about Redis; None for those that the connections share.
        """
        self._redis = redis
        self._known = values or known(redis)
        self._disk_checked = False

    async def run(self, call: Call, *, confirmed: bool = False) -> Any:
        """Run one script and return its result.

        Args:
            call: the script.
            confirmed: True if its changes must be on the replicas, where Redis has some, before this returns.

        Raises:
            Unavailable: the replicas did not confirm the changes.
            redis errors: Redis failed.
        """
        waits = self._wait_for_replicas() if confirmed else []
        answers = await self._run([call], [call.command, *waits], transaction=False)
        if waits and not await self._known.suffice(int(answers[-1])):
            raise _unconfirmed()
        return self._result(answers[0])

    def waits_between(self, *, durable: bool) -> bool:
        """Return whether `run_all` waits for a confirmation between the first scripts and those that follow."""
        return durable or bool(self._known.replicas)

    async def run_all(self, first: Sequence[Call], then: Sequence[Call], *, durable: bool) -> list[Any]:
        """Run scripts and return the results of the first ones; in one round trip, unless replicas must confirm them.

        Args:
            first: the scripts that run before the others; a repetition of all must change nothing.
            then: the scripts that follow them.
            durable: True if these wait until the changes of the first ones are on disk. Otherwise all are one
                transaction.

        Raises:
            Unavailable: Redis cannot report what is on its disk, or the replicas did not confirm the changes of the
                first ones.
        """
        durable = durable and bool(then)
        if durable:
            await self._check_disk([*first, *then])
        begin, rest = [call.command for call in first], [call.command for call in then]
        disk = [WAIT_FOR_DISK] if durable else []
        if waits := self._wait_for_replicas():
            answers = await self._run(first, [*begin, *disk, *waits], transaction=False)
            if not await self._known.suffice(int(answers[-1])):
                raise _unconfirmed()
            answers[len(first) :] = await self._run(then, rest, transaction=True) if then else []
        else:
            answers = await self._run([*first, *then], [*begin, *disk, *rest], transaction=not durable)
            del answers[len(first) : len(first) + len(disk)]
        return [self._result(answer) for answer in answers][: len(first)]

    def _wait_for_replicas(self) -> list[tuple[str, int, int]]:
        """Return the command that waits until all that this connection wrote is on the replicas; none without them.

        It returns the number of replicas that have all of it.
        """
        return [("WAIT", self._known.replicas, REPLICAS_MS)] if self._known.replicas else []

    async def _run(
        self, calls: Sequence[Call], commands: Sequence[tuple[str | int | bytes, ...]], *, transaction: bool
    ) -> list[Any]:
        """Send commands, and return their answers; `calls` are the scripts among them."""
        try:
            return await self._send(commands, transaction=transaction)
        except NoScriptError:
            # Redis was restarted, or its script cache was flushed. A repetition changes nothing, so all are sent again.
            await self._load(calls)
            return await self._send(commands, transaction=transaction)

    def _result(self, answer: tuple[Any, Sequence[Any]]) -> Any:
        """Return the result in a script's answer, and remember the audit event that it appended."""
        result, written = answer
        if written:
            self._known.note(int(written[0]), written[1].decode())
        return result

    async def _send(self, commands: Sequence[tuple[str | int | bytes, ...]], *, transaction: bool) -> list[Any]:
        """Send commands in one round trip, and return their answers. Raises redis errors."""
        with REDIS_SECONDS.time():
            return await self._answers(commands, transaction=transaction)

    async def _answers(self, commands: Sequence[tuple[str | int | bytes, ...]], *, transaction: bool) -> list[Any]:
        if len(commands) == 1:
            return [await self._redis.execute_command(*commands[0])]
        async with self._redis.pipeline(transaction=transaction) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            answers: list[Any] = await pipe.execute(raise_on_error=False)
        # Raised unchanged: redis-py would put the command before the message, and with it the order.
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def _load(self, calls: Sequence[Call]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for source in dict.fromkeys(call.script.source for call in calls):
                pipe.script_load(source)
            await pipe.execute()

    async def _check_disk(self, calls: Sequence[Call]) -> None:
        """Check once that Redis can wait for its disk; in a round trip the next command would run after an error.

        The scripts are loaded then, too. If Redis knew only the first ones, which run alone elsewhere, they would be
        sent again, and return that they have run before.
        """
        if self._disk_checked:
            return
        try:
            await self._redis.execute_command("WAITAOF", 1, 0, 1)
        except ResponseError as error:
            raise Unavailable(
                f"the orchestrator's Redis cannot report when the audit trail is on disk ({error}); switch on "
                "appendonly in Redis 7.2 or newer, or set TACHIKOMA_AUDIT_DURABLE=false",
                metadata={"dependency": "redis"},
            ) from None
        await self._load(calls)
        self._disk_checked = True


def _unconfirmed() -> Unavailable:
    return Unavailable(
        "the replicas of Redis did not confirm the change in time, so a failover could undo it; "
        "repeat the call, which is safe, and check the replicas of Redis",
        metadata={"dependency": "redis"},
    )
