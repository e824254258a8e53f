"""The states of many executions, read from a real Redis."""

from __future__ import annotations

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.store.states import stored_states


async def test_each_state_is_returned_in_order_and_none_for_what_is_no_record(redis: Redis) -> None:
    for state in ExecState:
        await redis.hset(keys.execution(state.value), "state", state.value)
    await redis.hset(keys.execution("unknown"), "state", "NO SUCH STATE")
    await redis.hset(keys.execution("stateless"), "agent", "web-1")
    await redis.set(keys.execution("text"), "no hash")
    named = [state.value for state in ExecState]
    states = await stored_states(redis, ["text", *named, "missing", "unknown", "stateless"])
    assert states == [None, *ExecState, None, None, None]
    assert await stored_states(redis, []) == []
