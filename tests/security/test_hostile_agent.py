"""With one agent's credentials: Redis lets it do what its work needs, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.retry import Retry
from support import AGENT, request, wait_until

from rights import dry_run, every_command
from tachikoma import Client, ExecState
from tachikoma.dev.stack import Stack
from tachikoma.redis import keys
from tachikoma.redis.passwords import read_password
from tachikoma.redis.users import agent_user

pytestmark = pytest.mark.long

OTHER = "agent-2"
#: Commands that need no name, so they reach nothing of others. The last four are open before authentication. Each
#: command in a transaction needs its own right. INFO shows the replication id, and figures of the server.
NAMELESS = {
    "ping", "info", "unsubscribe", "client|setname", "multi", "exec", "unwatch", "auth", "hello", "quit", "reset",
}  # fmt: skip


def own_names(agent: str) -> dict[str, str]:
    return {
        "queue": keys.queue(agent),
        "lane": keys.queue_lane(agent, 7),
        "info": keys.info(agent),
        "events": keys.events(agent),
        "control": keys.control(agent),
        "claim": keys.claim(agent, "x"),
        "output": keys.output(agent, "x"),
        "cancel": keys.cancel(agent, "x"),
        "read": keys.read(agent, "x"),
        "result": keys.result(agent, "x"),
        "report": keys.report(agent, 7, "x"),
        "input": keys.input(agent, "x"),
        "session": keys.session(agent, "x"),
        "orders": keys.orders(agent),
        "life": keys.LIFE,
    }


#: All that an agent may do with its own names.
ALLOWED = {
    ("brpop", "queue"), ("brpop", "lane"),
    ("set", "info"), ("expire", "info"), ("watch", "info"), ("getex", "info"),
    ("publish", "events"), ("subscribe", "control"),
    ("get", "claim"), ("get", "info"), ("set", "claim"),
    ("get", "cancel"), ("get", "read"), ("mget", "claim"), ("mget", "info"), ("mget", "cancel"), ("mget", "read"),
    ("mget", "life"),
    ("xadd", "output"), ("xdel", "output"), ("xrevrange", "output"), ("expire", "output"), ("publish", "output"),
    ("exists", "claim"), ("exists", "result"), ("set", "result"), ("publish", "result"), ("publish", "report"),
    ("xread", "input"), ("xrevrange", "input"), ("xtrim", "input"), ("expire", "input"),
    ("set", "session"), ("publish", "session"),
    ("hset", "orders"), ("expire", "orders"), ("get", "life"),
}  # fmt: skip

#: Names of others, some chosen to look like the agent's own.
FOREIGN = [
    *own_names(OTHER).values(),
    *own_names(f"{AGENT}0").values(),
    *own_names("agent").values(),
    f"{AGENT}:info", f"xagent.{AGENT}:info", f"agent.{AGENT}x", f"agent.{AGENT}", f"celery-task-meta-{AGENT}",
    *(keys.INDEX, keys.OPEN, keys.AGENTS, keys.ONLINE, keys.APPROVALS, keys.APPROVED, keys.AUDIT, keys.AUDIT_SEQ),
    *(keys.AUDIT_SINKS, keys.ENDED, keys.ALL_EVENTS, keys.ALL_INFO, keys.ALL_OURS, keys.ALL_QUEUES),
    *(keys.REVOKED, keys.JOINED, keys.enrolment(AGENT)),
    *(keys.execution("x"), keys.parked("x"), keys.agent_index(AGENT), keys.audit_lock("x"), *keys.scope("x")),
    *("celery", "unacked", "_kombu.binding.celery.pidbox", "celeryev", "/0.celeryev/worker.heartbeat", "*", ""),
    *(keys.celery_events("task"), keys.celery_events("worker"), keys.ALL_CELERY_EVENTS, keys.EVENTS_WANTED),
]  # fmt: skip


def test_a_normal_run_is_denied_nothing(stack: Stack, client: Client, admin: redis_py.Redis, tmp_path: Path) -> None:
    assert client.execute(request("/bin/true")).state is ExecState.SUCCEEDED
    streamed = b"".join(part.data for part in client.execute_stream(request("sh", "-c", "echo a; sleep 0.1; echo b")))
    assert streamed == b"a\nb\n"
    running = client.submit(request("sleep", "60"))
    wait_until(lambda: client.status(running.id).state is ExecState.STARTED, "it runs")
    client.cancel(running.id)
    wait_until(lambda: client.status(running.id).state is ExecState.CANCELLED, "it is cancelled")
    # A start of the agent finds what the one before it left.
    go = tmp_path / "go"
    left = client.submit(request("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.05; done"))
    wait_until(lambda: client.status(left.id).state is ExecState.STARTED, "it runs")
    stack.agents[AGENT].kill()
    go.touch()
    stack.start_agent(AGENT)
    wait_until(lambda: client.status(left.id).state is ExecState.SUCCEEDED, "it was taken back")
    stack.agents[AGENT].stop()
    stack.start_agent(AGENT)
    stack.wait_for_agents()
    assert client.execute(request("/bin/true")).state is ExecState.SUCCEEDED
    client.audit(limit=10)
    client.list_page(include_ended=True)
    assert admin.acl_log() == []
    # One of the stacks has a submitter, too.
    named = [item for item in admin.client_list() if item["name"] and not item["name"].startswith("submitter")]
    users = {(item["name"].startswith("orchestrator"), item["user"]) for item in named}
    assert users == {(True, "orchestrator"), (False, agent_user(AGENT)), (False, agent_user(OTHER))}


def test_of_all_commands_an_agent_may_use_a_few_on_its_own_names(admin: redis_py.Redis) -> None:
    commands = list(every_command(admin))
    assert len(commands) > 300
    names = own_names(AGENT)
    by_name = {name: purpose for purpose, name in names.items()}
    allowed = dry_run(admin, agent_user(AGENT), commands, list(names.values()))
    assert {(command, by_name[name]) for command, name in allowed if command not in NAMELESS} == ALLOWED
    assert {command for command, _ in allowed if command in NAMELESS} == NAMELESS & {"|".join(c) for c, _ in commands}


def test_of_all_commands_an_agent_may_use_none_on_names_of_others(admin: redis_py.Redis) -> None:
    foreign = [name for name in FOREIGN if name not in own_names(AGENT).values()]
    allowed = dry_run(admin, agent_user(AGENT), list(every_command(admin)), foreign)
    assert {command for command, _ in allowed} <= NAMELESS


ATTEMPTS: list[tuple[str, ...]] = [
    # Orders.
    ("LPUSH", keys.queue(AGENT), "x"), ("WATCH", keys.info(OTHER)), ("LLEN", keys.queue(AGENT)),
    ("RPUSH", keys.queue(AGENT), "x"), ("LPUSH", keys.queue(OTHER), "x"),
    ("BRPOP", keys.queue(OTHER), "0.01"), ("LRANGE", keys.queue(OTHER), "0", "-1"), ("LLEN", keys.queue(OTHER)),
    ("BRPOPLPUSH", keys.queue(AGENT), keys.queue(OTHER), "0.01"),
    ("BRPOP", keys.queue(AGENT), keys.queue(OTHER), "0.01"), ("DEL", keys.queue(AGENT)),
    ("BRPOP", keys.queue_lane(OTHER, 7), "0.01"), ("LPUSH", keys.queue_lane(AGENT, 7), "x"),
    # Another agent's.
    ("SET", keys.info(OTHER), "x"), ("GET", keys.info(OTHER)), ("SET", keys.claim(OTHER, "x"), "x"),
    ("GET", keys.claim(OTHER, "x")), ("XADD", keys.output(OTHER, "x"), "*", "f", "x"),
    ("XREVRANGE", keys.output(OTHER, "x"), "+", "-"), ("XRANGE", keys.output(OTHER, "x"), "-", "+"),
    ("GET", keys.result(OTHER, "x")), ("SET", keys.result(OTHER, "x"), "x"), ("GET", keys.cancel(OTHER, "x")),
    ("EXPIRE", keys.info(OTHER), "0"), ("RENAME", keys.claim(AGENT, "x"), keys.claim(OTHER, "x")),
    ("COPY", keys.claim(OTHER, "x"), keys.claim(AGENT, "y")),
    ("PUBLISH", keys.events(OTHER), "x"), ("PUBLISH", keys.output(OTHER, "x"), "x"),
    ("PUBLISH", keys.result(OTHER, "x"), "x"), ("PUBLISH", keys.report(OTHER, 7, "x"), "x"),
    ("PUBLISH", keys.session(OTHER, "x"), "x"), ("XREAD", "STREAMS", keys.input(OTHER, "x"), "0"),
    ("XADD", keys.input(AGENT, "x"), "*", "f", "x"), ("SUBSCRIBE", keys.output(OTHER, "x")),
    ("SUBSCRIBE", keys.control(OTHER)), ("PSUBSCRIBE", "*"), ("PSUBSCRIBE", f"agent.{AGENT}:*"),
    ("SSUBSCRIBE", keys.control(OTHER)), ("PUBSUB", "CHANNELS"),
    # What the orchestrator says to this agent.
    ("PUBLISH", keys.control(AGENT), "x"), ("SET", keys.cancel(AGENT, "x"), "x"), ("DEL", keys.cancel(AGENT, "x")),
    ("SET", keys.read(AGENT, "x"), "9"),
    # What it has said itself.
    ("DEL", keys.claim(AGENT, "x")), ("UNLINK", keys.result(AGENT, "x")),
    ("XTRIM", keys.output(AGENT, "x"), "MAXLEN", "0"),
    ("GET", keys.result(AGENT, "x")), ("PERSIST", keys.claim(AGENT, "x")),
    # Ledger and audit.
    ("HGETALL", keys.execution("x")), ("HSET", keys.execution("x"), "state", "SUCCEEDED"),
    ("XADD", keys.AUDIT, "*", "event", "admitted"), ("XRANGE", keys.AUDIT, "-", "+"),
    ("XTRIM", keys.AUDIT, "MAXLEN", "0"),
    ("INCR", keys.AUDIT_SEQ), ("DEL", keys.LIFE), ("HGETALL", keys.orders(AGENT)),
    ("HSET", keys.AGENTS, OTHER, "{}"), ("HGETALL", keys.AGENTS), ("GET", keys.parked("x")),
    ("PUBLISH", keys.ENDED, "x"), ("PUBLISH", keys.APPROVED, "x"), ("ZADD", keys.OPEN, "0", "x"),
    # Scripts.
    ("EVAL", "return 1", "0"), ("EVAL_RO", "return 1", "0"), ("EVALSHA", "0" * 40, "0"), ("SCRIPT", "LOAD", "return 1"),
    ("SCRIPT", "FLUSH"), ("FUNCTION", "LOAD", "#!lua name=x"), ("FCALL", "x", "0"), ("FUNCTION", "DUMP"),
    # The server.
    ("CONFIG", "GET", "*"), ("CONFIG", "SET", "appendonly", "no"), ("ACL", "LIST"), ("ACL", "WHOAMI"),
    ("ACL", "LOG", "RESET"),
    ("ACL", "SETUSER", agent_user(AGENT), "+@all"), ("KEYS", "*"), ("SCAN", "0"), ("RANDOMKEY",), ("DBSIZE",),
    ("FLUSHALL",), ("FLUSHDB",), ("SWAPDB", "0", "1"), ("SELECT", "1"), ("SET", keys.LIFE, "x"),
    ("MIGRATE", "127.0.0.1", "1", keys.claim(AGENT, "x"), "0", "1"), ("DUMP", keys.claim(AGENT, "x")),
    ("RESTORE", keys.claim(AGENT, "x"), "0", "x"), ("SORT", keys.queue(AGENT), "STORE", keys.queue(OTHER)),
    ("OBJECT", "ENCODING", keys.claim(OTHER, "x")), ("MEMORY", "USAGE", keys.claim(OTHER, "x")),
    ("CLIENT", "LIST"), ("CLIENT", "KILL", "TYPE", "normal"), ("CLIENT", "PAUSE", "1"), ("CLIENT", "TRACKING", "ON"),
    ("MONITOR",), ("SLOWLOG", "GET"), ("LATENCY", "RESET"), ("MODULE", "LIST"), ("SAVE",), ("BGSAVE",),
    ("BGREWRITEAOF",),
    ("SHUTDOWN", "NOSAVE"), ("REPLICAOF", "127.0.0.1", "1"), ("PSYNC", "?", "-1"), ("SYNC",), ("FAILOVER",),
    ("CLUSTER", "INFO"), ("WAIT", "0", "0"), ("COMMAND",),
]  # fmt: skip


@pytest.fixture
def agent(stack: Stack) -> Iterator[redis_py.Redis]:
    """A connection with the agent's own credentials."""
    password = read_password(stack.redis_passwords.path(agent_user(AGENT)))
    with redis_py.Redis(
        unix_socket_path=str(stack.socket), username=agent_user(AGENT), password=password, driver_info=None,
        retry=Retry(NoBackoff(), 0),
    ) as redis:  # fmt: skip
        yield redis


def test_what_is_tried_is_denied_and_on_the_log(agent: redis_py.Redis, admin: redis_py.Redis) -> None:
    before = set(admin.keys())
    for attempt in ATTEMPTS:
        admin.acl_log_reset()
        with pytest.raises(NoPermissionError):
            agent.execute_command(*attempt)
        (entry,) = admin.acl_log()
        assert entry["username"] == agent_user(AGENT), attempt
    # The system itself makes keys meanwhile.
    tried = {str(word).encode() for attempt in ATTEMPTS for word in attempt}
    assert (set(admin.keys()) - before) & tried == set()


def test_an_agent_whose_rights_are_gone_waits_for_them(stack: Stack, client: Client, admin: redis_py.Redis) -> None:
    pid = stack.agents[OTHER].pid
    running = client.submit(request("sleep", "60", agent_id=OTHER))
    wait_until(lambda: client.status(running.id).state is ExecState.STARTED, "it runs")
    for words in (("clearselectors",), ("-@all",), ("off",)):
        admin.acl_log_reset()
        admin.execute_command("ACL", "SETUSER", agent_user(OTHER), *words)
        for kind in ("normal", "pubsub"):
            admin.execute_command("CLIENT", "KILL", "TYPE", kind, "USER", agent_user(OTHER))
        wait_until(admin.acl_log, "it has tried")
    admin.acl_load()
    client.cancel(running.id)
    wait_until(lambda: client.status(running.id).state is ExecState.CANCELLED, "a cancel gets there")
    assert client.execute(request("/bin/true", agent_id=OTHER)).state is ExecState.SUCCEEDED
    assert stack.agents[OTHER].pid == pid


def test_its_password_opens_no_other_door(stack: Stack, agent: redis_py.Redis, client: Client) -> None:
    password = read_password(stack.redis_passwords.path(agent_user(AGENT)))
    for user in (agent_user(OTHER), "orchestrator", "admin", "check"):
        with pytest.raises(AuthenticationError):
            agent.execute_command("AUTH", user, password)
    # After all of this the others work as before.
    assert client.execute(request("/bin/true", agent_id=OTHER)).state is ExecState.SUCCEEDED


def test_the_orchestrator_cannot_destroy_what_it_keeps(stack: Stack, admin: redis_py.Redis) -> None:
    password = read_password(stack.redis_passwords.path("orchestrator"))
    with redis_py.Redis(unix_socket_path=str(stack.socket), username="orchestrator", password=password) as redis:
        for attempt in (
            ("DEL", keys.AUDIT), ("DEL", keys.execution("x")), ("SET", keys.AUDIT_SEQ, "0"), ("FLUSHALL",),
            ("SET", keys.result(AGENT, "x"), "x"), ("XADD", keys.output(AGENT, "x"), "*", "f", "x"),
            ("SET", keys.info(AGENT), "x"), ("BRPOP", keys.queue(AGENT), "0.01"), ("CONFIG", "GET", "*"),
            ("PUBLISH", keys.events(AGENT), "x"), ("EVAL", "return 1", "0"), ("KEYS", "*"),
        ):  # fmt: skip
            with pytest.raises(NoPermissionError):
                redis.execute_command(*attempt)
        # A script of its own may do no more than it may without.
        sha = redis.script_load("return redis.call('DEL', KEYS[1])")
        with pytest.raises(redis_py.ResponseError, match=r"permission|access"):
            redis.evalsha(sha, 1, keys.AUDIT)
    assert admin.exists(keys.AUDIT)
