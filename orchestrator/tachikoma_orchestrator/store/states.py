"""The states of many executions, as their records in Redis contain them."""

from __future__ import annotations

from collections.abc import Sequence

from redis.exceptions import ResponseError

from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.states import ExecState

__all__ = ["stored_states"]

_STATES = {state.value.encode(): state for state in ExecState}


async def stored_states(redis: Redis, exec_ids: Sequence[str]) -> list[ExecState | None]:
    """Return the states of executions in the given order, in one round trip; None for one without a readable record.

    Args:
        redis: the connections.
        exec_ids: the executions, of which the caller bounds the number.

    Raises:
        redis errors: Redis failed.
    """
    async with redis.pipeline(transaction=False) as pipe:
        for exec_id in exec_ids:
            pipe.hget(keys.execution(exec_id), "state")
        answers = await pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception) and not (isinstance(answer, ResponseError) and wrong_type(answer)):
            raise answer
    return [_STATES.get(answer) if isinstance(answer, bytes) else None for answer in answers]
