"""Redis restarts under the documented ACL, with the append-only file: the whole ledger and the trail are still there.

Redis 7.0 replays scripts and transactions as the user `default` (redis#14541), which is off.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from support import AGENT, kill_redis, request, wait_until

from tachikoma import Client, ExecState, PermissionDenied
from tachikoma.dev.stack import Stack
from tachikoma.redis import keys

pytestmark = pytest.mark.long

HOST = platform.node()
POLICY = """\
operators: ["{user}"]
policies:
  - name: asks
    subjects: ["{user}"]
    agents: [agent-1]
    allowedCommands: [/usr/bin/id]
    requireApproval: true
    approvers: ["spiffe://tachikoma.local/user/boss"]
  - name: runs
    subjects: ["{user}"]
    agents: [agent-1]
    allowedCommands: [/usr/bin/true, /usr/bin/false, /usr/bin/seq *, /usr/bin/sleep *]
    allowedWorkDirs: ["/**"]
"""


@pytest.fixture(params=["embedded", "debian"])
def durable(request: pytest.FixtureRequest, tmp_path: Path, need: Callable[[bool, str], None]) -> Iterator[Stack]:
    """A stack whose Redis keeps an append-only file; Debian's server is reached over TLS."""
    server = shutil.which("redis-server")
    if request.param == "debian":
        need(server is not None, "redis-server")
    data = tmp_path / "data"
    data.mkdir()
    stack = Stack(
        data,
        redis_server=Path(server) if request.param == "debian" and server else None,
        redis_tls=request.param == "debian",
    )
    stack.policy.write_text(POLICY.format(user=stack.user), encoding="utf-8")
    with stack:
        yield stack


def ledger_of(stack: Stack) -> dict[str, Any]:
    """Everything in Redis that is a record: executions, indexes, approvals, results, output, counters."""
    found: dict[str, Any] = {}
    with redis_py.Redis(**stack.redis_admin, decode_responses=False) as redis:
        for raw in redis.scan_iter(count=1000):
            name = raw.decode()
            # Registrations and positions of sinks change all the time, rates fade within a minute, lives begin.
            changing = name in (keys.AGENTS, keys.ONLINE, keys.AUDIT_SINKS, keys.LIFE)
            if changing or name.startswith("orch:rate:") or name.endswith(":info"):
                continue
            kind = redis.type(name).decode()
            read: dict[str, Callable[[], Any]] = {
                "hash": lambda name=name: redis.hgetall(name),
                "string": lambda name=name: redis.get(name),
                "list": lambda name=name: redis.lrange(name, 0, -1),
                "set": lambda name=name: redis.smembers(name),
                "zset": lambda name=name: redis.zrange(name, 0, -1, withscores=True),
                "stream": lambda name=name: redis.xrange(name),
            }
            found[name] = read[kind]()
    return found


def settled_ledger_of(stack: Stack) -> dict[str, Any]:
    """The same once nothing changes any more: receipts are collected after their callers are answered."""
    seen: list[dict[str, Any]] = [ledger_of(stack)]

    def unchanged() -> bool:
        # Between two looks; what is compared is whether anything changed.
        time.sleep(0.5)
        seen.append(ledger_of(stack))
        return seen[-1] == seen[-2]

    wait_until(unchanged, "the ledger settles")
    return seen[-1]


def fill(client: Client) -> list[str]:
    """Have executions of several kinds; return the ids of all that were accepted."""
    ids = []
    for command in (["true"], ["false"], ["seq", "1000"], ["true"]):
        asked = request(*command)
        client.execute(asked)
        ids.append(asked.id)
    stopped = request("sleep", "60")
    client.submit(stopped)
    wait_until(lambda: client.status(stopped.id).state is ExecState.STARTED, "it runs")
    client.cancel(stopped.id)
    wait_until(lambda: client.status(stopped.id).state is ExecState.CANCELLED, "it is cancelled")
    waits = request("id")
    client.submit(waits)
    with pytest.raises(PermissionDenied):
        client.execute(request("/usr/bin/touch", "/tmp/x"))
    return [*ids, stopped.id, waits.id]


def lives_of(client: Client) -> list[str]:
    return [event.reason for event in client.audit(limit=1000) if event.event == "redis_life"]


def new_events(stack: Stack, before: dict[str, Any]) -> list[str]:
    """The codes of the events since then, but those of agents whose lease ended because the machine is busy."""
    codes = [fields[b"event"].decode() for _, fields in ledger_of(stack)[keys.AUDIT][len(before[keys.AUDIT]) :]]
    return [code for code in codes if code not in ("agent_joined", "agent_left")]


def test_a_killed_redis_comes_back_with_the_whole_ledger_and_trail(durable: Stack) -> None:
    with Client(durable.profile()) as client:
        ids = fill(client)
        before = settled_ledger_of(durable)
        states = {exec_id: client.status(exec_id) for exec_id in ids}
        assert {keys.execution(exec_id) for exec_id in ids} <= before.keys()
        for number in (2, 3):
            kill_redis(durable)
            durable.start_redis()
            after = ledger_of(durable)
            # What happens since then comes after what was there.
            trail = after.pop(keys.AUDIT)
            assert trail[: len(before[keys.AUDIT])] == before[keys.AUDIT]
            assert int(after.pop(keys.AUDIT_SEQ)) >= int(before[keys.AUDIT_SEQ])
            assert after == {name: value for name, value in before.items() if name not in (keys.AUDIT, keys.AUDIT_SEQ)}
            begins = f"life {number} of Redis begins, found by orchestrator on {HOST}: nothing is known to be lost"
            wait_until(lambda begins=begins: begins in lives_of(client), "the new life is on the trail")
        assert new_events(durable, before) == ["redis_life"] * 2
        wait_until(lambda: client.agents()[0].online, "the agent is online again")
        assert {exec_id: client.status(exec_id) for exec_id in ids} == states
        assert client.execute(request("true")).exit_code == 0


def test_a_stack_that_stops_and_starts_again_has_its_ledger(durable: Stack) -> None:
    with Client(durable.profile()) as client:
        ids = fill(client)
        states = {exec_id: client.status(exec_id).state for exec_id in ids}
        numbers = [event.seq for event in client.audit(limit=1000)]
    durable.stop()
    durable.start()
    with Client(durable.profile()) as client:
        assert {exec_id: client.status(exec_id).state for exec_id in ids} == states
        again = [event.seq for event in client.audit(limit=1000)]
        assert set(numbers) <= set(again)
        assert sorted(again) == list(range(min(again), max(again) + 1))
        assert client.execute(request("true", agent_id=AGENT)).exit_code == 0


def test_without_the_rights_of_the_default_user_debian_s_redis_loses_it(
    tmp_path: Path, need: Callable[[bool, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason why that user keeps all rights; `redis check` reports a server on which it has none."""
    server = shutil.which("redis-server")
    need(server is not None, "redis-server")
    assert server is not None
    monkeypatch.setattr("tachikoma.redis.acl_file.DEFAULT_USER_RULES", "off")
    with Stack(tmp_path / "data", redis_server=Path(server)) as stack, Client(stack.profile()) as client:
        asked = request("true")
        client.execute(asked)
        with redis_py.Redis(**stack.redis_admin) as redis:
            if not redis.info()["redis_version"].startswith("7.0."):
                pytest.skip("this server replays without asking for rights")
        stack.redis.kill()
        stack.start_redis()
        with redis_py.Redis(**stack.redis_admin) as redis:
            assert not redis.exists(keys.execution(asked.id))
            # The server logged each write of the replay that it denied.
            assert {entry["username"] for entry in redis.acl_log()} == {"default"}
            redis.acl_log_reset()
