"""Commands from Celery applications, through a submitter: real Celery, real processes, Redis with its ACL users."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, group
from kombu import Connection
from redis import Redis
from support import AGENT, free_addresses, prepare, read_metrics, request, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import (
    BatchResult,
    Client,
    ExecRequest,
    ExecResponse,
    ExecutionFailed,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    TargetState,
    Unauthenticated,
    Unavailable,
    new_id,
)
from tachikoma.celery import PROGRESS, TASK_NAME, BatchTaskResult, Commands
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.signed_messages import SignedRequest
from tachikoma.identity.signing import sign
from tachikoma.identity.spiffe import service_id, user_id
from tachikoma.redis import keys
from tachikoma.redis.access import celery_url
from tachikoma.redis.users import SUBMITTER, application_user, rules
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.states import ExecState

pytestmark = pytest.mark.long

APPLICATION = "reports"


@pytest.fixture(scope="module")
def metrics() -> str:
    """The address of the submitter's metrics."""
    return free_addresses(1)[0]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None, metrics: str) -> Iterator[Stack]:
    data = prepare(tmp_path_factory.mktemp("stack"))
    environment = {"TACHIKOMA_SUBMITTER_METRICS": metrics}
    with Stack(data, redis_server=redis_server, submitter=True, environment=environment) as running:
        let_in(running)
        yield running


def let_in(stack: Stack) -> str:
    """Give the application its Redis user; its password."""
    user = application_user(APPLICATION)
    stack.redis_passwords.make(user)
    with Redis(**stack.redis_admin) as redis:
        redis.execute_command("ACL", "SETUSER", user, *rules(user, stack.redis_passwords.hashes(user)))
        redis.execute_command("ACL", "SAVE")
    return stack.redis_passwords.path(user).read_text().strip()


def url(stack: Stack) -> str:
    user, password = application_user(APPLICATION), let_in(stack)
    return celery_url(stack.redis_url).replace("redis+socket://", f"redis+socket://{user}:{password}@")


@contextlib.contextmanager
def application(stack: Stack) -> Iterator[Celery]:
    """A plain Celery application, as its owner would write it."""
    address = url(stack)
    app = Celery("reports", broker=address, backend=address, set_as_current=False)
    try:
        yield app
    finally:
        # Results that are still held somewhere would unsubscribe from a Redis that is gone by then.
        app.backend.result_consumer.cancel_for = lambda task_id: None
        app.close()


@pytest.fixture(scope="module")
def app(stack: Stack) -> Iterator[Celery]:
    with application(stack) as made:
        yield made


@pytest.fixture(scope="module")
def commands(stack: Stack, app: Celery) -> Iterator[Commands]:
    made = Commands(app, profile=stack.profile(), application=APPLICATION)
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.profile()) as connected:
        yield connected


def push(stack: Stack, element: str | bytes) -> None:
    """Put something on the submitters' queue, as whoever owns Redis can."""
    with Redis(**stack.redis_admin) as redis:
        redis.lpush(keys.SUBMIT, element)


def token(identity: Path, made: ExecRequest, **claims: Any) -> str:
    """A signed request, with claims that may be wrong."""
    source = FileSvidSource(identity)
    svid, now = source.current(), int(time.time())
    source.close()
    fields: dict[str, Any] = {
        "iss": str(svid.spiffe_id),
        "iat": now,
        "aud": str(service_id(TRUST_DOMAIN, "orchestrator")),
        "exp": now + 60,
        "jti": made.id,
        "request": made,
    }
    return sign(svid, SignedRequest(**{**fields, **claims}))


def starts(client: Client, exec_id: str) -> int:
    """How often the record says that an execution was started."""
    return sum(event.event == AuditCode.STARTED for event in client.audit(exec_id=exec_id))


# --- as an application ------------------------------------------------------------------------------------------------


def test_a_command_is_a_celery_task_with_the_response_as_its_result(commands: Commands) -> None:
    result = commands.s(AGENT, ["/bin/echo", "hello"]).delay()
    answer = ExecResponse.from_dict(result.get(timeout=PATIENCE_SECONDS))
    assert (answer.state, answer.exit_code, answer.stdout) == (ExecState.SUCCEEDED, 0, b"hello\n")
    assert result.status == "SUCCESS"


def test_a_submitter_serves_the_metrics_of_its_requests(commands: Commands, metrics: str) -> None:
    admitted = 'tachikoma_admissions_total{decision="admitted"}'
    before = read_metrics(metrics).get(admitted, 0)
    commands.s(AGENT, ["/bin/true"]).delay().get(timeout=PATIENCE_SECONDS)
    after = read_metrics(metrics)
    assert after[admitted] == before + 1
    assert after['tachikoma_stage_seconds_count{stage="admit"}'] >= 1
    # Nobody calls a submitter by gRPC.
    assert not [name for name in after if name.startswith("tachikoma_calls_total{")]


def test_a_command_that_fails_fails_its_task_unless_told_otherwise(commands: Commands) -> None:
    with pytest.raises(ExecutionFailed, match="exit code 3"):
        commands.s(AGENT, ["/bin/sh", "-c", "exit 3"]).delay().get(timeout=PATIENCE_SECONDS)
    answer = commands.s(AGENT, ["/bin/sh", "-c", "exit 3"], check=False).delay().get(timeout=PATIENCE_SECONDS)
    assert (answer["state"], answer["exitCode"]) == ("FAILED", 3)


def test_options_without_effect_are_refused_and_a_running_command_is_cancelled_by_the_client(
    commands: Commands, client: Client
) -> None:
    wanted = request("sleep", "600")
    signature = commands.signature(wanted)
    options: list[dict[str, Any]] = [{"countdown": 3600}, {"expires": 1}, {"time_limit": 1}, {"priority": 5}]
    for refused in options:
        with pytest.raises(InvalidRequest, match=f"Celery's option {next(iter(refused))} cannot be used"):
            signature.apply_async(**refused)
    with pytest.raises(NotFound):
        client.status(wanted.id)
    result = signature.delay()
    wait_until(lambda: started(client, wanted.id), "it runs")
    with pytest.raises(InvalidRequest, match=rf"Client\(\)\.cancel\('{wanted.id}'\)"):
        result.revoke(terminate=True)
    client.cancel(wanted.id)
    with pytest.raises(ExecutionFailed):
        result.get(timeout=PATIENCE_SECONDS)
    with pytest.raises(InvalidRequest, match="expires by itself"):
        result.forget()


def started(client: Client, exec_id: str) -> bool:
    """Whether an execution is known and runs."""
    try:
        return client.status(exec_id).state is ExecState.STARTED
    except NotFound:
        return False


def test_a_batch_is_a_celery_task_with_its_progress_and_the_end_of_each_target(
    commands: Commands, client: Client, tmp_path: Path
) -> None:
    script = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo $1"
    targets, command = [AGENT, "agent-unknown"], ["/bin/sh", "-c", script, "sh", "{agent}"]
    result = commands.batch(targets, command, check=False, timeout="10m").delay()
    assert isinstance(result, BatchTaskResult)
    watched = result.watch(interval=0.05)
    first = next(watched)
    assert (first.total, first.command[-1], first.ended) == (2, "{agent}", False)
    assert result.status == PROGRESS
    (tmp_path / "go").touch()
    last = [*watched][-1]
    assert last == client.batch(result.batch_id)
    assert last.totals == {TargetState.SUCCEEDED: 1, TargetState.UNREACHABLE: 1}
    value = result.get(timeout=PATIENCE_SECONDS)
    assert value["batch"] == last.to_dict()
    ends = {end.agent_id: end for end in map(BatchResult.from_dict, value["results"])}
    assert ends[AGENT].stdout == f"{AGENT}\n".encode()
    assert ends["agent-unknown"].state is TargetState.UNREACHABLE
    with pytest.raises(ExecutionFailed, match=r"0 of 1 targets succeeded \(1 FAILED\)"):
        commands.batch([AGENT], ["/bin/false"]).delay().get(timeout=PATIENCE_SECONDS)
    with pytest.raises(InvalidRequest, match="no agent matches"):
        commands.batch(["mail-*"], ["/bin/true"]).delay().get(timeout=PATIENCE_SECONDS)


def test_policy_refuses_it_as_everybody(client: Client, commands: Commands) -> None:
    signature = commands.s(AGENT, ["reboot"])
    with pytest.raises(PermissionDenied):
        signature.delay().get(timeout=PATIENCE_SECONDS)
    exec_id = signature.options["task_id"].rpartition(":")[2]
    assert [event.event for event in client.audit(exec_id=exec_id)] == [AuditCode.DENIED]


def test_the_requester_is_who_signed(client: Client, commands: Commands, stack: Stack) -> None:
    answer = commands.s(AGENT, ["/bin/true"]).delay().get(timeout=PATIENCE_SECONDS)
    assert client.status(answer["id"]).requested_by == str(stack.user)


def test_a_signature_that_is_sent_often_runs_once(client: Client, commands: Commands, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    signature = commands.s(AGENT, ["/bin/sh", "-c", f"echo run >> {file}"])
    for result in [signature.delay() for _ in range(5)]:
        answer = result.get(timeout=PATIENCE_SECONDS)
    assert starts(client, answer["id"]) == 1
    assert file.read_text() == "run\n"


def test_a_chain_goes_on_after_a_command_and_not_after_one_that_failed(commands: Commands, tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    touch = "/usr/bin/touch"
    chain(commands.s(AGENT, [touch, str(one)]), commands.s(AGENT, [touch, str(two)])).delay().get(
        timeout=PATIENCE_SECONDS
    )
    assert one.exists()
    assert two.exists()
    failing = chain(commands.s(AGENT, ["/bin/false"]), commands.s(AGENT, [touch, str(three)])).delay()
    with pytest.raises(ExecutionFailed):
        failing.parent.get(timeout=PATIENCE_SECONDS)
    assert not three.exists()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with Celery and nothing of Tachikoma but the base install."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, with_pip=False)
    # A copy: building writes into the tree, where running programs look for their version.
    root = folder / "source"
    left_out = shutil.ignore_patterns(".*", "build", "tests", "*.egg-info")
    shutil.copytree(Path(__file__).parents[2], root, ignore=left_out)
    python = folder / "bin" / "python"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--disable-pip-version-check"),
            *("--no-compile", str(root), "celery[redis]>=5.7,<5.8"),
        ],
        check=True,
        env={**os.environ, "SETUPTOOLS_SCM_PRETEND_VERSION": version("tachikoma-exec")},
    )
    return python


# Its environment is made by pip, from an index that may be slow.
@pytest.mark.timeout(600)
def test_a_plain_application_in_its_own_environment(base: Path, stack: Stack, tmp_path: Path, client: Client) -> None:
    """The example of the documentation: a group of 20 with 20 results, and a chord whose body it runs itself."""
    stack.profile().save(tmp_path / "profile.json")
    environment = {
        **os.environ,
        "TACHIKOMA_PROFILE": str(tmp_path / "profile.json"),
        "PYTHONPATH": str(Path(__file__).parents[2] / "docs" / "examples"),
    }
    submits = {**environment, "REPORTS_REDIS": url(stack)}
    asked = "import json, reports; print(json.dumps(reports.uptimes(['agent-1'] * 20)))"
    ran = subprocess.run([base, "-c", asked], env=submits, capture_output=True, timeout=100, check=False, cwd="/")
    assert ran.returncode == 0, ran.stderr.decode()
    answers = json.loads(ran.stdout)
    assert len(answers) == 20
    assert all(answer for answer in answers)

    # Its worker needs more in Redis than asking for commands does; that is between it and its operator.
    works = {**environment, "REPORTS_REDIS": stack.redis_admin_celery_url}
    options = ["-A", "reports", "worker", "-P", "solo", "--without-gossip", "--without-mingle"]
    with (
        (tmp_path / "worker.log").open("wb") as log,
        subprocess.Popen([base, "-m", "celery", *options], env=works, cwd="/", stdout=log, stderr=log) as worker,
    ):
        try:
            count = "import reports; print(reports.reachable(['agent-1'] * 3 + ['nobody']))"
            ran = subprocess.run(
                [base, "-c", count], env=submits, capture_output=True, timeout=100, check=False, cwd="/"
            )
            assert b"there is no agent" in ran.stderr
            count = "import reports; print(reports.reachable(['agent-1'] * 3))"
            ran = subprocess.run(
                [base, "-c", count], env=submits, capture_output=True, timeout=100, check=False, cwd="/"
            )
            assert ran.stdout == b"3\n", ran.stderr.decode()
        finally:
            worker.terminate()


# --- as somebody who means harm ---------------------------------------------------------------------------------------


def test_nobody_is_believed_who_did_not_sign(
    stack: Stack, app: Celery, client: Client, commands: Commands, tmp_path: Path
) -> None:
    file = tmp_path / "ran"
    made = request("/usr/bin/touch", str(file))
    user, now = stack.identity("user"), int(time.time())
    good = token(user, made)
    foreign = DevelopmentCA(tmp_path / "ca", TRUST_DOMAIN)
    foreign.issue(user_id(TRUST_DOMAIN, "root"), tmp_path / "foreign")
    elsewhere = DevelopmentCA(tmp_path / "elsewhere", "elsewhere.example")
    elsewhere.issue(user_id("elsewhere.example", "root"), tmp_path / "somebody")
    head, _, rest = good.partition(".")
    payload, _, signature = rest.partition(".")
    other = base64.urlsafe_b64encode(
        base64.urlsafe_b64decode(payload + "==").replace(b"/usr/bin/touch", b"/usr/bin/tonch")
    ).rstrip(b"=")
    wrong: dict[str, Any] = {
        "is not signed": {"request": made.to_dict()},
        "for spiffe://tachikoma.local/service/other": token(user, made, aud="spiffe://tachikoma.local/service/other"),
        "was valid until": token(user, made, iat=now - 200, exp=now - 100),
        "more than 1 day": token(user, made, exp=now + 100_000),
        "is an agent": token(stack.identity(AGENT), made),
        "not trusted": token(tmp_path / "foreign", made),
        "no bundle of trust domain elsewhere.example": token(tmp_path / "somebody", made),
        "another issuer": token(user, made, iss="spiffe://tachikoma.local/user/somebody"),
        "not validly signed": f"{head}.{other.decode()}.{signature}",
    }
    for why, text in wrong.items():
        with pytest.raises(Unauthenticated, match=re.escape(why)):
            app.send_task(TASK_NAME, args=(text,), queue=keys.SUBMIT, task_id=f"app:{APPLICATION}:{new_id()}").get(
                timeout=PATIENCE_SECONDS
            )
    told = [event.reason for event in client.audit(limit=200) if event.event == AuditCode.IDENTITY_REJECTED]
    assert all(any(why in reason for reason in told) for why in wrong)
    claimed = made.model_copy(update={"requested_by": "spiffe://tachikoma.local/user/somebody", "id": new_id()})
    with pytest.raises(PermissionDenied, match="requester"):
        commands.signature(claimed).delay().get(timeout=PATIENCE_SECONDS)
    assert not file.exists()


def test_messages_that_are_none_neither_run_nor_end_the_submitter(
    stack: Stack, commands: Commands, tmp_path: Path
) -> None:
    assert stack.submitter is not None
    before = stack.submitter.pid
    with Connection(stack.redis_admin_celery_url) as connection, connection.channel() as channel:
        signature = commands.s(AGENT, ["/usr/bin/touch", str(tmp_path / "ran")])
        good: dict[str, Any] = channel.prepare_message(
            json.dumps([list(signature.args), signature.kwargs, {}]),
            content_type="application/json",
            content_encoding="utf-8",
            headers={"task": TASK_NAME, "id": f"app:{APPLICATION}:x"},
            properties={"delivery_tag": "x"},
        )
    good["properties"]["delivery_info"] = {"exchange": "", "routing_key": keys.SUBMIT}
    bad: list[str | bytes] = [
        b"", b"\xff\xfe", b"null", b"[]", b"{}", b"7", b"[" * 100_000,
        json.dumps({**good, "content-type": "application/x-python-serialize"}),
        json.dumps({**good, "content-encoding": "binary", "content-type": "application/data"}),
        json.dumps({**good, "headers": {}}),
        json.dumps({**good, "headers": {"task": "os.system", "id": f"app:{APPLICATION}:y"}}),
        json.dumps({**good, "headers": {"task": TASK_NAME, "id": 7}}),
        json.dumps({**good, "headers": {"task": ["x"], "id": f"app:{APPLICATION}:y"}}),
        json.dumps({**good, "body": "x"}),
        json.dumps({**good, "body": json.dumps([[], {}])}),
        json.dumps({**good, "properties": {"body_encoding": "base64"}, "body": "%"}),
        json.dumps({**good, "body": json.dumps([[], {"other": 1}, {}])}),
    ]  # fmt: skip
    for element in bad:
        push(stack, element)
    # What Celery heeds in a header is not heeded here: it is run now, and not in ten years.
    push(stack, json.dumps({**good, "headers": {**good["headers"], "eta": "2036-01-01T00:00:00", "timelimit": [0, 0]}}))
    wait_until((tmp_path / "ran").exists, "the command ran")
    assert commands.s(AGENT, ["/bin/echo", "still here"]).delay().get(timeout=PATIENCE_SECONDS)["exitCode"] == 0
    assert stack.submitter.alive
    assert stack.submitter.pid == before


def test_an_application_can_ask_and_nothing_else(stack: Stack) -> None:
    user = application_user(APPLICATION)
    denied = [
        ("LPUSH", keys.BATCH, "x"),
        ("LPUSH", keys.queue(AGENT), "x"),
        ("BRPOP", keys.SUBMIT, "1"),
        ("LRANGE", keys.SUBMIT, "0", "-1"),
        ("GET", keys.result(AGENT, "x")),
        ("GET", keys.application_result("others", "x")),
        ("SET", keys.application_result(APPLICATION, "x"), "x"),
        ("HGETALL", keys.execution("x")),
        ("XRANGE", keys.AUDIT, "-", "+"),
        ("XRANGE", keys.output(AGENT, "x"), "-", "+"),
        ("SUBSCRIBE", keys.output(AGENT, "x")),
        ("PUBLISH", keys.application_result(APPLICATION, "x"), "x"),
        ("HGETALL", keys.unacked("x")[0]),
        ("KEYS", "*"),
        ("EVAL", "return 1", "0"),
        ("CONFIG", "GET", "*"),
    ]
    with Redis(**stack.redis_admin, decode_responses=True) as redis:
        for words in denied:
            assert redis.execute_command("ACL", "DRYRUN", user, *words) != "OK", words
        # Where callbacks go is the applications' word: not where orders are read, or the orchestrator's own queue is.
        for queue in (keys.queue(AGENT), keys.AUDIT, keys.execution("x")):
            assert redis.execute_command("ACL", "DRYRUN", SUBMITTER, "LPUSH", queue, "x") != "OK"


def test_a_callback_cannot_reach_an_agents_queue(own_stack_with_submitter: Stack) -> None:
    stack = own_stack_with_submitter
    with (
        application(stack) as app,
        contextlib.closing(Commands(app, profile=stack.profile(), application=APPLICATION)) as commands,
    ):
        signature = commands.s(AGENT, ["/bin/true"])
        signature.link(app.signature("tachikoma.execute", args=("forged",), queue=keys.queue(AGENT)))
        result = signature.delay()
        with Redis(**stack.redis_admin, decode_responses=True) as redis:
            wait_until(lambda: keys.queue(AGENT) in {item["object"] for item in redis.acl_log()}, "Redis denied it")
            assert redis.llen(keys.queue(AGENT)) == 0
            # The submitter may try again; what Redis denies after its end is a mistake.
            assert stack.submitter is not None
            stack.submitter.stop()
            redis.acl_log_reset()
        with Client(stack.profile()) as client:
            exec_id = result.id.rpartition(":")[2]
            assert client.status(exec_id).state is ExecState.SUCCEEDED


# --- when something breaks --------------------------------------------------------------------------------------------


@pytest.fixture
def own_stack_with_submitter(tmp_path: Path, redis_server: Path | None) -> Iterator[Stack]:
    with Stack(prepare(tmp_path), redis_server=redis_server, submitter=True) as running:
        yield running


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_submitter_waited_for_is_taken_up_by_the_next(
    own_stack_with_submitter: Stack, number: signal.Signals, tmp_path: Path
) -> None:
    stack, go = own_stack_with_submitter, tmp_path / "go"
    assert stack.submitter is not None
    with (
        application(stack) as app,
        contextlib.closing(Commands(app, profile=stack.profile(), application=APPLICATION)) as commands,
    ):
        script = f"echo run >> {tmp_path}/runs; until [ -e {go} ]; do sleep 0.05; done"
        results = group(commands.s(AGENT, ["/bin/sh", "-c", script]) for _ in range(5))()
        with Client(stack.profile()) as client:
            ids = [result.id.rpartition(":")[2] for result in results]

            def all_run() -> bool:
                return [item.state for item in client.list_page()[0]].count(ExecState.STARTED) == 5

            wait_until(all_run, "all run")
            assert stack.submitter.process is not None
            stack.submitter.process.send_signal(number)
            wait_until(lambda: not stack.submitter.alive, "the submitter ended")
            assert not any(result.ready() for result in results)
            with Redis(**stack.redis_admin) as redis:
                # As if it had ended a while ago: a run without a sign of life counts as ended after 15 s.
                for run, sign in redis.zrange(keys.SUBMITTERS, 0, -1, withscores=True):
                    redis.zadd(keys.SUBMITTERS, {run: sign - 60})
            stack.start_part(stack.submitter)
            go.touch()
            assert [answer["exitCode"] for answer in results.get(timeout=PATIENCE_SECONDS)] == [0] * 5
            assert [starts(client, exec_id) for exec_id in ids] == [1] * 5
    assert (tmp_path / "runs").read_text() == "run\n" * 5
    with Redis(**stack.redis_admin) as redis:
        # Nothing is left of the run that ended.
        wait_until(lambda: redis.zcard(keys.SUBMITTERS) == 1, "only one is alive")
        wait_until(lambda: not redis.keys(f"{keys.unacked('*')[0]}"), "nothing is left")


def test_redis_may_start_again_while_tasks_wait(own_stack_with_submitter: Stack, tmp_path: Path) -> None:
    stack, go = own_stack_with_submitter, tmp_path / "go"
    with (
        application(stack) as app,
        contextlib.closing(Commands(app, profile=stack.profile(), application=APPLICATION)) as commands,
    ):
        script = f"echo run >> {tmp_path}/runs; until [ -e {go} ]; do sleep 0.05; done"
        results = []
        for number in range(5):
            signature = commands.s(AGENT, ["/bin/sh", "-c", script])
            signature.link(app.signature("count", args=(number,), immutable=True))
            results.append(signature.delay())
        wait_until(lambda: (tmp_path / "runs").exists() and (tmp_path / "runs").read_text() == "run\n" * 5, "all run")
        with Redis(**stack.redis_admin) as redis:
            redis.config_set("appendfsync", "always")
            stack.redis.stop()
            stack.start_redis()
            # As soon as the submitter takes messages again.
            assert commands.s(AGENT, ["/bin/true"]).delay().get(timeout=PATIENCE_SECONDS)["exitCode"] == 0
            go.touch()
            assert [result.get(timeout=PATIENCE_SECONDS)["exitCode"] for result in results] == [0] * 5
            wait_until(lambda: redis.llen(keys.CALLBACKS) >= 5, "all are called back")
            called = [json.loads(base64.b64decode(json.loads(raw)["body"]))[0] for raw in redis.lrange("celery", 0, -1)]
            assert sorted(called) == [[number] for number in range(5)]
            wait_until(lambda: not redis.keys(keys.unacked("*")[0]), "nothing is left")
    assert (tmp_path / "runs").read_text() == "run\n" * 5


def test_nothing_is_taken_while_it_cannot_be_recorded(own_stack_with_submitter: Stack) -> None:
    stack = own_stack_with_submitter
    with (
        application(stack) as app,
        contextlib.closing(Commands(app, profile=stack.profile(), application=APPLICATION)) as commands,
        Redis(**stack.redis_admin) as redis,
    ):

        def refused() -> bool:
            try:
                commands.s(AGENT, ["/bin/true"]).delay().get(timeout=PATIENCE_SECONDS)
            except Unavailable as error:
                return "wait for elsewhere" in str(error)
            return False

        latest = int(redis.get(keys.AUDIT_SEQ) or 0)
        position = {"cursor": "0-0", "seq": latest - 20_000, "at": round(time.time())}
        redis.hset(keys.AUDIT_SINKS, "elsewhere", json.dumps(position))
        wait_until(refused, "it is refused")
        redis.hdel(keys.AUDIT_SINKS, "elsewhere")
        wait_until(lambda: not refused(), "it is taken again")
