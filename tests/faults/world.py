"""A stack whose processes reach Redis through relays, and the observer who looks at it when all is over.

The observer takes no part: it reads Redis past the relays, the agents' disks, the process table and the cgroup trees,
and what the commands themselves left behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from books import compare_books
from redis import Redis
from support import gone, wait_until

from patience import PATIENCE_SECONDS
from relay import Relays
from tachikoma import AgentOffline, ExecRequest, ExecState, Unavailable
from tachikoma.client.profile import Profile
from tachikoma.client.sync import Client
from tachikoma.dev.part import Part
from tachikoma.dev.redis_server import free_port
from tachikoma.dev.stack import Stack
from tachikoma.redis import keys

__all__ = ["Job", "Observer", "World", "end_of", "submit"]

#: Whatever is done to it, an execution has its end by then; each test says by its queue timeout what it comes to.
BOUND_SECONDS = float(PATIENCE_SECONDS)
#: Environment variable by which a spawner is told from those of other stacks; it outlives the worker that started it.
_MARK = "TACHIKOMA_TEST_PART"


class World(Stack):
    """Redis, orchestrators and agents, each behind a relay of its own."""

    def __init__(self, data: Path, *, orchestrators: int = 1, queue_timeout: str = "8s", **values: Any) -> None:
        environment = {
            # What became of an agent is told soon.
            "TACHIKOMA_LEASE": "1s",
            "TACHIKOMA_SWEEP": "0.3s",
            "TACHIKOMA_RATE_LIMIT": json.dumps({"queueTimeout": queue_timeout}),
            **values.pop("environment", {}),
        }
        super().__init__(data, environment=environment, **values)
        self.relays = Relays()
        self.others = [f"orchestrator-{number}" for number in range(2, orchestrators + 1)]
        self._ports = {name: free_port() for name in self.others}
        self.orchestrators: dict[str, Part] = {}
        #: Further environment variables of single parts.
        self.more_environment: dict[str, dict[str, str]] = {}

    def _make_parts(self) -> None:
        super()._make_parts()
        self.orchestrators = {"orchestrator": self.orchestrator}
        for name in self.others:
            command = [self._at(name) if word == self.listen else word for word in self.orchestrator._command]
            log = self.data / "audit" / f"{name}.jsonl"
            environment = {**self.orchestrator._environment, "TACHIKOMA_AUDIT_LOG": str(log)}
            self.orchestrators[name] = Part(name, command, self.data / "logs" / f"{name}.log", environment)
        for name, part in {**self.orchestrators, **self.agents}.items():
            path = self.socket.parent / f"{name}.sock"
            self.relays.add(name, path, self.socket)
            part._command = [word.replace(str(self.socket), str(path)) for word in part._command]
            more = self.more_environment.get(name, {})
            part._environment = {**part._environment, **more, _MARK: self._mark(name)}

    def _at(self, name: str) -> str:
        return f"127.0.0.1:{self._ports[name]}"

    def start_orchestrator(self) -> None:
        super().start_orchestrator()
        for name in self.others:
            if not self.orchestrators[name].alive:
                self.start_again(name)

    def stop(self) -> None:
        for name in self.others:
            if name in self.orchestrators:
                self.orchestrators[name].stop()
        super().stop()
        self.relays.close()

    def profile_of(self, name: str) -> Profile:
        """How to reach one of the orchestrators."""
        address = self.address if name == "orchestrator" else self._at(name)
        return replace(self.profile(), address=address)

    def all_ready(self) -> bool:
        """Whether every orchestrator answers and every agent is online."""
        for name in self.orchestrators:
            try:
                with Client(self.profile_of(name)) as client:
                    if {agent.id for agent in client.agents() if agent.online} != set(self.agent_ids):
                        return False
            except Unavailable:
                return False
        return True

    # --- faults -------------------------------------------------------------------------------------------------------

    def pid(self, name: str) -> int:
        """Of a process: `redis`, an orchestrator, an agent, or an agent's `<agent>/spawner`."""
        agent, slash, _ = name.partition("/")
        return self.spawner(agent).pid if slash else self.part(name).pid

    def part(self, name: str) -> Part:
        return {"redis": self.redis, **self.orchestrators, **self.agents}[name]

    def spawner(self, agent: str) -> psutil.Process:
        """The spawner of an agent; its child has the same name and variables until it becomes a command."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter(["name", "ppid"]):
            with suppress(psutil.NoSuchProcess):
                if "spawner" in process.info["name"] and process.environ().get(_MARK) == self._mark(agent):
                    found[process.pid] = process
        for process in found.values():
            if process.info["ppid"] not in found:
                return process
        raise LookupError(f"{agent} has no spawner")

    def _mark(self, name: str) -> str:
        return f"{name} of {self.data}"

    def start_again(self, name: str) -> None:
        """Start what was killed, and wait until it is there."""
        agent, slash, _ = name.partition("/")
        if name == "redis":
            self.start_redis()
        elif name == "orchestrator":
            self.start_orchestrator()
        elif name in self.orchestrators:
            self.orchestrators[name].start_until_ready()
        else:
            if slash:
                wait_until(lambda: not self.agents[agent].alive, "a worker without its spawner ends")
            self.start_agent(agent)

    def kill(self, name: str) -> None:
        """SIGKILL."""
        if "/" in name:
            os.kill(self.pid(name), signal.SIGKILL)
        else:
            self.part(name).kill()

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """SIGSTOP, and SIGCONT at the end of the block."""
        process = psutil.Process(self.pid(name))
        process.suspend()
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, f"{name} has stopped")
        try:
            yield
        finally:
            process.resume()

    @contextmanager
    def direct(self) -> Iterator[Redis]:
        """Redis, past all relays."""
        with Redis(**self.redis_admin) as redis:
            yield redis


# --- what is run ------------------------------------------------------------------------------------------------------

#: Leaves a mark, writes on both streams, and may wait for a file before it ends.
_SCRIPT = """
echo $$ >> "$0"; echo begin; echo "on stderr" >&2
[ -z "$3" ] || while [ ! -e "$3" ]; do sleep 0.02; done
seq "$1"; : > "$0.end"; exit "$2"
"""


@dataclass
class Job:
    """An execution, what it should come to, and what it leaves of itself."""

    request: ExecRequest
    mark: Path
    exit_code: int = 0
    stdout: bytes = b""
    stderr: bytes = b"on stderr\n"
    #: What the caller was told, each time.
    told: list[ExecState] = field(default_factory=list)

    @classmethod
    def make(
        cls, folder: Path, name: str, *, agent: str = "agent-1", lines: int = 100, exit_code: int = 0,
        go: Path | None = None, timeout: float = 600,
    ) -> Job:  # fmt: skip
        """A job that marks its starts in a folder.

        Args:
            folder: where.
            name: the execution's id.
            agent: where it runs.
            lines, exit_code: what it writes, and ends with.
            go: a file that it waits for, having written something.
            timeout: seconds it may run.
        """
        mark = folder / name
        command = ("/bin/sh", "-c", _SCRIPT, str(mark), str(lines), str(exit_code), str(go or ""))
        request = ExecRequest(id=name, agent_id=agent, command=command, timeout=timeout)
        out = b"begin\n" + b"".join(b"%d\n" % number for number in range(1, lines + 1))
        return cls(request, mark, exit_code, out)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def agent(self) -> str:
        return self.request.agent_id

    @property
    def ended(self) -> bool:
        """Whether it has come to its last line, by its own word."""
        return Path(f"{self.mark}.end").exists()

    @property
    def starts(self) -> int:
        """How often it started, by its own word."""
        return len(self.mark.read_text().split()) if self.mark.exists() else 0


def submit(client: Client, job: Job) -> None:
    """Have a job accepted, however often it takes; its id makes that safe."""

    def accepted() -> bool:
        with suppress(Unavailable, AgentOffline):
            client.submit(job.request)
            return True
        return False

    wait_until(accepted, f"{job.id} is accepted")


def end_of(client: Client, job: Job) -> ExecState:
    """Wait for the end of an execution, and check what comes with it: every byte, in order, once."""
    seen = {"STDOUT": b"", "STDERR": b""}
    gaps = 0
    for output in client.attach(job.id):
        if output.data:
            seen[output.kind.name] += output.data
        gaps += output.missing_bytes
        if output.result is not None:
            result = output.result
    job.told.append(result.state)
    if result.state in (ExecState.SUCCEEDED, ExecState.FAILED):
        assert (result.exit_code, gaps) == (job.exit_code, 0)
        for data, expected, summary in (
            (seen["STDOUT"], job.stdout, result.stdout_summary),
            (seen["STDERR"], job.stderr, result.stderr_summary),
        ):
            assert data == expected
            assert (summary.total_bytes, summary.sha256) == (len(expected), hashlib.sha256(expected).hexdigest())
    return result.state


# --- the observer -----------------------------------------------------------------------------------------------------

#: Ends that say the command never ran.
_NEVER_RAN = {ExecState.EXPIRED, ExecState.REJECTED}
#: Ends that say it ran. One that timed out may have been killed before its first line marked the start.
_RAN = {ExecState.SUCCEEDED, ExecState.FAILED, ExecState.TIMED_OUT, ExecState.OUT_OF_MEMORY}
_RAN_TO_ITS_END = {ExecState.SUCCEEDED, ExecState.FAILED}
#: Keys that stay: the ledger's own, bounded by retention or by the number of agents.
_LASTING = {
    keys.INDEX, keys.AGENTS, keys.ONLINE, keys.AUDIT, keys.AUDIT_SEQ, keys.AUDIT_SINKS, keys.OUTPUTS, keys.LIFE,
}  # fmt: skip
_LASTING_PREFIXES = ("_kombu.binding.agent.", "_kombu.binding_permanent.agent.", keys.agent_index(""))


class Observer:
    """Looks at a world in which nothing happens any more."""

    def __init__(self, world: World, jobs: Iterable[Job]) -> None:
        self._world = world
        self._jobs = list(jobs)

    def states(self) -> dict[str, ExecState]:
        """The ledger's word."""
        with self._world.direct() as redis, redis.pipeline(transaction=False) as pipe:
            for job in self._jobs:
                pipe.hget(keys.execution(job.id), "state")
                # The key of a hurt execution may have another type.
            answers = pipe.execute(raise_on_error=False)
        return {
            job.id: ExecState(state.decode())
            for job, state in zip(self._jobs, answers, strict=True)
            if isinstance(state, bytes)
        }

    def wait_for_the_ends(self, seconds: float = BOUND_SECONDS, hurt: Set[str] = frozenset()) -> dict[str, ExecState]:
        """The state of each, once all have ended; the ledger may have no state of hurt ones."""
        needed = {job.id for job in self._jobs} - hurt

        def ended() -> bool:
            states = self.states()
            return needed <= states.keys() and all(state.terminal for state in states.values())

        try:
            wait_until(ended, "every execution has its end", seconds)
        except BaseException:
            self._print_open(hurt)
            raise
        return self.states()

    def _print_open(self, hurt: Set[str]) -> None:
        """Print what Redis has of the executions without an end."""
        with self._world.direct() as redis:
            print("life:", redis.get(keys.LIFE))
            for agent in self._world.agent_ids:
                print(f"{agent}:", redis.get(keys.info(agent)), "shows orders of", redis.hkeys(keys.orders(agent)))
            for exec_id in [exec_id for exec_id, state in self.states().items() if not state.terminal]:
                record = redis.hgetall(keys.execution(exec_id))
                agent = record.get(b"agent", b"").decode()
                claim, deadline = redis.get(keys.claim(agent, exec_id)), redis.zscore(keys.OPEN, exec_id)
                note = "hurt" if exec_id in hurt else "not hurt"
                print(f"without an end: {exec_id} ({note}), claim {claim!r}, open until {deadline}: {record}")

    def check(
        self, *, forgot: bool = False, hurt: Set[str] = frozenset(), trail_lost: bool = False
    ) -> Counter[ExecState]:
        """Fail where a promise does not hold.

        Args:
            forgot: whether Redis went back to an older state. What it forgot stands in the audit log, but not in its
                trail, and what it takes for never started may have run before.
            hurt: executions that lost a key in Redis. The ledger need not know them, but they started at most once.
            trail_lost: whether Redis lost its audit trail, so that there are no books to compare.

        Returns:
            How many ended how.
        """
        states = self.wait_for_the_ends(hurt=hurt)
        found: list[str] = []

        def agrees() -> bool:
            # After a loss, orchestrators record final states again before agents have written their results again.
            found.clear()
            for job in self._jobs:
                found.extend(self._check_hurt(job) if job.id in hurt else self._check_one(job, states[job.id], forgot))
            return not found

        until = time.monotonic() + BOUND_SECONDS
        while not agrees() and time.monotonic() < until:
            time.sleep(1)
        self._wait_until_nothing_is_left(hurt)
        assert not found, "\n".join(found)
        if not (forgot or trail_lost):
            compare_books(self._world, hurt)
        return Counter(states.values())

    def check_now(self, jobs: Iterable[Job], *, forgot: bool) -> None:
        """Fail where a promise about executions that have ended does not hold, while others run.

        A caller is answered from the receipt, which may be before the ledger has it; such executions are passed over.

        Args:
            jobs: executions whose callers were answered.
            forgot: whether Redis went back to an older state. A record that it forgot is restored when its agent
                reports, so some may be missing now.
        """
        states = self.states()
        found: list[str] = []
        for job in jobs:
            state = states.get(job.id)
            if state is None:
                found += [] if forgot else [f"the record of {job.id} is gone"]
            elif state.terminal:
                found += self._check_one(job, state, forgot, running=True)
        assert not found, "\n".join(found)

    @staticmethod
    def _check_hurt(job: Job) -> list[str]:
        found = []
        if job.starts > 1:
            found.append(f"{job.id} started {job.starts} times")
        if _RAN_TO_ITS_END & set(job.told) and job.starts != 1:
            found.append(f"{job.id} was reported as {', '.join(job.told)} and started {job.starts} times")
        return found

    def _check_one(self, job: Job, state: ExecState, forgot: bool, *, running: bool = False) -> list[str]:
        found = []
        if job.starts > 1:
            found.append(f"{job.id} started {job.starts} times")
        if state in _RAN_TO_ITS_END and job.starts != 1:
            found.append(f"{job.id} is {state} and started {job.starts} times")
        if state in _NEVER_RAN and job.starts and not forgot:
            found.append(f"{job.id} is {state} and was started")
        if set(job.told) - {state}:
            found.append(f"{job.id} is {state}, but was told as {', '.join(job.told)}")
        return found + self._check_receipt(job, state, forgot=forgot, running=running)

    def _check_receipt(self, job: Job, state: ExecState, *, forgot: bool, running: bool) -> list[str]:
        """Receipt, ledger and log of the output say the same; while others run, a result may have to come again.

        A worker that is killed after it has stored a receipt, and before its journal has it, makes another one if Redis
        has forgotten the first. The ledger keeps the one that callers were told.
        """
        with self._world.direct() as redis:
            record: dict[bytes, bytes] = redis.hgetall(keys.execution(job.id))  # type: ignore[assignment]
            raw: Any = redis.get(keys.result(job.agent, job.id))
            entries: Any = redis.xrange(keys.output(job.agent, job.id))
        if raw is None and running and b"receipt" in record:
            return []
        if raw is None:
            # Only an end that no agent reported has no receipt.
            return [f"{job.id} is {state} and has no receipt"] if state in _RAN or b"receipt" in record else []
        result = json.loads(raw)["result"]
        found = []
        if forgot and b"receipt" in record and record[b"receipt"].decode() != result["receipt"]:
            return [] if set(job.told) == {state} else [f"{job.id} has two receipts, and not the one of its caller"]
        if b"receipt" in record and record[b"receipt"].decode() != result["receipt"]:
            found.append(f"{job.id} has another receipt than the ledger took")
        if b"receipt" in record and result["state"] != state:
            found.append(f"{job.id} is {state}, and its receipt says {result['state']}")
        if state in _RAN:
            numbers = [int(entry_id.partition(b"-")[0]) for entry_id, _ in entries]
            if numbers != list(range(1, int(record[b"chunks"]) + 1)):
                found.append(f"{job.id} has the chunks {numbers}, and its receipt says {record[b'chunks']!r}")
        return found

    def _wait_until_nothing_is_left(self, hurt: Set[str]) -> None:
        left: list[str] = []

        def nothing() -> bool:
            # An execution that ended during a pass of the reaper is in its index until the next one.
            left[:] = self._left_on_agents() or self._left_in_redis(hurt)
            return not left

        try:
            wait_until(nothing, "nothing is left on the agents and in Redis")
        except BaseException:
            print("left:", *left, sep="\n")
            raise

    # --- leftovers ----------------------------------------------------------------------------------------------------

    def _left_on_agents(self) -> list[str]:
        world = self._world
        found = []
        for agent, part in world.agents.items():
            folder = world.data / "agents" / agent
            found += [f"the spool {path.name} on {agent}" for path in (folder / "spool").iterdir()]
            with sqlite3.connect(f"file:{folder / 'journal.db'}?mode=ro", uri=True) as journal:
                rows = journal.execute("SELECT id FROM execution WHERE done = 0").fetchall()
            journal.close()
            found += [f"the journal's {row[0]} on {agent}" for row in rows]
            if part.alive:
                children = [child for child in world.spawner(agent).children() if not gone(child.pid)]
                found += [f"the process {child.pid} on {agent}" for child in children]
        name = world.agents["agent-1"]._command[world.agents["agent-1"]._command.index("--cgroup-name") + 1]
        trees = Path("/sys/fs/cgroup")
        for tree in (*trees.glob(name), *trees.glob(f"*/{name}")):
            found += [f"the cgroup {path}" for path in tree.glob("agent-*/*") if path.is_dir()]
        marks = {str(job.mark) for job in self._jobs}
        for process in psutil.process_iter(["cmdline"]):
            if marks & set(process.info["cmdline"] or ()) and not gone(process.pid):
                found.append(f"the process {process.pid}")
        return found

    def _left_in_redis(self, hurt: Set[str] = frozenset()) -> list[str]:
        """Keys that nothing will ever remove, but those of hurt executions.

        Claims, cancels, results and output of what has ended stay for a while: the first two are what a copy of the
        order must find, the others what callers read. So what counts as left over is a key that does not expire.
        """
        with self._world.direct() as redis:
            names: Any = redis.keys()
            with redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.ttl(name)
                lives = pipe.execute()
        texts = [name.decode() for name in names]
        return [
            f"the key {name}"
            for name, life in zip(texts, lives, strict=True)
            if life == -1
            and name not in _LASTING
            and not name.startswith(_LASTING_PREFIXES)
            and not any(name.endswith(exec_id) for exec_id in hurt)
        ]
