"""Errors nobody foresaw arrive at Sentry, each once, with their execution and never with a secret.

The parts are real ones, and so are the envelopes: a collector takes them over HTTP. Mistakes are planted in the parts
(`tests/planted`), since those that are found are mended.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support import prepare, request, wait_until

from patience import PATIENCE_SECONDS
from sentry_collector import Collector
from tachikoma import Client, ExecState, ServerError
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.files import KEY_FILE
from tachikoma.redis import keys

pytestmark = pytest.mark.long

PLANTED = Path(__file__).parents[3] / "planted"
#: What requests hold, and what else the planted mistakes know.
ARGUMENT, STDIN, VARIABLE, JOIN_TOKEN = "hunter-argument", "hunter-stdin", "hunter-variable", "hunter-join-token"
#: Where an agent's data folder is put aside.
ASIDE = "agent-2-aside"


def make_stack(data: Path, collector: Collector, redis_server: Path | None, agents: int = 1) -> Stack:
    return Stack(
        prepare(data),
        agents=agents,
        redis_server=redis_server,
        environment={
            "TACHIKOMA_SENTRY_DSN": collector.dsn,
            "TACHIKOMA_SENTRY_ENVIRONMENT": "tests",
            "TACHIKOMA_SWEEP": "200ms",
            "TACHIKOMA_STOP_GRACE": "100ms",
            "PYTHONPATH": str(PLANTED),
            "PLANTED_SECRETS": JOIN_TOKEN,
            "PLANTED_REAPER_FAULT": str(data / "reaper-fault"),
        },
    )


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def stack(collector: Collector, tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    with make_stack(tmp_path_factory.mktemp("stack"), collector, redis_server, agents=2) as running:
        # It is missed at the next heartbeat.
        agents = running.data / "agents"
        (agents / "agent-2").rename(agents / ASIDE)
        yield running


def arrived(collector: Collector, **tags: str) -> dict[str, Any]:
    """The one event with these tags, once it is there."""
    wait_until(lambda: collector.events(**tags), f"an event with {tags}")
    (event,) = collector.events(**tags)
    return event


def exceptions(event: dict[str, Any]) -> list[tuple[str, str]]:
    return [(value["type"], value["value"]) for value in event["exception"]["values"]]


def provoke(stack: Stack, exec_id: str) -> None:
    """Run what the agent's worker is mistaken about, and ask for its status, about which the orchestrator is."""
    secret = request(
        "/bin/echo", ARGUMENT, "--password", ARGUMENT, id=exec_id,
        stdin=STDIN.encode(), environment={"TEST_TOKEN": VARIABLE},
    )  # fmt: skip
    with Client(stack.profile()) as client:
        assert client.execute(secret).state is ExecState.LOST
        with pytest.raises(ServerError):
            client.status(exec_id)


def test_mistakes_in_a_call_and_in_an_execution_arrive_with_its_id(stack: Stack, collector: Collector) -> None:
    provoke(stack, "fault-1")
    for component, name in (("orchestrator", "call.failed"), ("worker", "execution.failed")):
        event = arrived(collector, component=component, execution="fault-1")
        assert event["tags"]["event"] == name
        assert event["tags"]["trust_domain"] == TRUST_DOMAIN
        assert event["tags"].get("agent") == ("agent-1" if component == "worker" else None)
        assert event["release"] == f"tachikoma-exec@{version('tachikoma-exec')}"
        assert (event["environment"], event["level"]) == ("tests", "error")
        assert event["server_name"]
        # Of the texts only what the operating system calls the error.
        assert exceptions(event) == [
            ("KeyError", ""), ("OSError", "[Errno 28] No space left on device"), ("RuntimeError", "")
        ]  # fmt: skip
        frames = event["exception"]["values"][-1]["stacktrace"]["frames"]
        assert frames[-1].keys() == {"function", "module", "filename", "lineno", "in_app"}
        assert (frames[-1]["function"], frames[-1]["module"]) == ("fail", "sitecustomize")
        assert any(frame["in_app"] and frame["filename"].startswith("tachikoma_") for frame in frames)


def test_a_mistake_in_the_middle_of_a_stream_arrives_with_its_id(stack: Stack, collector: Collector) -> None:
    exec_id = "fault-stream-1"
    with Client(stack.profile()) as client:
        client.submit(request("/bin/true", id=exec_id))
        with pytest.raises(ServerError):
            list(client.attach(exec_id))
    event = arrived(collector, component="orchestrator", execution=exec_id)
    assert event["tags"]["event"] == "call.failed"
    assert "mistaken_attach" in str(event)


APPLICATION = """
import sys
from pathlib import Path
import sentry_sdk
from sentry_sdk.integrations.grpc import GRPCIntegration
from tachikoma import Client, ExecRequest, PermissionDenied
from tachikoma.client.profile import Profile

def told(event, hint):
    print([(span["op"], span["description"].rpartition("/")[2]) for span in event["spans"]])

sentry_sdk.init(
    dsn="http://key@127.0.0.1:1/1", traces_sample_rate=1.0, integrations=[GRPCIntegration()],
    before_send_transaction=told, send_client_reports=False,
)
with sentry_sdk.start_transaction(name="application"), Client(Profile.load(Path(sys.argv[1]))) as client:
    assert client.execute(ExecRequest(agent_id="agent-1", command=["/bin/echo", "a"])).stdout == b"a\\n"
    seen = [one.kind for one in client.execute_stream(ExecRequest(agent_id="agent-1", command=["/bin/echo", "a"]))]
    assert [str(kind) for kind in seen] == ["status", "stdout", "result"], seen
    try:
        client.execute(ExecRequest(agent_id="agent-1", command=["reboot"]))
    except PermissionDenied:
        pass
"""


def test_an_application_may_use_sentrys_grpc_integration_around_the_client(stack: Stack) -> None:
    profile = stack.data / "profile.json"
    stack.profile().save(profile)
    done = subprocess.run(
        [sys.executable, "-c", APPLICATION, str(profile)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, "")
    calls = [("grpc.client", "Execute"), ("grpc.client", "ExecuteStream"), ("grpc.client", "Execute")]
    assert done.stdout.strip() == str(calls)


def test_executions_at_the_same_time_have_their_own_ids_and_breadcrumbs(stack: Stack, collector: Collector) -> None:
    ids = [f"fault-many-{number}" for number in range(8)]
    with Client(stack.profile()) as client:
        for exec_id in ids:
            client.submit(request("/bin/true", id=exec_id))
        for exec_id in ids:
            # Attached to rather than asked for its status, about which the orchestrator is mistaken.
            list(client.attach(exec_id))
    for exec_id in ids:
        event = arrived(collector, component="worker", execution=exec_id)
        # No other execution is named anywhere in it.
        assert not [other for other in ids if other != exec_id and other in str(event)]


def test_no_secret_ever_arrives(stack: Stack, collector: Collector) -> None:
    provoke(stack, "fault-2")
    for component in ("orchestrator", "worker"):
        arrived(collector, component=component, execution="fault-2")
    secrets = {ARGUMENT, STDIN, VARIABLE, JOIN_TOKEN}
    for part in ("orchestrator", "agent-1", "agent-2"):
        secrets.add(stack.redis_passwords.path(stack.redis_user_of(part)).read_text().strip())
        secrets |= set((stack.identity(part) / KEY_FILE).read_text().splitlines()[1:-1])
    # Tokens of orders and receipts; keys; texts of exceptions; environment and arguments of the processes.
    secrets |= {"eyJ", "PRIVATE KEY", "cannot make sense", "PLANTED_", "--redis-url", str(stack.data)}
    logged = "".join(file.read_text() for file in (stack.data / "logs").iterdir())
    assert all(secret in logged for secret in (JOIN_TOKEN, ARGUMENT, "eyJ", "PRIVATE KEY", "PLANTED_"))
    for raw in collector.raw:
        for secret in secrets:
            assert secret.encode() not in raw


def test_what_is_logged_as_an_error_arrives_without_its_text(stack: Stack, collector: Collector) -> None:
    with Client(stack.profile()) as client, Redis(**stack.redis_admin) as redis:
        running = client.submit(request("/bin/sleep", "60"))
        wait_until(lambda: client.status(running.id).state is ExecState.STARTED, "it runs")
        # Whoever owns Redis puts there what no part of this system would.
        redis.delete(keys.claim("agent-1", running.id))
        redis.rpush(keys.claim("agent-1", running.id), ARGUMENT)
        wait_until(lambda: collector.events(execution=running.id), "the reaper says so")
        client.cancel(running.id)
    event = collector.events(execution=running.id)[0]
    assert (event["message"], event["tags"]["component"]) == ("reaper.claim_unreadable", "orchestrator")
    assert "exception" not in event


def test_what_ends_the_orchestrator_arrives_once(stack: Stack, collector: Collector) -> None:
    fault = stack.data / "reaper-fault"
    fault.touch()
    process = stack.orchestrator.process
    assert process is not None
    assert process.wait(PATIENCE_SECONDS) == 1
    fault.unlink()
    stack.start_orchestrator()
    event = arrived(collector, component="orchestrator", event="orchestrator.failed")
    assert event["level"] == "fatal"
    # Logged, and then it went through the interpreter's hook: one event.
    ended = [event for event in collector.events() if "mistaken_sweep" in str(event)]
    assert len(ended) == 1


def test_what_ends_an_agent_arrives(stack: Stack, collector: Collector) -> None:
    process = stack.agents["agent-2"].process
    assert process is not None
    process.wait(PATIENCE_SECONDS)
    event = arrived(collector, component="worker", agent="agent-2")
    assert (event["tags"]["event"], event["level"]) == ("lease.failed", "fatal")
    assert exceptions(event) == [("FileNotFoundError", "[Errno 2] No such file or directory")]


def test_a_collector_that_never_answers_keeps_nobody_waiting(tmp_path: Path, redis_server: Path | None) -> None:
    with Collector(answers=False) as silent, make_stack(tmp_path, silent, redis_server) as stack:
        with Client(stack.profile()) as client:
            provoke(stack, "fault-1")
            assert silent.asked.wait(PATIENCE_SECONDS)
            # Many more than may wait to be sent.
            for _ in range(100):
                with pytest.raises(ServerError):
                    client.status("fault-1")
            assert client.execute(request("/bin/true")).exit_code == 0
        for part in (stack.agents["agent-1"], stack.orchestrator):
            process = part.process
            assert process is not None
            process.send_signal(signal.SIGTERM)
            # Half of the time after which sending gives up by itself.
            assert process.wait(PATIENCE_SECONDS) == 0


SCRIPT = """
import asyncio, logging, threading
from celery import Celery, signals
from tachikoma.config import error_reporting, logs
from tachikoma.errors import NotFound

logs.configure()
error_reporting.configure("script")

def fail(text):
    raise ValueError(text)

thread = threading.Thread(target=fail, args=("hunter-thread",))
thread.start()
thread.join()

async def main():
    task = asyncio.create_task(asyncio.to_thread(fail, "hunter-task"), name="forgotten")
    while not task.done():
        await asyncio.sleep(0.01)
    # It is forgotten here: nothing has looked at its exception.

error_reporting.concerns("execution-1")
asyncio.run(main())

app = Celery("script", broker="memory://", set_as_current=False)
app.conf.update(worker_hijack_root_logger=False, task_ignore_result=True)

@app.task(name="mistaken")
def mistaken(secret):
    raise NotFound(secret)

mistaken.apply_async(args=["hunter-celery"], task_id="script.execution-2")
worker = app.Worker(pool="solo", quiet=True, without_gossip=True, without_mingle=True, without_heartbeat=True)
signals.task_postrun.connect(lambda **_: worker.stop(), weak=False)
worker.start()
logging.getLogger("some.library").error("cannot connect to redis://user:hunter-library@localhost")
error_reporting.concerns("hunter is no id")
try:
    fail("hunter-end")
except ValueError:
    logging.getLogger("some.library").exception("hunter-%s", "log")
    raise
"""


def test_what_threads_tasks_and_libraries_leave_arrives_once(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACHIKOMA_SENTRY_DSN", collector.dsn)
    # Not of this software; and they are not to be sent anything.
    monkeypatch.setenv("SENTRY_DSN", "http://other@127.0.0.1:1/1")
    monkeypatch.setenv("SENTRY_SPOTLIGHT", "1")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=False, timeout=PATIENCE_SECONDS)
    assert done.returncode == 1, done.stderr
    assert b"hunter-thread" in done.stderr
    assert b"hunter-end" in done.stderr
    found = []
    for event in collector.events(component="script"):
        tags = event["tags"]
        exception = event["exception"]["values"][-1]
        found.append((tags.get("event"), exception["type"], exception["value"], tags.get("execution")))
        assert tags.get("celery_task_id") == ("script.execution-2" if exception["type"] == "NotFound" else None)
        assert "hunter" not in str(event)
    assert found == [
        (None, "ValueError", "", None),
        ("asyncio", "ValueError", "", "execution-1"),
        (None, "NotFound", "NOT_FOUND", "execution-1"),
        ("some.library", "ValueError", "", None),
    ]


def test_without_a_dsn_nothing_of_sentry_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTRY_DSN", "http://other@127.0.0.1:1/1")
    script = (
        "import sys, tachikoma_orchestrator.commands.orchestrator, tachikoma_worker.command\n"
        "from tachikoma.config import error_reporting\n"
        "error_reporting.configure('worker', agent='web-1')\n"
        "error_reporting.concerns('execution-1')\n"
        "sys.exit('sentry_sdk' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=PATIENCE_SECONDS).returncode == 0
