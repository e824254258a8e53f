"""An attacker has every right in Redis, and nobody's key.

He may read, drop and delay; he must not make anything run or end, nor have anything told that is not true. What he
tries is on the record, or ignored with a line in a log. `docs/decisions/0015` says what is left to him.
"""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

# Test folders are no packages; what they share is imported by its plain name.
sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
from books import compare_books
from support import make_cli, prepare, publish_report, request, wait_until
from world import World as RelayedStack

from order_queues import queue_of, queue_with_orders, waiting_orders
from patience import PATIENCE_SECONDS
from tachikoma import (
    AgentOffline,
    Client,
    ExecAuditLog,
    ExecRequest,
    ExecResponse,
    ExecState,
    NotFound,
    OutputAltered,
    RecordAltered,
    Unavailable,
)
from tachikoma.audit.chain import read_events
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.errors import ConfigurationError
from tachikoma.identity.spiffe import user_id
from tachikoma.redis import keys
from tachikoma.streams.frames import FIELD, STDOUT, Frame, entry_id

ONE, TWO = "agent-1", "agent-2"
OTHER = user_id(TRUST_DOMAIN, "other")


class World:
    """A stack, its user, another user, and the attacker's connection."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.client = Client(stack.profile())
        self.other = Client(stack.issue(OTHER))
        self.redis = redis_py.Redis(**stack.redis_admin)
        self.pids = {part.name: part.pid for part in (stack.orchestrator, *stack.agents.values())}

    def close(self) -> None:
        self.client.close()
        self.other.close()
        self.redis.close()

    def unhurt(self) -> None:
        """Every part is the process that it was, and serves."""
        for agent in (ONE, TWO):
            assert self.client.execute(request("true", agent_id=agent)).exit_code == 0
        parts = (self.stack.orchestrator, *self.stack.agents.values())
        assert {part.name: part.pid for part in parts if part.alive} == self.pids

    def log(self, part: str) -> str:
        return (self.stack.data / "logs" / f"{part}.log").read_text(errors="replace")

    def codes(self, exec_id: str) -> list[str]:
        return [event.event for event in self.client.audit(exec_id=exec_id)]

    def push(self, agent: str, *messages: bytes | str) -> None:
        """Put messages on a queue, and return when they were taken."""
        self.redis.lpush(queue_of(self.stack.user, agent), *messages)
        assert self.client.execute(request("true", agent_id=agent)).exit_code == 0

    @contextmanager
    def busy(self, folder: Path, agent: str = ONE) -> Iterator[None]:
        """The only slot of an agent is taken, so what comes stays on its queue."""
        go = folder / f"go-{time.monotonic_ns()}"
        blocker = waiting_for(go, agent_id=agent)
        self.start(blocker)
        try:
            yield
        finally:
            go.touch()
            assert self.ended(blocker).state is ExecState.SUCCEEDED

    def start(self, wanted: ExecRequest) -> None:
        """Submit something, and wait until it runs."""
        self.client.submit(wanted)
        wait_until(lambda: self.client.status(wanted.id).state is ExecState.STARTED, "it runs")

    def capture(self, wanted: ExecRequest, folder: Path) -> bytes:
        """Submit a request and take its message off the queue before its agent can."""
        with self.busy(folder, wanted.agent_id):
            self.client.submit(wanted)
            message = self.redis.lpop(queue_with_orders(self.redis, wanted.agent_id))
        assert isinstance(message, bytes)
        return message

    def ended(self, wanted: ExecRequest) -> ExecResponse:
        """How it ended, as its follower is told."""
        result = list(self.client.attach(wanted.id))[-1].result
        assert result is not None
        return result

    @contextmanager
    def altered(self, exec_id: str, *removed: str, **fields: str | bytes) -> Iterator[None]:
        """The attacker's version of a record; then the true one again."""
        key = keys.execution(exec_id)
        kept = self.redis.hgetall(key)
        if removed:
            self.redis.hdel(key, *removed)
        if fields:
            self.redis.hset(key, mapping=fields)
        try:
            yield
        finally:
            pipe = self.redis.pipeline()
            pipe.delete(key)
            pipe.hset(key, mapping=kept)
            pipe.execute()


def waiting_for(go: Path, then: str = "true", **values: Any) -> ExecRequest:
    return request("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.01; done; {then}", **values)


def with_order(message: bytes, token: object, **headers: object) -> str:
    """A genuine message with another order in it, or other headers."""
    content = json.loads(message)
    _, *rest = json.loads(content["body"])
    content["body"] = json.dumps([[token], *rest])
    content["headers"] |= headers
    return json.dumps(content)


def order_in(message: bytes) -> str:
    token: str = json.loads(json.loads(message)["body"])[0][0]
    return token


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[World]:
    environment = {"TACHIKOMA_SLOTS": "1", "TACHIKOMA_SWEEP": "100ms", "TACHIKOMA_LEASE": "1s"}
    data = prepare(tmp_path_factory.mktemp("hostile"))
    with Stack(data, agents=2, redis_server=redis_server, environment=environment) as stack:
        made = World(stack)
        yield made
        made.unhurt()
        made.close()
        # Nothing of it all is in the books otherwise than it was.
        compare_books(stack)


# --- orders -----------------------------------------------------------------------------------------------------------


def test_an_order_runs_on_no_other_agent_and_not_twice(world: World, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    wanted = request("sh", "-c", f"cat >> {marks}", stdin=b"x\n")
    message = world.capture(wanted, tmp_path)
    token = order_in(message)
    world.push(TWO, message, with_order(message, token, id=keys.task_id(TWO, wanted.id)))
    assert not marks.exists()
    assert f"is for spiffe://tachikoma.local/agent/{ONE}, not for this agent" in world.log(TWO)
    # Late, but it is the one that was asked for.
    world.push(ONE, message)
    assert world.ended(wanted).state is ExecState.SUCCEEDED
    world.redis.delete(keys.claim(ONE, wanted.id))
    with world.altered(wanted.id, "dispatched_ms", state="QUEUED", history="QUEUED 1"):
        world.push(ONE, message, message)
        # What was signed counts, whatever the ledger says now.
        assert world.client.status(wanted.id).state is ExecState.SUCCEEDED
    assert marks.read_text() == "x\n"
    assert world.codes(wanted.id)[-1] == "record_altered"


def test_an_order_put_together_from_several_is_none(world: World, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    first, second = request("touch", str(mark)), request("true", stdin=b"for true")
    one, two = world.capture(first, tmp_path), world.capture(second, tmp_path)
    (head, payload, _), (head2, payload2, signature2) = order_in(one).split("."), order_in(two).split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload2 + "=="))
    claims["request"] |= {"command": ["touch", str(mark)], "stdin": ""}
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"tachikoma-order+jws"}').decode().rstrip("=")
    result = json.loads(world.redis.get(keys.result(ONE, world.client.execute(request("true")).id)))
    world.push(
        ONE,
        *[
            with_order(two, token)
            for token in (
                f"{head2}.{payload}.{signature2}",
                f"{head}.{payload}.{signature2}", f"{head2}.{forged}.{signature2}",
                f"{unsigned}.{forged}.", f"{unsigned}.{forged}.{signature2}", result["result"]["receipt"],
                # Genuine, in the name of another execution.
                order_in(one),
            )
        ],
    )  # fmt: skip
    assert not mark.exists()
    assert world.log(ONE).count("order.refused") >= 7
    for wanted in (first, second):
        world.client.cancel(wanted.id)
        assert world.client.status(wanted.id).state is ExecState.CANCELLED


def test_an_agent_without_its_journal_runs_nothing_that_was_sent_before(world: World, tmp_path: Path) -> None:
    """What it started before it lost its data it cannot know, and the claim in Redis is the attacker's."""
    marks = tmp_path / "marks"
    ran = request("sh", "-c", f"echo ran >> {marks}", agent_id=TWO)
    message = world.capture(ran, tmp_path)
    world.push(TWO, message)
    assert world.ended(ran).exit_code == 0
    waits = request("sh", "-c", f"echo waits >> {marks}", agent_id=TWO)
    unstarted = world.capture(waits, tmp_path)
    world.stack.agents[TWO].stop()
    shutil.rmtree(world.stack.data / "agents" / TWO)
    world.redis.delete(keys.claim(TWO, ran.id), keys.result(TWO, ran.id))
    world.redis.lpush(queue_of(world.stack.user, TWO), message, unstarted)
    world.stack.start_agent(TWO)
    world.pids[TWO] = world.stack.agents[TWO].pid
    assert world.ended(waits).state is ExecState.LOST
    assert "lost its journal" in world.client.status(waits.id).error
    wait_until(lambda: "receipt_refused" in world.codes(ran.id), "the agent said the same of what had run")
    assert world.client.status(ran.id).state is ExecState.SUCCEEDED
    wait_until(
        lambda: world.client.execute(request("true", agent_id=TWO)).state is ExecState.SUCCEEDED, "it serves again"
    )
    assert marks.read_text() == "ran\n"


# --- Celery messages --------------------------------------------------------------------------------------------------


class _Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_hostile_messages_neither_run_anything_nor_end_a_worker(world: World, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    wanted = request("touch", str(mark))
    content = json.loads(world.capture(wanted, tmp_path))
    pickled = base64.b64encode(pickle.dumps([[_Bomb(mark)], {}, {}])).decode()
    link = {"task": "tachikoma.execute", "args": ["x"], "options": {"queue": keys.queue(TWO)}, "subtask_type": None}
    bomb = base64.b64encode(zlib.compress(b'"' + b"0" * 50_000_000 + b'"')).decode()

    def message(**changes: Any) -> str:
        changed = {**content, **changes}
        changed["headers"] = {**content["headers"], **changes.get("headers", {})}
        return json.dumps(changed)

    def base64_body(**headers: str) -> dict[str, Any]:
        return {"properties": {**content["properties"], "body_encoding": "base64"}, "headers": headers}

    hostile: list[str | bytes] = [
        message(**{"content-type": "application/x-python-serialize", "content-encoding": "binary", "body": pickled}),
        message(**{"content-type": "application/x-python-serialize", "body": pickled, **base64_body()}),
        message(**{"content-type": "application/x-yaml", "body": "!!python/object/apply:os.abort []"}),
        message(**{"content-type": None}),
        message(**{"content-type": ["application/json"]}),
        message(**{"content-encoding": "rot13", "body": "[[],{},{}]"}),
        message(body=bomb, **base64_body(compression="application/x-gzip")),
        message(body=bomb, **base64_body(compression="zlib")),
        message(headers={"task": "no.such.task"}),
        message(headers={"task": ["unhashable"]}),
        message(headers={"task": None}),
        *[
            message(headers={"task": task}, body=json.dumps([[link], {}, {"callbacks": [link], "errbacks": [link]}]))
            for task in ("celery.chain", "celery.group", "celery.chord", "celery.map", "celery.backend_cleanup")
        ],
        message(headers={"id": keys.task_id(ONE, "another")}),
        message(headers={"id": 5}),
        message(headers={"id": "no-dot"}),
        message(headers={"id": f"{ONE}.../../escape"}),
        message(headers={"id": f"{ONE}." + "x" * 1_000_000}),
        message(headers={"id": f"{ONE}.\ud800"}),
        message(body="[[" * 20_000),
        message(body=json.dumps([[], {}, {}])),
        message(body=json.dumps([["a", "b"], {}, {}])),
        message(body=json.dumps({"order": "x"})),
        message(body=json.dumps([["\ud800"], {}, {}])),
        message(body=json.dumps([["x" * 12_000_000], {}, {}])),
        message(body="9" * 100_000),
        message(properties={}, headers={"id": 1}),
        message(properties=None, headers={"id": 1}),
        json.dumps({"task": "tachikoma.execute", "id": "a.b", "args": [link], "kwargs": {}, "eta": "x"}),
        b"\x80\x04" + pickle.dumps(_Bomb(mark)),
        b"\x00" * 1_000_000,
        "[" * 200_000,
    ]
    hostile.append(json.dumps({**content, "headers": [1]}))
    names = {name for name in world.redis.scan_iter(count=1000) if wanted.id.encode() not in name}
    # Twice, since there is one slot: a message that kept it would be found.
    world.push(ONE, *hostile, *hostile)
    assert not mark.exists()
    left = {name for name in world.redis.scan_iter(count=1000) if wanted.id.encode() not in name} - names
    assert {name.split(b":")[0] for name in left} <= {b"orch", *_results(left)}
    assert world.stack.agents[ONE].pid == world.pids[ONE]
    world.client.cancel(wanted.id)


def _results(names: set[bytes]) -> set[bytes]:
    """Names of results, and of the claims and outputs of agents."""
    return {
        name.split(b":")[0]
        for name in names
        if name.startswith((b"celery-task-meta-agent-", b"agent-1:", b"agent.agent-"))
    }


def test_what_celery_would_do_beside_an_order_is_not_done(world: World, tmp_path: Path) -> None:
    """A genuine order in a message that also says when, how often, and what is to come after it."""
    marks = tmp_path / "marks"
    wanted = request("sh", "-c", f"echo x >> {marks}")
    message = world.capture(wanted, tmp_path)
    link = {
        "task": "tachikoma.execute", "args": ["x"], "kwargs": {}, "subtask_type": None, "immutable": False,
        "options": {"queue": keys.queue(TWO), "task_id": "agent-2.linked", "reply_to": "attacker"},
    }  # fmt: skip
    content = json.loads(message)
    body = json.loads(content["body"])
    body[1:] = [{"order": "x"}, {"callbacks": [link], "errbacks": [link], "chain": [link], "chord": link}]
    content |= {"body": json.dumps(body)}
    content["properties"] |= {"reply_to": "attacker", "correlation_id": "attacker", "priority": 9}
    content["properties"]["delivery_info"] = {"exchange": "attacker", "routing_key": "attacker"}
    content["headers"] |= {
        "eta": "2999-01-01T00:00:00+00:00", "expires": "1999-01-01T00:00:00+00:00", "retries": 7, "timelimit": [1, 1],
        "group": "attacker", "group_index": 0, "chord": link, "root_id": "attacker", "parent_id": "attacker",
        "shadow": "attacker", "stamps": {"x": 1}, "stamped_headers": ["x"], "replaced_task_nesting": 9,
        "ignore_result": False, "errbacks": [link], "callbacks": [link],
    }  # fmt: skip
    world.push(ONE, json.dumps(content), json.dumps(content))
    assert world.ended(wanted).exit_code == 0
    assert marks.read_text() == "x\n"
    names = [name.decode() for name in world.redis.scan_iter(count=1000)]
    assert [name for name in names if "attacker" in name or "linked" in name or name == "celery"] == []
    assert waiting_orders(world.redis, TWO) == 0


# --- results and the ledger -------------------------------------------------------------------------------------------


def test_a_result_that_its_agent_did_not_sign_is_refused_and_that_is_on_the_record(
    world: World, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    other = world.client.execute(request("echo", "other"))
    of_two = world.client.execute(request("echo", "two", agent_id=TWO))
    wanted = waiting_for(go, "echo true; exit 2")
    world.start(wanted)
    genuine = world.redis.get(keys.result(ONE, other.id))
    of_agent_two = world.redis.get(keys.result(TWO, of_two.id))
    for agent, raw in ((ONE, genuine), (ONE, of_agent_two), (TWO, of_agent_two), (TWO, genuine), (ONE, b"[" * 9999)):
        before = world.codes(wanted.id).count("receipt_refused")
        for _ in range(3):
            world.redis.set(keys.result(agent, wanted.id), raw)
            publish_report(world.redis, agent, wanted.id, raw)
        wait_until(
            lambda before=before: world.codes(wanted.id).count("receipt_refused") == before + 1, "it is told once"
        )
        world.redis.delete(keys.result(agent, wanted.id))
    assert world.client.status(wanted.id).state is ExecState.STARTED
    go.touch()
    assert (world.ended(wanted).state, world.ended(wanted).exit_code) == (ExecState.FAILED, 2)
    # The true receipt beside another output: neither folded nor told.
    key = keys.result(ONE, wanted.id)
    true = world.redis.get(key)
    result = json.loads(true)
    result["result"] |= {"stdout": base64.b64encode(b"lies\n").decode(), "state": "SUCCEEDED", "exitCode": 0}
    world.redis.set(key, json.dumps(result))
    publish_report(world.redis, ONE, wanted.id, json.dumps(result))
    told = world.client.execute(wanted)
    assert (told.state, told.exit_code, told.stdout, told.stdout_summary.truncated) == (ExecState.FAILED, 2, b"", True)
    wait_until(lambda: world.codes(wanted.id).count("receipt_refused") == 6, "the published one is refused too")
    assert "output_altered" in world.codes(wanted.id)
    world.redis.set(key, true)
    assert world.client.execute(wanted).stdout == b"true\n"


def test_an_end_is_told_as_it_was_signed_whatever_the_ledger_says(world: World) -> None:
    wanted = request("sh", "-c", "echo true; exit 3")
    true = world.client.execute(wanted)
    lies = {"state": "SUCCEEDED", "exit_code": "0", "error": "all is well", "stdout_sha256": "0" * 64, "signal": "9"}
    with world.altered(wanted.id, **lies):
        assert world.client.execute(wanted) == true
        assert world.ended(wanted) == true.model_copy(update={"stdout": b""})
        status = world.client.status(wanted.id)
        assert (status.state, status.exit_code, status.error) == (ExecState.FAILED, 3, true.error)
    (event,) = [event for event in world.client.audit(exec_id=wanted.id) if event.event == "record_altered"]
    assert "exit_code, signal, error, stdout_sha256, state" in event.reason
    assert event.requested_by == status.requested_by


def test_an_end_that_nobody_signed_is_an_error_and_not_an_end(world: World, tmp_path: Path) -> None:
    wanted, other = request("sh", "-c", "exit 3"), request("true")
    world.client.execute(wanted)
    receipt = world.redis.hget(keys.execution(world.client.execute(other).id), "receipt").decode()
    head, payload, signature = world.redis.hget(keys.execution(wanted.id), "receipt").decode().split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "==")) | {"state": "SUCCEEDED", "exit_code": 0}
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    history = "QUEUED 1;STARTED 2;"
    unsigned: list[tuple[tuple[str, ...], dict[str, str]]] = [
        (("receipt",), {"state": "SUCCEEDED", "exit_code": "0", "history": history + "SUCCEEDED 3"}),
        (("receipt",), {"state": "CANCELLED", "history": history + "CANCELLED 3"}),
        (("receipt",), {"state": "REJECTED", "history": "QUEUED 1;REJECTED 2"}),
        ((), {"state": "SUCCEEDED", "receipt": receipt}),
        ((), {"state": "SUCCEEDED", "receipt": f"{head}.{forged}.{signature}"}),
        ((), {"receipt": "nonsense"}),
        ((), {"order_sha256": "0" * 64}),
        ((), {"agent": TWO}),
        ((), {"state": "NONSENSE"}),
        ((), {"history": "\udcff"}),
    ]
    for removed, fields in unsigned:
        with world.altered(wanted.id, *removed, **{k: v.encode("utf-8", "surrogateescape") for k, v in fields.items()}):
            with pytest.raises(RecordAltered, match=wanted.id):
                world.client.status(wanted.id)
            with pytest.raises(RecordAltered, match=wanted.id):
                world.client.execute(wanted)
            with pytest.raises(RecordAltered, match=wanted.id):
                list(world.client.attach(wanted.id))
            # The others are told of all the same.
            assert other.id in [status.id for status in world.client.list_page(include_ended=True)[0]]
    assert world.codes(wanted.id).count("record_altered") > 6
    for fields in ({"request": "[" * 5000}, {"admitted_ms": "9" * 40}, {"started_ms": "9" * 40}):
        with world.altered(wanted.id, **fields):
            # What it was cannot be told, but how it ended.
            assert world.client.execute(wanted).exit_code == 3
            assert other.id in [status.id for status in world.client.list_page(include_ended=True)[0]]
    key = keys.execution(wanted.id)
    world.redis.rename(key, "kept")
    world.redis.lpush(key, "no hash")
    with pytest.raises(RecordAltered, match=wanted.id):
        world.client.status(wanted.id)
    assert other.id in [status.id for status in world.client.list_page(include_ended=True)[0]]
    world.redis.rename("kept", key)


def test_an_end_that_is_forged_while_somebody_waits_is_an_error_too(world: World, tmp_path: Path) -> None:
    go = tmp_path / "go"
    wanted = waiting_for(go, "exit 4")
    lie = {"state": "SUCCEEDED", "exit_code": "0", "history": "QUEUED 1;STARTED 2;SUCCEEDED 3"}
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(world.client.execute, wanted)
        follower = pool.submit(lambda: list(world.client.attach(wanted.id)))
        wait_until(lambda: world.redis.hget(keys.execution(wanted.id), "state") == b"STARTED", "it runs")
        with world.altered(wanted.id, **lie):
            world.redis.publish(keys.ENDED, wanted.id)
            with pytest.raises(RecordAltered, match="has no receipt of its agent"):
                waiting.result(PATIENCE_SECONDS)
        # Nobody else than the agent ends it.
        go.touch()
        assert world.client.execute(wanted).exit_code == 4
        with suppress(NotFound, RecordAltered):
            assert follower.result(PATIENCE_SECONDS)[-1].result.exit_code == 4


# --- output -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["no field", "no frame", "other number", "other entry"])
def test_a_log_with_other_things_than_output_is_found_and_read_to_its_end(world: World, how: str) -> None:
    """Twenty of them: more than is read at once, so that a reader who believes their numbers would never end."""
    wanted = request("true")
    world.client.execute(wanted)
    key = keys.output(ONE, wanted.id)
    for number in range(1, 21):
        seq = 1 if how == "other number" else number
        frame = Frame(STDOUT, seq, 0, time.time_ns() // 1000, b"lies\n").encode()
        fields = {b"x": frame} if how == "no field" else {FIELD: b"short" if how == "no frame" else frame}
        world.redis.xadd(key, fields, id=f"{number}-7" if how == "other entry" else entry_id(number))
    with pytest.raises(OutputAltered, match=wanted.id):
        list(world.client.attach(wanted.id))
    assert world.codes(wanted.id)[-1] == "output_altered"
    assert world.client.status(wanted.id).state is ExecState.SUCCEEDED


# --- claims, cancels and notices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", ["fence", "another journal", b"\xff", ["no", "text"]], ids=str)
def test_a_forged_claim_keeps_a_command_from_running_and_makes_nothing_else_of_it(
    world: World, tmp_path: Path, claim: Any
) -> None:
    mark = tmp_path / "mark"
    wanted = request("touch", str(mark))
    key = keys.claim(ONE, wanted.id)
    with world.busy(tmp_path):
        world.client.submit(wanted)
        if isinstance(claim, list):
            world.redis.rpush(key, *claim)
        else:
            world.redis.set(key, claim)
    assert world.client.execute(request("true")).exit_code == 0
    assert not mark.exists()
    if claim in ("another journal", b"\xff"):
        assert world.ended(wanted).state is ExecState.LOST
    else:
        assert not world.client.status(wanted.id).state.terminal
        world.redis.set(key, "fence")
        world.client.cancel(wanted.id)
        assert world.ended(wanted).state in (ExecState.CANCELLED, ExecState.LOST)
    assert not mark.exists()


def test_a_cancel_ends_nothing_but_what_it_was_signed_for(world: World, tmp_path: Path) -> None:
    cancelled = request("sleep", "600")
    world.start(cancelled)
    world.client.cancel(cancelled.id)
    assert world.ended(cancelled).state is ExecState.CANCELLED
    token = world.redis.get(keys.cancel(ONE, cancelled.id)).decode()
    go = tmp_path / "go"
    running = {agent: waiting_for(go, "exit 7", agent_id=agent) for agent in (ONE, TWO)}
    for agent, wanted in running.items():
        world.start(wanted)
        tokens = [token, "nonsense", token[:-4] + "AAAA", "\u2028", ""]
        expected = world.log(agent).count("cancel.refused") + len(tokens)
        for forged in tokens:
            world.redis.set(keys.cancel(agent, wanted.id), forged)
            world.redis.publish(keys.control(agent), f"{wanted.id} {forged}")
        world.redis.publish(keys.control(agent), b"\xff\xfe \xff")
        wait_until(
            lambda agent=agent, expected=expected: world.log(agent).count("cancel.refused") >= expected,
            "all are refused",
        )
    go.touch()
    for wanted in running.values():
        assert world.ended(wanted).exit_code == 7


def test_a_cancel_that_waits_for_an_order_is_refused_like_any_other(world: World, tmp_path: Path) -> None:
    wanted = request("true")
    with world.busy(tmp_path):
        world.client.submit(wanted)
        world.redis.set(keys.cancel(ONE, wanted.id), b"\xff\xfe")
    assert world.ended(wanted).state is ExecState.SUCCEEDED


def test_whose_an_execution_is_its_agent_knows_by_the_order(world: World, tmp_path: Path) -> None:
    """Somebody with an identity of his own, and the attacker's help, has the ledger say that it is his."""
    go = tmp_path / "go"
    wanted = waiting_for(go)
    world.start(wanted)
    with pytest.raises(NotFound):
        world.other.cancel(wanted.id)
    with world.altered(wanted.id, requested_by=str(OTHER)):
        world.other.cancel(wanted.id)
        wait_until(lambda: f"is by {OTHER}, whose execution it is not" in world.log(ONE), "its agent refuses")
    go.touch()
    assert world.ended(wanted).state is ExecState.SUCCEEDED


def test_forged_notices_end_start_and_hide_nothing(world: World, tmp_path: Path) -> None:
    go = tmp_path / "go"
    wanted = waiting_for(go, "exit 5")
    info = world.redis.get(keys.info(ONE))
    said = json.loads(info)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(world.client.execute, wanted)
        wait_until(lambda: world.redis.hget(keys.execution(wanted.id), "state") == b"STARTED", "it runs")
        for channel in (keys.ENDED, keys.APPROVED, keys.events(ONE), keys.events("ghost"), keys.result(ONE, wanted.id)):
            for message in (wanted.id, b"\xff", "", "[" * 9999, json.dumps({**said, "slots": -1})):
                world.redis.publish(channel, message)
        world.redis.publish(keys.events("ghost"), json.dumps(said))
        wait_until(lambda: "ghost" in [agent.id for agent in world.client.agents()], "the ghost is heard of")
        world.redis.hset(keys.AGENTS, mapping={"broken": "[", b"\xff": b"\xff", "empty": "{}"})
        world.redis.lpush(keys.info("ghost"), "no text")
        assert [(agent.id, agent.online) for agent in world.client.agents()] == [
            (ONE, True), (TWO, True), ("ghost", False)
        ]  # fmt: skip
        world.redis.delete(keys.info("ghost"))
        with pytest.raises(AgentOffline):
            world.client.execute(request("true", agent_id="ghost"))
        world.redis.hdel(keys.AGENTS, "broken", b"\xff", "empty", "ghost")
        world.redis.hdel(keys.ONLINE, "ghost")
        go.touch()
        assert waiting.result(PATIENCE_SECONDS).exit_code == 5


def test_names_that_are_none_end_nothing_and_hide_nobody(world: World) -> None:
    said = world.redis.get(keys.info(ONE))
    kept = world.redis.hget(keys.AGENTS, ONE)
    names = [b"\xff", b"no id", b"\xe2\x80\xa8"]
    ran = world.client.execute(request("true")).id
    for name in names:
        world.redis.set(b"agent." + name + b":info", said)
        world.redis.publish(b"agent." + name + b":events", said)
        world.redis.publish(b"celery-task-meta-" + name, said)
        world.redis.hset(keys.AGENTS, name, kept)
        for index in (keys.OPEN, keys.APPROVALS, keys.INDEX, keys.agent_index(ONE)):
            world.redis.zadd(index, {name: time.time() * 1000})
    world.redis.lpush(keys.info("ghost"), "no text")
    try:
        assert [agent.id for agent in world.client.agents()] == [ONE, TWO]
        assert ran in [status.id for status in world.client.list_page(include_ended=True)[0]]
        assert world.client.approvals() == ()
        wait_until(lambda: not world.redis.zcard(keys.OPEN), "the reaper has let go of them")
        # Whoever listens anew learns of all agents.
        count = world.log("orchestrator").count("redis.subscribed")
        for connection in world.redis.client_list():
            if connection["name"] == "orchestrator-subscriber":
                world.redis.client_kill_filter(_id=connection["id"])
        wait_until(lambda: world.log("orchestrator").count("redis.subscribed") > count, "it listens again")
        wait_until(lambda: "not a valid agent id" in world.log("orchestrator"), "they are named in the log")
        world.unhurt()
    finally:
        world.redis.delete(keys.info("ghost"), *[b"agent." + name + b":info" for name in names])
        world.redis.hdel(keys.AGENTS, *names)
        for index in (keys.OPEN, keys.APPROVALS, keys.INDEX, keys.agent_index(ONE)):
            world.redis.zrem(index, *names)


def test_an_agent_that_is_made_out_to_be_another_runs_nothing(world: World, tmp_path: Path) -> None:
    lie, state, why = {"boot": "0" * 16}, ExecState.LOST, "lost its journal"
    mark = tmp_path / "mark"
    said = json.loads(world.redis.get(keys.info(ONE)))

    def told() -> ExecResponse | None:
        # The agent speaks for itself again every few seconds.
        world.redis.publish(keys.events(ONE), json.dumps({**said, **lie}))
        mark.unlink(missing_ok=True)
        response = world.client.execute(request("touch", str(mark)))
        return response if response.state is state else None

    response = wait_until(told, "the lie is believed")
    assert why in response.error
    world.redis.publish(keys.events(ONE), json.dumps(said))
    wait_until(lambda: world.client.execute(request("true")).state is ExecState.SUCCEEDED, "it is itself again")
    assert not mark.exists()


# --- the audit trail --------------------------------------------------------------------------------------------------


#: The first by name of those that grant it decides.
BRIEFLY = """\
  - name: briefly
    subjects: ["{other}"]
    agents: ["**"]
    allowedCommands: ["/usr/bin/touch ..."]
    rateLimit: {{queueTimeout: 2s}}
"""
WAITS = "    output: {limit: 256KiB, whenFull: wait}\n"


@pytest.fixture(scope="module")
def robbed(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[World]:
    """A world whose books need not agree at its end. Its parts reach Redis through relays."""
    environment = {"TACHIKOMA_SWEEP": "100ms", "TACHIKOMA_LEASE": "45s"}
    data = prepare(tmp_path_factory.mktemp("robbed"))
    file = data / "policy.yaml"
    head = "policies:\n"
    file.write_text(file.read_text().replace(head, head + BRIEFLY.format(other=OTHER)) + WAITS)
    with RelayedStack(data, agents=2, redis_server=redis_server, environment=environment, queue_timeout="10m") as stack:
        made = World(stack)
        yield made
        made.unhurt()
        made.close()


def test_garbage_in_the_audit_trail_is_told_and_logged_and_ends_nothing(robbed: World) -> None:
    before = robbed.client.audit(limit=1)[0]
    garbage: list[dict[Any, Any]] = [
        {"x": "y"}, {"seq": "many", "event": "succeeded"}, {b"\xff": b"\xff"}, {"seq": "9" * 30, "event": "denied"},
        {"seq": before.seq + 1, "event": "started", "exit_code": "9" * 99}, {"seq": "1", "event": "\u2028 "},
        {"seq": "1", "event": "admitted", "request": "["},
    ]  # fmt: skip
    cursors = [robbed.redis.xadd(keys.AUDIT, entry).decode() for entry in garbage]
    # A number that was used for nothing that can be read.
    lost = robbed.redis.incr(keys.AUDIT_SEQ)
    ran = robbed.client.execute(request("true"))
    wait_until(lambda: len(robbed.codes(ran.id)) == 4, "its end is on the record")
    told = robbed.client.audit(after=before.cursor, limit=100)
    altered = [event for event in told if event.event == "trail_altered"]
    assert [event.cursor for event in altered] == cursors
    assert {(event.seq, event.authorized) for event in altered} == {(0, False)}
    assert [event.seq for event in told if event.id == ran.id] == [lost + number for number in (1, 2, 3, 4)]
    cli = make_cli(robbed.stack)
    shown = cli.run("audit", "tail", "-n", "50")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count(b"trail_altered") == len(garbage)
    exported = cli.run("audit", "export", "--after", str(before.seq))
    assert [json.loads(line)["seq"] for line in exported.stdout.splitlines()] == [event.seq for event in told]
    # The log of the orchestrator, and the chain that leaves Redis, which goes on and holds.
    chain = robbed.stack.data / "audit"
    wait_until(lambda: told[-1] in _written(chain), "all of it is written")
    assert [event for event in _written(chain) if event.cursor in cursors] == altered
    assert cursors[0] in robbed.log("orchestrator")
    verified = cli.run("audit", "verify", str(chain))
    assert verified.returncode == 0, verified.stderr
    notes = verified.stderr.decode()
    for cursor in cursors:
        assert f"note: at {cursor} the trail in Redis had an entry that could not be read" in notes
    assert f"note: events {lost} to {lost} were gone from Redis before they were written here" in notes
    robbed.unhurt()


def _written(chain: Path) -> list[ExecAuditLog]:
    # The last line may be half written.
    with suppress(ConfigurationError):
        return list(read_events(chain))
    return []


@pytest.mark.parametrize(
    ("key", "command"),
    [
        (keys.AUDIT, ("SET", "no stream")),
        (keys.AUDIT_SEQ, ("SET", "no number")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[1],
)
def test_something_else_in_place_of_the_audit_trail_stops_requests_and_nothing_else(
    robbed: World, tmp_path: Path, key: str, command: tuple[str, str]
) -> None:
    """Nothing is accepted that cannot be recorded. What runs goes on, and has its end when the trail is one again."""
    go = tmp_path / "go"
    running = waiting_for(go, "exit 6")
    robbed.start(running)
    kept = robbed.redis.dump(key)
    robbed.redis.delete(key)
    robbed.redis.execute_command(command[0], key, command[1])

    def refused() -> bool:
        try:
            robbed.client.submit(request("true"))
        except Unavailable:
            return True
        return False

    wait_until(refused, "requests are refused")
    go.touch()
    wait_until(lambda: robbed.redis.exists(keys.result(ONE, running.id)), "its agent has told its end")
    parts = (robbed.stack.orchestrator, *robbed.stack.agents.values())
    assert {part.name: part.pid for part in parts if part.alive} == robbed.pids
    # In one step: an event in between would begin the numbers again.
    with robbed.redis.pipeline(transaction=True) as pipe:
        pipe.delete(key)
        pipe.restore(key, 0, kept)
        pipe.execute()
    assert robbed.ended(running).exit_code == 6
    assert robbed.codes(running.id) == ["admitted", "dispatched", "started", "failed"]
    wait_until(lambda: not refused(), "requests are taken again")
    robbed.unhurt()


def test_a_position_of_a_sink_that_is_garbage_is_not_believed(robbed: World) -> None:
    garbage = b'{"cursor":"x","seq":1,"at":1}'
    name = next(iter(robbed.redis.hgetall(keys.AUDIT_SINKS)))
    robbed.redis.hset(keys.AUDIT_SINKS, mapping={name: garbage, b"\xff": garbage})
    wait_until(lambda: robbed.redis.hget(keys.AUDIT_SINKS, name) != garbage, "it is written anew")
    robbed.redis.hdel(keys.AUDIT_SINKS, b"\xff")
    robbed.unhurt()


def test_a_file_needs_no_position_in_redis(robbed: World) -> None:
    """What stands in Redis of a file is for trimming and for people."""
    robbed.redis.delete(keys.AUDIT_SINKS)
    robbed.redis.set(keys.AUDIT_SINKS, "no hash")
    ran = robbed.client.execute(request("true"))
    wait_until(lambda: len(robbed.codes(ran.id)) == 4, "its end is on the record")
    last = robbed.client.audit(exec_id=ran.id)[-1]
    wait_until(lambda: last in _written(robbed.stack.data / "audit"), "it is written")
    wait_until(lambda: "the position in Redis cannot be stored" in robbed.log("orchestrator"), "that is said")
    robbed.redis.delete(keys.AUDIT_SINKS)
    wait_until(lambda: robbed.redis.hlen(keys.AUDIT_SINKS) == 1, "it is kept again")


# --- time and readers -------------------------------------------------------------------------------------------------


def test_a_claim_that_redis_answers_after_the_orders_expiry_starts_nothing(robbed: World, tmp_path: Path) -> None:
    """The claim is made in time, and so nobody else ends the execution; only its agent cannot know that."""
    mark = tmp_path / "mark"
    wanted = request("touch", str(mark))
    claim = [b"SET", keys.claim(ONE, wanted.id).encode()]
    assert isinstance(robbed.stack, RelayedStack)
    point = robbed.stack.relays.hold(ONE, lambda command: command[:2] == claim, answer=True)
    try:
        robbed.other.submit(wanted)
        wait_until(point.reached.is_set, "it is claimed")
        wait_until(lambda: robbed.redis.exists(claim[1]), "by Redis too")
        deadline = robbed.other.status(wanted.id).deadline
        assert deadline is not None
        # An order names whole seconds, rounded up.
        wait_until(lambda: time.time() > deadline.timestamp() + 1, "the order has expired")
        assert not robbed.other.status(wanted.id).state.terminal
    finally:
        robbed.stack.relays.let_go(ONE, point)
    response = robbed.ended(wanted)
    assert (response.state, response.error) == (
        ExecState.EXPIRED, "not started: its claim came after its queue timeout"
    )  # fmt: skip
    assert not mark.exists()
    robbed.unhurt()


@pytest.mark.parametrize("position", ["9" * 18, "-1", b"\xff", ["no", "text"]], ids=str)
def test_a_forged_position_of_a_reader_neither_ends_an_execution_nor_loses_output_in_silence(
    robbed: World, tmp_path: Path, position: Any
) -> None:
    """Its output waits for readers. Who pretends to be one has it cut, and that is told; who says nonsense is none."""
    go = tmp_path / "go"
    wanted = waiting_for(go, "seq 400000")
    written = b"".join(b"%d\n" % number for number in range(1, 400_001))
    robbed.start(wanted)
    key = keys.read(ONE, wanted.id)
    if isinstance(position, list):
        robbed.redis.rpush(key, *position)
    else:
        robbed.redis.set(key, position)
    go.touch()
    believed = position == "9" * 18
    if believed:
        wait_until(lambda: robbed.client.status(wanted.id).state.terminal, "nobody reads, and it ends")
    else:
        wait_until(lambda: robbed.redis.xlen(keys.output(ONE, wanted.id)), "it writes")
        assert robbed.client.status(wanted.id).state is ExecState.STARTED
    outputs = list(robbed.client.attach(wanted.id))
    result = outputs[-1].result
    assert result is not None
    assert (result.state, result.exit_code) == (ExecState.SUCCEEDED, 0)
    gaps = sum(output.missing_bytes for output in outputs)
    assert sum(len(output.data) for output in outputs) + gaps == result.stdout_summary.total_bytes == len(written)
    if believed:
        assert gaps
    else:
        assert b"".join(output.data for output in outputs) == written
