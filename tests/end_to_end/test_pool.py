"""The custom Celery pool: its traps, measured once, are tests here."""

from __future__ import annotations

import asyncio
from pathlib import Path

from support import prepare, request, wait_until

from tachikoma import AsyncClient, Client
from tachikoma.dev.stack import Stack

#: Less than 200 commands take when every second one waits for a second.
STALLED_SECONDS = 95


async def _run(stack: Stack, count: int, *command: str) -> list[int]:
    async with AsyncClient(stack.profile()) as client:
        responses = await asyncio.gather(*(client.execute(request(*command)) for _ in range(count)))
    return [response.exit_code for response in responses]


def test_sixty_commands_run_at_once(stack: Stack, tmp_path: Path) -> None:
    # Each waits until sixty are there: with one fewer at once, none would ever end.
    script = f'touch {tmp_path}/$$; while [ "$(ls {tmp_path} | wc -l)" -lt 60 ]; do sleep 0.1; done'
    assert asyncio.run(_run(stack, 60, "sh", "-c", script)) == [0] * 60


def test_more_callers_than_slots_never_stall_before_or_after_a_broker_reconnect(
    tmp_path: Path, redis_server: Path | None
) -> None:
    environment = {"TACHIKOMA_SLOTS": "2", "TACHIKOMA_POLL": "20s"}
    with Stack(prepare(tmp_path), redis_server=redis_server, environment=environment) as stack:
        # Without a wake-up of Celery's hub every second command waits for its 1 s timer (32/s fell to 2/s): so the
        # bound for 200 commands is not about speed.
        assert asyncio.run(asyncio.wait_for(_run(stack, 200, "true"), STALLED_SECONDS)) == [0] * 200
        for _ in range(2):
            stack.redis.kill()
            stack.start_redis()
            stack.wait_for_agents()
            assert asyncio.run(asyncio.wait_for(_run(stack, 200, "true"), STALLED_SECONDS)) == [0] * 200


def test_output_flows_on_while_the_broker_is_away_from_celery(own_stack: Stack, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with Client(own_stack.profile()) as client:
        wanted = request("sh", "-c", f"echo one; while [ ! -e {go} ]; do sleep 0.01; done; echo two; exit 6")
        client.submit(wanted)
        wait_until(lambda: client.list_page(include_ended=True)[0][0].state == "STARTED", "it runs")
        own_stack.redis.kill()
        go.touch()
        own_stack.start_redis()
        outputs = list(client.attach(wanted.id))
    assert b"".join(output.data for output in outputs) == b"one\ntwo\n"
    assert outputs[-1].result is not None
    assert outputs[-1].result.exit_code == 6
