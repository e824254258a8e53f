"""Whatever is delivered twice, a command starts once; what nobody signed never starts."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import redis as redis_py
from celery import Celery
from support import AGENT, prepare, publish_report, request, wait_until

from order_queues import queue_of
from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecState, OutputKind
from tachikoma.dev.identities import own_user
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import user_id
from tachikoma.redis import keys

#: The queue of this user's orders.
QUEUE = queue_of(user_id(TRUST_DOMAIN, own_user()), AGENT)


@pytest.fixture
def redis(stack: Stack) -> redis_py.Redis:
    return redis_py.Redis(**stack.redis_admin)


def _flush(client: Client) -> None:
    """Return when everything that was on the queue was taken."""
    assert client.execute(request("true")).exit_code == 0


def test_a_second_delivery_starts_nothing(tmp_path: Path, redis_server: Path | None) -> None:
    go, marks = tmp_path / "go", tmp_path / "marks"
    with (
        Stack(prepare(tmp_path), redis_server=redis_server, environment={"TACHIKOMA_SLOTS": "1"}) as stack,
        Client(stack.profile()) as client,
        redis_py.Redis(**stack.redis_admin) as redis,
    ):
        blocker = request("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.01; done")
        client.submit(blocker)
        wait_until(lambda: client.status(blocker.id).state is ExecState.STARTED, "the only slot is taken")
        wanted = request("sh", "-c", f"echo x >> {marks}")
        client.submit(wanted)
        (message,) = redis.lrange(QUEUE, 0, -1)
        redis.lpush(QUEUE, message)
        go.touch()
        assert list(client.attach(wanted.id))[-1].result.state is ExecState.SUCCEEDED  # type: ignore[union-attr]
        _flush(client)
        redis.lpush(QUEUE, message)
        _flush(client)
        assert marks.read_text() == "x\n"
        # A Redis that lost the claim does not help either: the journal on the agent's disk has it.
        redis.delete(keys.claim(AGENT, wanted.id))
        redis.lpush(QUEUE, message)
        _flush(client)
        assert marks.read_text() == "x\n"
        # Nor does a restart of the agent.
        redis.delete(keys.claim(AGENT, wanted.id))
        stack.agents[AGENT].stop()
        redis.lpush(QUEUE, message)
        stack.start_agent(AGENT)
        stack.wait_for_agents()
        _flush(client)
        assert marks.read_text() == "x\n"
        assert client.status(wanted.id).state is ExecState.SUCCEEDED


def test_an_altered_order_runs_nothing_and_does_not_hurt_the_agent(
    client: Client, stack: Stack, redis: redis_py.Redis, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    stack.agents[AGENT].stop()
    wanted = request("touch", str(mark))
    # The agent is gone, but its lease says so only when it expires: this one is put back for a moment.
    redis.set(keys.info(AGENT), "{}", ex=5)
    client.submit(wanted)
    (message,) = redis.lrange(QUEUE, 0, -1)
    redis.delete(QUEUE)
    content = json.loads(message)
    (order,), *rest = json.loads(content["body"])
    head, payload, signature = order.split(".")
    for forged in (f"{head}.{payload[:-8]}AAAAAAAA.{signature}", f"{head}.{payload}.", "garbage", 5, None, ["x"]):
        content["body"] = json.dumps([[forged], *rest])
        redis.lpush(QUEUE, json.dumps(content))
    # And what is no message at all.
    for raw in ("", "not json", "[]", "null", "5", "{}", '{"body": 1}', "[" * 5000, b"\xff\xfe", '{"properties": {}}'):
        redis.lpush(QUEUE, raw)
    stack.start_agent(AGENT)
    stack.wait_for_agents()
    _flush(client)
    assert not mark.exists()
    assert stack.agents[AGENT].alive
    client.cancel(wanted.id)


def test_the_result_is_an_ordinary_celery_result(client: Client, stack: Stack) -> None:
    response = client.execute(request("sh", "-c", "echo out; exit 3"))
    app = Celery(backend=stack.redis_admin_celery_url, set_as_current=False)
    result = app.AsyncResult(keys.task_id(AGENT, response.id))
    assert result.successful()
    value = result.get(timeout=PATIENCE_SECONDS)
    assert (value["state"], value["exitCode"]) == ("FAILED", 3)
    app.close()


def test_redis_never_sees_the_shared_keys_of_stock_celery(client: Client, redis: redis_py.Redis) -> None:
    _flush(client)
    names = {name.decode() for name in redis.scan_iter(count=1000)}
    prefixes = (
        "agent.",
        "orch:",
        "celery-task-meta-agent-",
        "_kombu.binding.agent.",
        "_kombu.binding_permanent.agent.",
    )
    assert {name for name in names if not name.startswith(prefixes)} == set()


def test_a_command_whose_agent_was_killed_is_taken_back_and_not_started_again(
    tmp_path: Path, redis_server: Path | None
) -> None:
    marks = tmp_path / "marks"
    with Stack(prepare(tmp_path), redis_server=redis_server) as stack, Client(stack.profile()) as client:
        wanted = request("sh", "-c", f"echo $$ >> {marks}; sleep 600")
        client.submit(wanted)
        wait_until(lambda: client.status(wanted.id).state is ExecState.STARTED, "it runs")
        wait_until(lambda: marks.exists() and marks.read_text(), "it left its mark")
        stack.agents[AGENT].kill()
        stack.start_agent(AGENT)
        stack.wait_for_agents()
        wait_until(lambda: client.agents()[0].running == 1, "it is taken back")
        client.cancel(wanted.id)
        last = list(client.attach(wanted.id))[-1]
        assert last.kind is OutputKind.RESULT
        assert last.result is not None
        assert last.result.state is ExecState.CANCELLED
        assert len(marks.read_text().split()) == 1


def test_a_forged_result_is_not_believed_and_the_true_one_still_counts(
    client: Client, stack: Stack, redis: redis_py.Redis, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    other = client.execute(request("echo", "forged"))
    true_of_other = redis.get(keys.result(AGENT, other.id))
    wanted = request("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.01; done; echo true; exit 2")
    client.submit(wanted)
    wait_until(lambda: client.status(wanted.id).state is ExecState.STARTED, "it runs")
    log = stack.data / "logs" / "orchestrator.log"
    # The receipt of another execution, and nonsense.
    for raw in (true_of_other, b"nonsense", b'{"result": {"receipt": "a.b.c", "stdout": "", "stderr": ""}}'):
        seen = log.read_text().count(wanted.id)
        redis.set(keys.result(AGENT, wanted.id), raw)
        publish_report(redis, AGENT, wanted.id, raw)
        wait_until(lambda seen=seen: log.read_text().count(wanted.id) > seen, "it is refused, and that is logged")
        assert client.status(wanted.id).state is ExecState.STARTED
    go.touch()
    outputs = list(client.attach(wanted.id))
    assert b"".join(output.data for output in outputs) == b"true\n"
    assert outputs[-1].result is not None
    assert (outputs[-1].result.state, outputs[-1].result.exit_code) == (ExecState.FAILED, 2)


def test_a_copy_beside_the_first_delivery_does_not_get_in_its_way(
    client: Client, stack: Stack, redis: redis_py.Redis, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    wanted = [request("sh", "-c", f"echo x >> {marks}; sleep 0.1") for _ in range(20)]
    os.kill(stack.agents[AGENT].pid, signal.SIGSTOP)
    try:
        for each in wanted:
            client.submit(each)
        # What it was waiting for when it was stopped is one of them already.
        for message in redis.lrange(QUEUE, 0, -1):
            redis.linsert(QUEUE, "before", message, message)
    finally:
        os.kill(stack.agents[AGENT].pid, signal.SIGCONT)
    for each in wanted:
        assert list(client.attach(each.id))[-1].result.state is ExecState.SUCCEEDED  # type: ignore[union-attr]
    _flush(client)
    assert marks.read_text() == "x\n" * len(wanted)
