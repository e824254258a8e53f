"""Schedules as processes: real beats, a real submitter, and what becomes of scheduled times when they are killed."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support import Cli, kill_redis, make_cli, prepare, wait_until

from json_schemas import checked
from tachikoma import (
    AuditCode,
    Client,
    DueOutcome,
    ExecState,
    ExecStatus,
    NotFound,
    PermissionDenied,
    ScheduledRun,
    Unavailable,
)
from tachikoma.dev.part import Part
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import user_id
from tachikoma.redis import keys
from tachikoma.redis.keys import DUE_TASK
from tachikoma.vocabulary.clock import to_ms
from tachikoma_orchestrator.audit.entries import parse
from tachikoma_orchestrator.schedules.runner import CHECK_SECONDS

pytestmark = pytest.mark.long

POLICY = """\
  - name: scheduled
    subjects: ["spiffe://tachikoma.local/schedule/*"]
    agents: ["**"]
    allowedCommands: ["/** ..."]
    deniedCommands: [reboot]
    allowInterpreters: true
    hostAccess: true
"""
#: For what is to come only when it is asked for.
YEAR = f"{366 * 24}h"


def schedule(name: str, every: str, *command: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "every": every, "agentId": "agent-1", "request": {"command": command}, **more}


def write(file: Path, *schedules: dict[str, Any]) -> None:
    """Replace a file of schedules at once; JSON is YAML."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"schedules": schedules}))
    new.rename(file)


def prepared(data: Path, *schedules: dict[str, Any]) -> Path:
    """A folder for a stack, with a policy for schedules; and their file."""
    prepare(data)
    with (data / "policy.yaml").open("a") as policy:
        policy.write(POLICY)
    write(data / "schedules.yaml", *schedules)
    return data


def scheduled_stack(data: Path, redis_server: Path | None, **options: Any) -> Stack:
    return Stack(data, redis_server=redis_server, schedules=str(data / "schedules.yaml"), **options)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    """Its schedules: one that is due twice a second, one that policy refuses, one that nobody waits for."""
    data = prepared(
        tmp_path_factory.mktemp("schedules"),
        schedule("often", "500ms", "/usr/bin/true"),
        schedule("rare", YEAR, "/usr/bin/echo", "--password", "hunter2"),
        schedule("denied", YEAR, "reboot"),
    )
    with scheduled_stack(data, redis_server) as running:
        yield running


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.profile()) as connected:
        yield connected


@pytest.fixture(scope="module")
def cli(stack: Stack) -> Cli:
    return make_cli(stack)


@pytest.fixture
def redis(stack: Stack) -> Iterator[Redis]:
    with Redis(**stack.redis_admin) as connected:
        yield connected


def ran(client: Client, name: str, at_least: int = 1) -> tuple[ScheduledRun, ...]:
    """Wait until so many runs of a schedule were accepted, and return all that is on its record."""

    def enough() -> tuple[ScheduledRun, ...] | None:
        found = client.scheduled_runs(name, limit=1000)
        return found if [run.outcome for run in found].count(DueOutcome.RUN) >= at_least else None

    found: tuple[ScheduledRun, ...] = wait_until(enough, f"{at_least} runs of {name}")
    return found


# --- as it should be --------------------------------------------------------------------------------------------------


def test_what_is_due_runs_as_the_schedule(client: Client) -> None:
    run = next(run for run in ran(client, "often", 3) if run.outcome is DueOutcome.RUN)
    wait_until(lambda: client.status(run.id).state is ExecState.SUCCEEDED, "it succeeds")
    status = client.status(run.id)
    assert status.requested_by == f"spiffe://{TRUST_DOMAIN}/schedule/often"
    assert status.policy_applied.startswith("scheduled@")
    admitted = next(event for event in client.audit(exec_id=run.id) if event.event == AuditCode.ADMITTED)
    assert admitted.client_ip == ""


def test_beat_hints_sooner_than_the_submitter_would_check(client: Client) -> None:
    # Two checks of its own are at least 10 s apart, and each records all scheduled times until then.
    def soon() -> bool:
        moments = sorted({run.time for run in client.scheduled_runs("often", limit=1000)})
        # What one check records is milliseconds apart; something is due twice a second.
        least, most = timedelta(milliseconds=200), timedelta(seconds=CHECK_SECONDS / 2)
        return any(least < b - a < most for a, b in pairwise(moments))

    wait_until(soon, "scheduled times are recorded within seconds of each other")


def test_the_command_line_tells_all_about_schedules(cli: Cli, client: Client) -> None:
    ran(client, "often")
    listed = shown(cli, "schedule ls")
    assert [item["name"] for item in listed] == ["denied", "often", "rare"]
    often = listed[1]
    assert (often["when"], often["enabled"], often["paused"]) == ("every 500ms", True, False)
    assert often["last"]["outcome"] in ("RUN", "TAKEN")
    text = cli.run("schedule", "ls").stdout.decode()
    assert "every 500ms" in text
    assert "hunter2" not in text + json.dumps(listed)
    assert len(cli.run("schedule", "next", "often", "-n", "4").stdout.splitlines()) == 4
    assert len(shown(cli, "schedule next", "often", "-n", "4")) == 4
    history = shown(cli, "schedule history", "often", "-n", "5")
    times = [datetime.fromisoformat(run["due"]) for run in history]
    assert times == sorted(times)
    assert "RUN" in cli.run("schedule", "history", "often").stdout.decode()
    assert shown(cli, "schedule pause", "rare", "--reason", "a test")["paused"]
    assert not shown(cli, "schedule resume", "rare")["paused"]


def shown(cli: Cli, command: str, *arguments: str) -> Any:
    """The document of a command about schedules, checked against its schema."""
    done = cli.run(*command.split(), *arguments, "-o", "json")
    assert done.returncode == 0, done.stderr
    return checked(command, done.stdout)


def test_a_run_by_hand_is_an_execution_and_on_the_record(cli: Cli, client: Client, stack: Stack) -> None:
    run = shown(cli, "schedule run", "rare")
    assert shown(cli, "schedule check", str(stack.data / "schedules.yaml"))["schedules"] == 3
    wait_until(lambda: client.status(run["id"]).state is ExecState.SUCCEEDED, "it succeeds")
    assert client.scheduled_runs("rare")[0].requested_by == str(stack.user)
    event = next(event for event in client.audit(exec_id=run["id"]) if event.event == AuditCode.SCHEDULE_RUN)
    assert event.actor == str(stack.user)


def test_what_policy_refuses_is_refused_and_says_why(cli: Cli, client: Client) -> None:
    done = cli.run("schedule", "run", "denied")
    assert done.returncode == 1
    assert b"denied: REFUSED: not allowed: policy scheduled denies 'reboot'" in done.stderr
    assert client.scheduled_runs("denied")[0].outcome is DueOutcome.REFUSED


def test_a_pause_holds_and_ends(cli: Cli, client: Client) -> None:
    done = cli.run("schedule", "pause", "often", "--reason", "disk is full")
    assert done.stdout.decode() == "often: paused\n"
    assert "disk is full" in cli.run("schedule", "ls").stderr.decode()

    def skipped() -> bool:
        return [run.outcome for run in client.scheduled_runs("often", limit=2)] == [DueOutcome.SKIPPED] * 2

    wait_until(skipped, "two scheduled times are skipped")
    assert client.scheduled_runs("often")[0].reason == "the schedule was paused: disk is full"
    assert cli.run("schedule", "resume", "often").stdout.startswith(b"often: next due ")
    wait_until(lambda: client.scheduled_runs("often")[0].outcome is DueOutcome.RUN, "it runs again")


def test_only_operators_see_schedules(stack: Stack) -> None:
    with Client(stack.issue(user_id(TRUST_DOMAIN, "somebody"))) as other:
        calls: list[Callable[[], object]] = [
            other.schedules,
            lambda: other.next_due_times("often"),
            lambda: other.scheduled_runs("often"),
            lambda: other.pause_schedule("often", "x"),
            lambda: other.resume_schedule("often"),
            lambda: other.run_schedule("often"),
        ]
        for call in calls:
            with pytest.raises(PermissionDenied, match="only operators"):
                call()


def test_what_is_not_there_is_not_found(client: Client, cli: Cli) -> None:
    for call in (client.next_due_times, client.scheduled_runs, client.run_schedule, client.resume_schedule):
        with pytest.raises(NotFound):
            call("nothing")  # type: ignore[operator]
    assert cli.run("schedule", "history", "nothing").returncode == 1


# --- what somebody else puts on the queue -----------------------------------------------------------------------------


def hint(task: str = DUE_TASK, args: Any = (), embed: Any = None, **given: Any) -> str:
    """A message as beat's."""
    body = json.dumps([args, given, {} if embed is None else embed])
    return json.dumps(
        {
            "body": body, "content-encoding": "utf-8", "content-type": "application/json",
            "headers": {"lang": "py", "task": task, "id": "some-id", "root_id": "some-id", "parent_id": None},
            "properties": {"delivery_mode": 2, "delivery_tag": "x", "priority": 0,
                           "delivery_info": {"exchange": "", "routing_key": keys.BATCH}},
        }
    )  # fmt: skip


FORGED: list[str] = [
    "", "x", "{}", "[]", "null", "1" * 5000, "[" * 100_000, json.dumps({"body": 1, "headers": 2}),
    hint(), hint(schedule="nothing"), hint(schedule=["rare"]), hint(schedule="rare", due_ms="soon"),
    hint(schedule="rare", due_ms=0), hint(schedule="rare", due_ms=10**15), hint(schedule="rare", due_ms=-(10**30)),
    hint(schedule="rare", due_ms=int(time.time() * 1000), command=["/usr/bin/touch", "/tmp/x"], agent_id="agent-1"),
    hint(args=["rare", 5, {}], schedule="rare"), hint(schedule="x" * 1_000_000), hint(schedule="a\ud800"),
    hint("tachikoma.submit", ["not a token"]), hint("tachikoma.execute", ["not an order"]), hint("celery.chord"),
    hint("celery.backend_cleanup"), hint("os.system", ["touch /tmp/x"]),
    hint(schedule="rare", embed={"callbacks": [{"task": "evil", "args": [], "kwargs": {}, "options": {}}]}),
    hint(schedule="rare", embed={name: [{"task": "evil"}] for name in ("errbacks", "chord", "chain")}),
]  # fmt: skip


def test_forged_messages_run_nothing_and_end_nobody(stack: Stack, client: Client, redis: Redis) -> None:
    assert stack.submitter is not None
    pid = stack.submitter.pid
    before = {run.id for run in client.scheduled_runs("rare")}
    for message in FORGED:
        redis.lpush(keys.BATCH, message.encode("utf-8", "surrogatepass"))
    wait_until(lambda: redis.llen(keys.BATCH) == 0, "they were taken")
    begin = len(client.scheduled_runs("often", limit=1000))
    ran(client, "often", begin + 2)
    assert stack.submitter.alive
    assert stack.submitter.pid == pid
    assert {run.id for run in client.scheduled_runs("rare")} == before
    assert redis.llen(keys.CALLBACKS) == 0
    asked = {status.requested_by for status in client.list_page(include_ended=True, page_size=1000)[0]}
    assert all(requester.startswith(f"spiffe://{TRUST_DOMAIN}/schedule/") for requester in asked)


def test_what_is_forged_into_beats_lock_delays_hints_at_most(stack: Stack, client: Client, redis: Redis) -> None:
    """The submitter checks by itself, and beat goes on when the lock is free again."""
    assert stack.beat is not None
    for forge in (lambda: redis.set(keys.BEAT_LOCK, b"\xff"), lambda: redis.lpush(keys.BEAT_LOCK, "x")):
        redis.delete(keys.BEAT_LOCK)
        forge()
        begin = len(client.scheduled_runs("often", limit=1000))
        ran(client, "often", begin + 1)
        redis.delete(keys.BEAT_LOCK)
        wait_until(lambda: redis.type(keys.BEAT_LOCK) == b"string", "beat has the lock again")
    assert stack.beat.alive


# --- changes ----------------------------------------------------------------------------------------------------------


def test_a_changed_file_is_in_force_at_once_and_a_wrong_one_never(
    stack: Stack, client: Client, cli: Cli, redis: Redis
) -> None:
    file = stack.data / "schedules.yaml"
    before = file.read_text()
    write(file, *json.loads(before)["schedules"], schedule("new", "500ms", "/usr/bin/true"))
    wait_until(lambda: len(client.schedules()[0]) == 4, "it is active")
    ran(client, "new", 2)
    wait_until(lambda: "new" in hinted(stack, redis), "beat sends hints of it")
    file.write_text("schedules: [")
    wait_until(lambda: client.schedules()[1], "the mistake is told")
    done = cli.run("schedule", "ls")
    assert done.returncode == 1
    assert b"not YAML" in done.stderr
    begin = len(client.scheduled_runs("new", limit=1000))
    ran(client, "new", begin + 1)
    file.write_text(before)
    wait_until(lambda: len(client.schedules()[0]) == 3, "it is gone")
    wait_until(lambda: "new" not in hinted(stack, redis), "beat sends no more hints of it")
    # What it did stays on the record.
    assert client.scheduled_runs("new")


def hints(stack: Stack, redis: Redis, at_least: int) -> list[dict[str, Any]]:
    """Stop the submitter until so many hints wait for it, and return their arguments."""
    assert stack.submitter is not None
    stack.submitter.stop()
    try:
        wait_until(lambda: redis.llen(keys.BATCH) >= at_least, "beat sends hints")
        found = []
        for raw in redis.lrange(keys.BATCH, 0, -1):
            body = json.loads(raw)["body"]
            args, kwargs, _ = json.loads(base64.b64decode(body) if not body.startswith("[") else body)
            assert args == []
            found.append(kwargs)
        return found
    finally:
        stack.start_part(stack.submitter)


def hinted(stack: Stack, redis: Redis) -> set[str]:
    """The schedules of the next hints."""
    return {hint["schedule"] for hint in hints(stack, redis, 6)[:6]}


def test_a_beat_alone_sends_names_and_due_times_and_nothing_else(stack: Stack, redis: Redis) -> None:
    for hint in hints(stack, redis, 3):
        assert hint.keys() == {"schedule", "due_ms"}
        assert hint["schedule"] == "often"
        assert hint["due_ms"] % 500 == 0


def test_another_beat_takes_over_and_gives_up_again(stack: Stack, client: Client, redis: Redis) -> None:
    assert stack.beat is not None
    lock = keys.BEAT_LOCK
    other = stack.make_beat("beat-2")
    # It is ready, and waits.
    stack.start_part(other)
    token = redis.get(lock)
    assert token
    # One that stops gives its lock back, and one that is killed does not.
    stack.beat.stop()
    wait_until(lambda: redis.get(lock) not in (None, token), "the other has the lock")
    token = redis.get(lock)
    stack.start_part(stack.beat)
    other.kill()
    wait_until(lambda: redis.get(lock) not in (None, token), "the first has it again")
    begin = len(client.scheduled_runs("often", limit=1000))
    ran(client, "often", begin + 3)


def test_a_redis_that_restarts_ends_neither_beat_nor_submitter(stack: Stack, client: Client) -> None:
    assert stack.beat is not None
    assert stack.submitter is not None
    ran(client, "often", 1)
    kill_redis(stack)
    stack.start_redis()

    def latest() -> int:
        with suppress(Unavailable):
            return to_ms(client.scheduled_runs("often", limit=1)[0].due)
        return 0

    begin = wait_until(latest, "the orchestrator is back")
    wait_until(lambda: latest() > begin + 2000, "it goes on")
    assert stack.beat.alive
    assert stack.submitter.alive


def test_schedules_written_in_python_run_too_and_over_tls(tmp_path: Path, need: Callable[[bool, str], None]) -> None:
    server = shutil.which("redis-server")
    need(server is not None, "redis-server")
    assert server is not None
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "jobs.py").write_text(
        "from celery import Celery\n"
        "app = Celery('jobs')\n"
        "app.conf.beat_schedule = {'job': {'task': 'tachikoma.schedule', 'schedule': 0.5,\n"
        "    'kwargs': {'agent_id': 'agent-1', 'request': {'command': ['/usr/bin/true']}}}}\n"
    )
    data = tmp_path / "data"
    data.mkdir()
    prepared(data)
    environment = {"PYTHONPATH": str(modules)}
    stack = Stack(data, redis_server=Path(server), redis_tls=True, schedules="jobs:app", environment=environment)
    with stack as running, Client(running.profile()) as client:
        assert ran(client, "job", 2)[0].agent_id == "agent-1"
        assert running.beat is not None
        assert running.beat.alive


# --- killed -----------------------------------------------------------------------------------------------------------

#: Scheduled times that are to come, and how many schedules each half second brings one.
DUE_TIMES = 200
SCHEDULES = 8
#: Processes that are killed at least, however slow the machine is.
KILLS = 5


def every_execution(client: Client) -> list[ExecStatus]:
    """Read all pages; on a slow machine the test takes long, and more is due meanwhile than one page holds."""
    found, token = client.list_page(include_ended=True, page_size=1000)
    every = list(found)
    while token:
        found, token = client.list_page(include_ended=True, page_size=1000, page_token=token)
        every += found
    return every


def test_two_beats_and_a_submitter_that_are_killed_at_random_account_for_every_due_time_once(
    tmp_path: Path, redis_server: Path | None
) -> None:
    seed = int(os.environ.get("TACHIKOMA_TEST_SEED") or random.randrange(10**9))
    print(f"TACHIKOMA_TEST_SEED={seed}")
    chance = random.Random(seed)
    marks = tmp_path / "marks"
    names = [f"job-{number}" for number in range(SCHEDULES)]
    # Each run leaves a line; appending a short one is atomic.
    command = ("/bin/sh", "-c", f"echo run >> {marks}")
    data = prepared(tmp_path, *(schedule(name, "500ms", *command) for name in names))
    with scheduled_stack(data, redis_server) as stack, Client(stack.profile()) as client:
        assert stack.beat is not None
        assert stack.submitter is not None
        other = stack.make_beat("beat-2")
        stack.start_part(other)
        parts: list[Part] = [stack.beat, other, stack.submitter]
        kills: Counter[str] = Counter()
        with Redis(**stack.redis_admin) as redis:
            begin = {name: first_due(client, name) for name in names}

            def due_so_far() -> int:
                seconds, micros = redis.time()
                now_ms = seconds * 1000 + micros // 1000
                return sum((now_ms - since) // 500 for since in begin.values())

            try:
                while due_so_far() < DUE_TIMES or sum(kills.values()) < KILLS:
                    victim = chance.choice(parts)
                    time.sleep(chance.uniform(0.1, 2))
                    victim.kill()
                    kills[victim.name] += 1
                    time.sleep(chance.uniform(0, 0.3))
                    # Not waited for, so that more than one may be away.
                    victim.start()
                for part in parts:
                    wait_until(lambda part=part: part.alive, f"{part.name} runs")
                # From here on nothing runs any more, so each run can be settled. A submitter that stops between the
                # acceptance of a run and its record leaves it taken, for the next one to settle.
                for name in names:
                    client.pause_schedule(name, "the books are compared")
                wait_until(lambda: settled(client, begin), "everything is settled", 120)
            finally:
                other.stop()
            stack.beat.stop()
            stack.submitter.stop()
            trail = [parse(entry) for entry in redis.xrange(keys.AUDIT)]
        runs = [run for name in names for run in client.scheduled_runs(name, limit=1000)]
        for name in names:
            due = [to_ms(run.due) for run in client.scheduled_runs(name, limit=1000)][::-1]
            assert due == list(range(due[0], due[-1] + 1, 500)), name
        assert len(runs) >= DUE_TIMES
        assert all(run.count == 1 for run in runs)
        executed = [run.id for run in runs if run.outcome is DueOutcome.RUN]
        assert len(set(executed)) == len(executed)
        wait_until(lambda: not client.list_page(page_size=1)[0], "all ended")
        starts = Counter(event.id for event in trail if event.event == AuditCode.STARTED)
        assert set(starts.values()) <= {1}
        ended = every_execution(client)
        started = [item for item in ended if item.start_time is not None]
        assert marks.read_text().count("run\n") == len(started)
        assert {item.id for item in started} <= set(executed)
        outcomes = Counter(run.outcome for run in runs)
        print(f"{len(runs)} scheduled times, {dict(outcomes)}, killed: {dict(kills)}")


def first_due(client: Client, name: str) -> int:
    """The first scheduled time of a schedule on record."""
    wait_until(lambda: client.scheduled_runs(name), f"{name} has begun")
    return to_ms(client.scheduled_runs(name, limit=1000)[-1].due)


def settled(client: Client, begin: dict[str, int]) -> bool:
    """Return True if each schedule has hundreds of recorded scheduled times, and all of their outcomes are final."""
    found = [client.scheduled_runs(name, limit=1000) for name in begin]
    enough = all(len(runs) >= DUE_TIMES // SCHEDULES for runs in found)
    return enough and not any(run.outcome is DueOutcome.TAKEN for runs in found for run in runs)
