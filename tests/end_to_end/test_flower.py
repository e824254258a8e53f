"""The real Flower in a real browser: ten executions of each end, and nothing that it may do but look."""

from __future__ import annotations

import base64
import json
import os
import shlex
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
from browser import Browser, chromium
from support import request, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecState, ExecStatus
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tachikoma.identity.spiffe import user_id

pytestmark = pytest.mark.long

AGENT, FRAGILE = "agent-1", "agent-2"
NODE, FRAGILE_NODE = "agent-1@agent-1", "agent-2@agent-2"
#: Of each kind of end.
TIMES = 10
SECRET = "hunter2hunter2"
HOG = "x = bytearray(10**9)"

POLICY = """\
operators: ["{root}"]
policies:
  - name: everything
    subjects: ["{root}"]
    agents: ["**"]
    allowedCommands: ["/** ..."]
    allowInterpreters: true
    allowedUsers: ["*", root]
    hostAccess: true
    allowedWorkDirs: ["/nonexistent"]
    limits: {{memory: 64MiB}}
    killGrace: 1s
  - name: hasty
    subjects: ["spiffe://tachikoma.local/user/hasty"]
    agents: ["**"]
    allowedCommands: [/usr/bin/true]
    rateLimit: {{queueTimeout: 100ms}}
  - name: asked
    subjects: ["spiffe://tachikoma.local/user/asker"]
    agents: ["**"]
    allowedCommands: [/usr/bin/true]
    requireApproval: true
    approvers: ["{root}"]
"""
#: What Flower calls each end.
SHOWN = {
    ExecState.SUCCEEDED: "SUCCESS",
    ExecState.FAILED: "FAILURE",
    ExecState.TIMED_OUT: "FAILURE",
    ExecState.OUT_OF_MEMORY: "FAILURE",
    ExecState.EXPIRED: "FAILURE",
    ExecState.REJECTED: "FAILURE",
    ExecState.LOST: "FAILURE",
    ExecState.CANCELLED: "REVOKED",
}
ROWS = """[...document.querySelectorAll('#{table} tbody tr')].map(row =>
    [...row.cells].map(cell => cell.textContent.trim()))"""
DETAILS = """Object.fromEntries([...document.querySelectorAll('.detail-row')].map(row =>
    [row.querySelector('dt').textContent.trim(), row.querySelector('dd').textContent.split('Copy')[0].trim()]))"""


@dataclass
class World:
    """A stack with a Flower, and what was run on it."""

    stack: Stack
    root: Client
    #: Ids, with the end each is to have.
    wanted: dict[str, ExecState] = field(default_factory=dict)

    @property
    def login(self) -> str:
        return self.stack.flower_users.read_text().strip()

    def submit(self, end: ExecState, *command: str, **values: Any) -> str:
        asked = request(*command, **values)
        self.root.submit(asked)
        self.wanted[asked.id] = end
        return asked.id

    def run_everything(self) -> None:
        """Ten executions of each kind of end, all of them real."""
        fragile = psutil.Process(self.stack.agents[FRAGILE].pid)
        with Client(self.stack.issue(user_id(TRUST_DOMAIN, "hasty"))) as hasty:
            fragile.suspend()
            for _ in range(TIMES):
                asked = request("true", agent_id=FRAGILE)
                hasty.submit(asked)
                self.wanted[asked.id] = ExecState.EXPIRED
            self.settled(ExecState.EXPIRED)
            fragile.resume()
        to_cancel, to_lose = [], []
        for number in range(TIMES):
            self.submit(ExecState.SUCCEEDED, "echo", "--password", SECRET)
            self.submit(ExecState.FAILED, "ls", f"/missing/{number}")
            self.submit(ExecState.TIMED_OUT, "tail", "-f", "/etc/passwd", timeout=0.3)
            to_cancel.append(self.submit(ExecState.CANCELLED, "sleep", "600"))
            self.submit(ExecState.OUT_OF_MEMORY, "python3", "-I", "-S", "-c", HOG)
            self.submit(ExecState.REJECTED, "true", work_dir="/nonexistent")
            to_lose.append(self.submit(ExecState.LOST, "sleep", "500", agent_id=FRAGILE))
        for exec_id in to_cancel + to_lose:
            wait_until(lambda exec_id=exec_id: self.status(exec_id).state is ExecState.STARTED, "it runs")
        for exec_id in to_cancel:
            self.root.cancel(exec_id)
        # The spawner first, and at once: an agent whose spawner is gone ends by itself.
        [spawner] = [process for process in fragile.children() if "spawner" in process.name()]
        fragile.suspend()
        spawner.kill()
        self.stack.agents[FRAGILE].kill()
        self.stack.start_agent(FRAGILE)
        self.settled(*ExecState)

    def settled(self, *ends: ExecState) -> None:
        for exec_id, end in self.wanted.items():
            if end in ends:
                wait_until(lambda exec_id=exec_id: self.status(exec_id).state.terminal, "it ends")
                assert self.status(exec_id).state is end, self.status(exec_id)

    def status(self, exec_id: str) -> ExecStatus:
        return self.root.status(exec_id)

    # --- Flower, without a browser ------------------------------------------------------------------------------------

    def ask(self, path: str, *, login: str | None = None, **form: Any) -> tuple[int, str]:
        """Status and text of an answer; with a form it is a POST."""
        login = self.login if login is None else login
        headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
        data = urllib.parse.urlencode(form).encode() if form else None
        asked = urllib.request.Request(self.stack.flower_url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def rows(self) -> dict[str, dict[str, Any]]:
        """All tasks that Flower knows, but for what only counts its messages."""
        form = {
            "draw": 1, "start": 0, "length": 10_000, "search[value]": "",
            "order[0][column]": 0, "order[0][dir]": "asc", "columns[0][data]": "uuid",
        }  # fmt: skip
        status, text = self.ask("/tasks/datatable", **form)
        assert status == 200, text
        return {row.pop("uuid"): {**row, "clock": 0} for row in json.loads(text)["data"]}

    def workers(self) -> dict[str, dict[str, Any]]:
        status, text = self.ask("/workers?json=1")
        assert status == 200, text
        return {worker["hostname"]: worker for worker in json.loads(text)["data"]}

    def counts(self) -> dict[str, dict[str, int]]:
        names = ("task-received", "task-started", "task-succeeded", "task-failed", "task-revoked")
        return {node: {name: worker.get(name, 0) for name in names} for node, worker in self.workers().items()}

    def shows(self, before: dict[str, dict[str, Any]], counts: dict[str, dict[str, int]]) -> None:
        """Wait until it shows again what it showed before."""
        try:
            wait_until(lambda: (self.rows(), self.counts()) == (before, counts), "Flower shows it again")
        except pytest.fail.Exception:
            # Which of them differ.
            assert [row for row in self.rows().items() if row not in before.items()] == []
            assert (self.rows().keys(), self.counts()) == (before.keys(), counts)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[World]:
    data = tmp_path_factory.mktemp("flower")
    environment = {"TACHIKOMA_SWEEP": "100ms", "TACHIKOMA_LEASE": "1s"}
    stack = Stack(data, agents=2, redis_server=redis_server, environment=environment, flower="127.0.0.1:0")
    (data / "policy.yaml").write_text(POLICY.format(root=stack.user))
    with stack, Client(stack.profile()) as root:
        [warnings] = {agent.warnings for agent in root.agents()}
        if warnings and not os.environ.get("CI"):
            pytest.skip(f"needs cgroups that root may make: {warnings}")
        made = World(stack, root)
        made.run_everything()
        wait_until(lambda: all(row["state"] in SHOWN.values() for row in made.rows().values()), "all ends are told")
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if chromium() is None:
        if os.environ.get("CI"):
            pytest.fail("CI lacks chromium", pytrace=False)
        pytest.skip("needs chromium")
    with Browser(width=1840, height=1020) as opened:
        yield opened


@pytest.fixture
def logged_in(world: World, browser: Browser) -> Browser:
    """A browser whose user typed user and password."""
    browser.open(world.stack.flower_url.replace("://", f"://{world.login}@") + "/")
    browser.wait("document.title", "it is let in", lambda title: title == "Workers · Flower")
    return browser


# --- what is seen -----------------------------------------------------------------------------------------------------


def test_the_page_of_tasks_shows_every_execution_and_its_end(world: World, logged_in: Browser, tmp_path: Path) -> None:
    page = logged_in
    page.open(f"{world.stack.flower_url}/tasks")
    rows = ROWS.format(table="tasks-table")
    page.wait(rows, "a first page", lambda found: len(found) == 15)
    page.screenshot(Path(os.environ.get("TACHIKOMA_TEST_SCREENSHOT", tmp_path / "flower.png")), scale=0.7)
    page.ask("$('#tasks-table').DataTable().page.len(100).draw(), null")
    found = page.wait(rows, "all of them", lambda found: len(found) == len(world.wanted))
    assert SECRET not in json.dumps(found)
    # The tests of this module run in any order, and some run more.
    assert Counter(row[2] for row in found) == Counter(SHOWN[end] for end in world.wanted.values())
    for uuids, args, state, runtime, received, worker, exception in found:
        # The whole of it, and the beginning of it for narrow windows.
        exec_id = uuids[:-8]
        status = world.status(exec_id)
        assert status.state is world.wanted[exec_id]
        command = shlex.join(status.command)
        assert state == SHOWN[status.state]
        assert args == command or (args.endswith("…") and command.startswith(args[:-1]) and len(args) > 50)
        assert exception.partition(": ")[0] == ("" if status.state is ExecState.SUCCEEDED else status.state)
        assert worker == f"{status.agent_id}@{status.agent_id}"
        assert received == (f"{status.request_time:%Y-%m-%d %H:%M:%S.%f}"[:-3] if _queued(status) else "")
        measured = status.state not in (ExecState.EXPIRED, ExecState.REJECTED, ExecState.LOST)
        assert bool(runtime) == measured, (runtime, status)


def test_the_page_of_a_task_shows_all_there_is_about_it(world: World, logged_in: Browser) -> None:
    for end in SHOWN:
        exec_id = next(exec_id for exec_id, wanted in world.wanted.items() if wanted is end)
        status = world.status(exec_id)
        logged_in.open(f"{world.stack.flower_url}/task/{exec_id}")
        shown = logged_in.wait(DETAILS, "its page", lambda found, exec_id=exec_id: found and found["UUID"] == exec_id)
        assert shown["Status"] == SHOWN[end]
        assert (shown["Name"], shown["Arguments"]) == (status.command[0], shlex.join(status.command))
        for part in (f"'{status.agent_id}.{exec_id}'", f"'{status.requested_by}'", f"'{status.policy_applied}'"):
            assert part in shown["Keyword arguments"]
        assert f"'state': '{end}'" in shown["Result"]
        assert ("exit_code" in shown["Result"]) == (end not in (ExecState.EXPIRED, ExecState.REJECTED, ExecState.LOST))
        assert shown["Worker"] == f"{status.agent_id}@{status.agent_id}"
        assert shown["Retries"] == "0"
        if end is ExecState.SUCCEEDED:
            out = len(f"--password {SECRET}\n")
            assert f"'exit_code': 0, 'stdout_bytes': {out}, 'stderr_bytes': 0" in shown["Result"]
            assert "Exception" not in shown
            assert float(shown["Runtime"].removesuffix(" ms")) < 5000
        elif end is ExecState.FAILED:
            assert shown["Exception"] == "FAILED: exit code 2"
            assert "'exit_code': 2, 'stdout_bytes': 0, 'stderr_bytes': 5" in shown["Result"]
        elif end is ExecState.CANCELLED:
            assert shown["Exception"] == f"CANCELLED: by {world.stack.user}"
        else:
            assert shown["Exception"] == f"{end}: {status.error}"
        if status.start_time is not None and end is not ExecState.REJECTED:
            assert shown["Started"] == f"{status.start_time:%Y-%m-%d %H:%M:%S.%f} UTC"
        ended = {"SUCCESS": "Succeeded", "FAILURE": "Failed", "REVOKED": "Revoked"}[SHOWN[end]]
        assert status.end_time is not None
        assert shown[ended] == f"{status.end_time:%Y-%m-%d %H:%M:%S.%f} UTC"


def _queued(status: ExecStatus) -> bool:
    return ExecState.QUEUED in [step.state for step in status.history]


def test_the_page_of_workers_counts_what_each_agent_did(world: World, logged_in: Browser) -> None:
    logged_in.open(f"{world.stack.flower_url}/workers")
    statuses = [world.status(exec_id) for exec_id in world.wanted]
    # No agent had those that an approver rejected.
    processed = Counter(status.agent_id for status in statuses if _queued(status))
    shown = Counter((status.agent_id, SHOWN[status.state]) for status in statuses)
    # EXPIRED and LOST are those of the fragile one.
    assert (shown[AGENT, "FAILURE"], shown[FRAGILE, "FAILURE"]) >= (4 * TIMES, 2 * TIMES)
    expected = [
        [
            f"{agent}@{agent}",
            "Online",
            "0",
            *map(str, (processed[agent], shown[agent, "FAILURE"], shown[agent, "SUCCESS"])),
        ]
        for agent in (AGENT, FRAGILE)
    ]
    logged_in.wait(
        ROWS.format(table="workers-table"), "what they did", lambda rows: sorted(row[:6] for row in rows) == expected
    )
    summary = [logged_in.ask(f"document.querySelector('#workers-{name}').innerText") for name in
               ("online", "active", "succeeded", "failed")]  # fmt: skip
    ends = Counter(SHOWN[status.state] for status in statuses)
    assert summary == ["2", "0", str(ends["SUCCESS"]), str(ends["FAILURE"])]
    logged_in.ask("document.querySelector('#workers-table tbody a[href*=agent-1]').click(), null")
    logged_in.wait("document.title", "the page of one", lambda title: title.endswith("@agent-1 · Flower"))
    text = logged_in.wait(
        "document.querySelector('.worker-tab-content')?.textContent",
        "what it is",
        lambda text: text and "memory used" in text,
    )
    host, release = psutil.os.uname().nodename, version("tachikoma-exec")
    for part in ("Max concurrency", "64", "agent.agent-1", host, release, "memory used"):
        assert part in text, part


def test_what_waits_and_what_runs_is_seen_at_once(world: World, logged_in: Browser) -> None:
    running = request("sleep", "400")
    with Client(world.stack.issue(user_id(TRUST_DOMAIN, "asker"))) as asker:
        waiting = asker.submit(request("true")).id
        world.root.submit(running)
        wait_until(lambda: world.rows().get(running.id, {}).get("state") == "STARTED", "it is told")
        assert world.rows()[waiting]["state"] == "PENDING"
        assert world.workers()[NODE]["active"] == 1
        logged_in.open(f"{world.stack.flower_url}/worker/{NODE}")
        logged_in.wait(
            "document.querySelector('#tab-tasks').textContent",
            "it runs there",
            lambda text: running.id[:8] in (text or ""),
        )
        world.root.reject(waiting, "not today")
        world.root.cancel(running.id)
        world.wanted |= {running.id: ExecState.CANCELLED, waiting: ExecState.REJECTED}
        wait_until(lambda: world.rows()[running.id]["state"] == "REVOKED", "its end is told")
        wait_until(lambda: world.rows()[waiting]["state"] == "FAILURE", "its end is told")
    why = f"REJECTED: rejected by {world.stack.user}: not today"
    assert why in world.ask(f"/task/{waiting}")[1]
    # What does not fit into a row is cut there.
    assert world.rows()[waiting]["exception"] == f"{why[:63]}…"
    assert world.workers()[NODE]["active"] == 0


def test_the_page_of_the_broker_shows_the_agents_queues(world: World, logged_in: Browser) -> None:
    logged_in.open(f"{world.stack.flower_url}/broker")
    rows, expected = ROWS.format(table="queue-table"), [["agent.agent-1", "0", "1"], ["agent.agent-2", "0", "1"]]

    def shown() -> bool:
        logged_in.open(f"{world.stack.flower_url}/broker")
        found = logged_in.wait(rows, "the queues", lambda found: len(found) == 2)
        return [row[:1] + row[3:5] for row in found] == expected

    # An agent that another test stopped takes what waits for it, and reports the length of its queue later.
    wait_until(shown, "empty queues are shown")


# --- it stays true ----------------------------------------------------------------------------------------------------


def test_flower_that_was_restarted_shows_it_again(world: World) -> None:
    before, counts = world.rows(), world.counts()
    assert world.stack.flower is not None
    world.stack.flower.stop()
    world.stack.start_flower()
    world.shows(before, counts)


@pytest.mark.parametrize("kill", [False, True], ids=["restarted", "killed"])
def test_after_another_orchestrator_took_over_it_shows_what_ended_meanwhile(
    world: World, tmp_path: Path, kill: bool
) -> None:
    sign = tmp_path / "go"
    exec_id = world.submit(ExecState.SUCCEEDED, "sh", "-c", f"until [ -e {sign} ]; do sleep 0.05; done")
    wait_until(lambda: world.rows().get(exec_id, {}).get("state") == "STARTED", "it is told")
    orchestrator = world.stack.orchestrator
    if kill:
        orchestrator.kill()
    else:
        orchestrator.stop()
    sign.touch()
    world.stack.start_orchestrator()
    wait_until(lambda: world.rows().get(exec_id, {}).get("state") == "SUCCESS", "its end is told")
    wait_until(lambda: set(world.rows()) == set(world.wanted), "all others are told again")
    assert world.counts()[NODE]["task-succeeded"] == sum(end is ExecState.SUCCEEDED for end in world.wanted.values())


def test_after_a_restart_of_redis_it_goes_on(world: World) -> None:
    before, counts = world.rows(), world.counts()
    world.stack.redis.stop()
    world.stack.start_redis()
    world.shows(before, counts)
    world.stack.wait_for_agents()
    exec_id = wait_until(lambda: _submitted(world), "orders are taken again")
    wait_until(lambda: world.rows().get(exec_id, {}).get("state") == "SUCCESS", "what is new is told")


def _submitted(world: World) -> str:
    return world.submit(ExecState.SUCCEEDED, "true")


def test_an_agent_that_left_is_shown_as_offline_and_as_online_when_it_is_back(world: World, logged_in: Browser) -> None:
    world.stack.agents[FRAGILE].stop()
    try:
        logged_in.open(f"{world.stack.flower_url}/workers")
        rows = ROWS.format(table="workers-table")
        logged_in.wait(rows, "it is offline", lambda found: _has(found, "Offline"))
        # One that begins to look now is told of it, too; its events come one after the other.
        assert world.stack.flower is not None
        world.stack.flower.stop()
        world.stack.start_flower()
        wait_until(lambda: world.workers().get(FRAGILE_NODE, {"status": True})["status"] is False, "it is known")
    finally:
        world.stack.start_agent(FRAGILE)
    logged_in.wait(rows, "it is online", lambda found: _has(found, "Online"))


def _has(found: list[list[str]] | None, state: str) -> bool:
    return [FRAGILE_NODE, state] in [row[:2] for row in found or ()]


# --- nothing but looking ----------------------------------------------------------------------------------------------


def test_without_user_and_password_nothing_is_shown(world: World) -> None:
    some_id = next(iter(world.wanted))
    paths = ("/", "/workers?json=1", "/tasks", "/broker", f"/task/{some_id}", f"/worker/{NODE}", "/metrics",
             "/api/tasks", "/api/workers", "/static/js/flower.js", "/nowhere", "//tasks", "/healthcheck/")  # fmt: skip
    user = world.login.partition(":")[0]
    for path in paths:
        for login in ("", "tachikoma", f"{user}:", f"{user}:wrong", f"{world.login}x", f"x{world.login}", "ä:ö"):
            status, text = world.ask(path, login=login)
            assert (status, some_id in text) == (401, False), (path, login)
    for form in ({"draw": 1}, {"terminate": "true"}):
        assert world.ask("/tasks/datatable", login="", **form)[0] == 401
    # Whoever supervises it needs no password.
    assert world.ask("/healthcheck", login="") == (200, "OK")


def test_whatever_would_change_something_is_refused(world: World) -> None:
    exec_id = world.submit(ExecState.CANCELLED, "sleep", "300")
    wait_until(lambda: world.rows().get(exec_id, {}).get("state") == "STARTED", "it runs")
    for path in (
        f"/api/task/revoke/{exec_id}",
        f"/api/task/abort/{exec_id}",
        "/api/task/apply/tachikoma.execute",
        "/api/task/async-apply/tachikoma.execute",
        "/api/task/send-task/tachikoma.execute",
        f"/api/worker/shutdown/{NODE}",
        f"/api/worker/pool/grow/{NODE}",
        f"/api/worker/queue/cancel-consumer/{NODE}",
        "/logout",
        "/tasks",
    ):
        status, text = world.ask(path, terminate="true", workername=NODE)
        assert (status, text.startswith("this Flower is read-only")) == (403, True), path
    for path in ("/api/tasks", "/api/workers?refresh=1", f"/api/task/result/{exec_id}", "/metrics"):
        assert world.ask(path)[0] == 403, path
    assert world.status(exec_id).state is ExecState.STARTED
    status, text = world.ask(f"/task/{exec_id}")
    assert (status, "task-terminate" in text) == (200, False)
    world.root.cancel(exec_id)
    wait_until(lambda: world.status(exec_id).state.terminal, "it ends")


def _flower(world: World, tmp_path: Path, **environment: str) -> subprocess.Popen[str]:
    """`tachikoma flower`, told everything by its environment."""
    password = world.stack.redis_passwords.path("flower")
    return subprocess.Popen(
        [sys.executable, "-m", "tachikoma", "flower"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "TACHIKOMA_REDIS_URL": world.stack.redis_url_of("flower"),
            "TACHIKOMA_REDIS_PASSWORD_FILE": str(password),
            "TACHIKOMA_FLOWER_LISTEN": "127.0.0.1:0",
            # None of Flower's own settings is heeded.
            "FLOWER_UNAUTHENTICATED_API": "true",
            "FLOWER_READ_ONLY": "false",
            **environment,
        },
    )


def test_a_port_that_is_taken_is_said(world: World, tmp_path: Path) -> None:
    taken = world.stack.flower_url.partition("://")[2]
    environment = {"TACHIKOMA_FLOWER_USERS": str(world.stack.flower_users), "TACHIKOMA_FLOWER_LISTEN": taken}
    with _flower(world, tmp_path, **environment) as process:
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert f"tachikoma: Flower cannot listen on {taken}: " in output


def test_a_second_one_speaks_https_to_its_own_users(world: World, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("alice:a pass:word\n\nbob:another\n")
    identity = world.stack.identity("orchestrator")
    environment = {
        "TACHIKOMA_FLOWER_USERS": str(tmp_path / "users"),
        "TACHIKOMA_FLOWER_CERTIFICATE": str(identity / CERTIFICATE_FILE),
        "TACHIKOMA_FLOWER_KEY": str(identity / KEY_FILE),
    }
    context = ssl.create_default_context(cafile=str(identity / BUNDLE_FILE))
    # The development CA signs no addresses.
    context.check_hostname = False
    before, counts = world.rows(), world.counts()
    with _flower(world, tmp_path, **environment) as process:
        assert process.stdout is not None
        url = next(json.loads(line)["url"] for line in process.stdout if "flower.ready" in line)
        assert url.startswith("https://127.0.0.1:")

        def workers(login: str) -> dict[str, Any]:
            token = base64.b64encode(login.encode()).decode()
            asked = urllib.request.Request(f"{url}/workers?json=1", headers={"Authorization": f"Basic {token}"})
            with urllib.request.urlopen(asked, context=context, timeout=PATIENCE_SECONDS) as answer:
                found: dict[str, Any] = json.load(answer)
                return found

        for login in ("alice:a pass:word", "bob:another"):
            wait_until(lambda login=login: len(workers(login)["data"]) == 2, "it shows both agents")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            workers(world.login)
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
    # What was told to the one changed nothing in the other.
    assert (world.rows(), world.counts()) == (before, counts)
