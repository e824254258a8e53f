"""The custom Celery pool: its traps, measured once, are tests here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis import Redis
from support import AGENT, kill_redis, prepare, request, wait_until

from order_queues import queue_of, waiting_orders
from tachikoma import AsyncClient, Client, PermissionDenied
from tachikoma.dev.identities import own_user
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import user_id

COMMANDS = 80
#: Less than these commands take when every second one waits for a second.
STALLED_SECONDS = 38


async def _run(stack: Stack, count: int, *command: str) -> list[int]:
    async with AsyncClient(stack.profile()) as client:
        responses = await asyncio.gather(*(client.execute(request(*command)) for _ in range(count)))
    return [response.exit_code for response in responses]


def test_sixty_commands_run_at_once(stack: Stack, tmp_path: Path) -> None:
    # Each waits until sixty are there: with one fewer at once, none would ever end.
    script = f'touch {tmp_path}/$$; while [ "$(ls {tmp_path} | wc -l)" -lt 60 ]; do sleep 0.1; done'
    assert asyncio.run(_run(stack, 60, "sh", "-c", script)) == [0] * 60


@pytest.mark.long
def test_more_callers_than_slots_never_stall_before_or_after_a_broker_reconnect(
    tmp_path: Path, redis_server: Path | None
) -> None:
    environment = {"TACHIKOMA_SLOTS": "2", "TACHIKOMA_POLL": "20s"}
    with Stack(prepare(tmp_path), redis_server=redis_server, environment=environment) as stack:
        # Without a wake-up of Celery's hub every second command waits for its 1 s timer (32/s fell to 2/s): so the
        # bound is not about speed.
        assert asyncio.run(asyncio.wait_for(_run(stack, COMMANDS, "true"), STALLED_SECONDS)) == [0] * COMMANDS
        for _ in range(2):
            kill_redis(stack)
            stack.start_redis()
            stack.wait_for_agents()
            assert asyncio.run(asyncio.wait_for(_run(stack, COMMANDS, "true"), STALLED_SECONDS)) == [0] * COMMANDS


def test_output_flows_on_while_the_broker_is_away_from_celery(own_stack: Stack, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with Client(own_stack.profile()) as client:
        wanted = request("sh", "-c", f"echo one; while [ ! -e {go} ]; do sleep 0.01; done; echo two; exit 6")
        client.submit(wanted)
        wait_until(lambda: client.list_page(include_ended=True)[0][0].state == "STARTED", "it runs")
        kill_redis(own_stack)
        go.touch()
        own_stack.start_redis()
        outputs = list(client.attach(wanted.id))
    assert b"".join(output.data for output in outputs) == b"one\ntwo\n"
    assert outputs[-1].result is not None
    assert outputs[-1].result.exit_code == 6


def test_one_requesters_commands_leave_slots_and_turns_for_another(tmp_path: Path, redis_server: Path | None) -> None:
    go, running = tmp_path / "go", tmp_path / "running"
    running.mkdir()
    me = user_id(TRUST_DOMAIN, own_user())
    names = (user_id(TRUST_DOMAIN, name) for name in ("bob", "carol", "dave", "erin"))
    other = next(name for name in names if queue_of(name, AGENT) != queue_of(me, AGENT))
    with (
        Stack(prepare(tmp_path), redis_server=redis_server, environment={"TACHIKOMA_SLOTS": "16"}) as stack,
        Client(stack.profile()) as client,
        Client(stack.issue(other)) as friend,
        Redis(**stack.redis_admin) as redis,
    ):
        policy = stack.policy.read_text()
        stack.policy.write_text(policy.replace(f'subjects: ["{me}"', f'subjects: ["{me}", "{other}"'))
        script = f"touch {running}/$$; while [ ! -e {go} ]; do sleep 0.2; done"
        jobs = [request("sh", "-c", script, timeout=600) for _ in range(20)]
        for job in jobs:
            client.submit(job)
        wait_until(lambda: len(list(running.iterdir())) == 15, "all slots but the reserved one are taken")

        def served() -> bool:
            try:
                return friend.execute(request("true")).exit_code == 0
            except PermissionDenied:
                # The policy is loaded within a second.
                return False

        wait_until(served, "the other requester is served")
        assert served()
        # The first requester's other commands still wait, and no slot was taken from them but the reserved one.
        assert waiting_orders(redis, AGENT) == 5
        assert len(list(running.iterdir())) == 15
        go.touch()
        for job in jobs:
            result = list(client.attach(job.id))[-1].result
            assert result is not None
            assert result.exit_code == 0
