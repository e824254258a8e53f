"""A spawner and cgroups of a test's own, and commands in them as an order would start them."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from patience import PATIENCE_SECONDS
from processes import cgroups_named
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.isolation import Isolation, TmpScope
from tachikoma.vocabulary.limits import ResourceLimits, ResourceUsage
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_worker.cgroups.detect import detect
from tachikoma_worker.cgroups.hierarchy import Hierarchy
from tachikoma_worker.confinement.isolation.abilities import Abilities
from tachikoma_worker.confinement.isolation.enclosures import Enclosures
from tachikoma_worker.confinement.prepare import Prepared, prepare
from tachikoma_worker.confinement.process import Process
from tachikoma_worker.confinement.protocol import Exit
from tachikoma_worker.confinement.spawner import Spawner
from tachikoma_worker.confinement.start import start
from tachikoma_worker.settings import WorkerSettings

ROOT = os.getuid() == 0
#: A Python that every user may execute, which that of a virtual environment may not be.
PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin") or ""
#: Set in a container: "own" where its cgroups may be written, "read-only" where they may not.
CONTAINER = os.environ.get("TACHIKOMA_TEST_CGROUPS", "")
WHERE: Literal["top", "own"] = "own" if CONTAINER else "top"
#: The level of commands whose test names none; None for that of the agent, `shared`.
LEVEL = Isolation(os.environ["TACHIKOMA_TEST_ISOLATION"]) if "TACHIKOMA_TEST_ISOLATION" in os.environ else None


def order(
    *command: str,
    limits: ResourceLimits | dict[str, Any] | None = None,
    executables: list[GrantedExecutable] | None = None,
    work_dir_root: str | None = None,
    capabilities: int = 0,
    denied: tuple[str, ...] = (),
    host_access: bool = True,
    requester: str = "spiffe://x/user/u",
    isolation: Isolation | None = LEVEL,
    tmp: TmpScope | None = None,
    asked: Isolation | None = None,
    **values: Any,
) -> WorkOrder:
    """An order as admission makes it; policy names the working directory itself unless told otherwise."""
    request = ExecRequest(agent_id="a", command=command, isolation=asked, **values)
    return WorkOrder(
        iss="spiffe://x/service/o", iat=0, aud="spiffe://x/agent/a", sub=requester, exp=0, jti=request.id,
        policy="p@0", request=request, host_access=host_access,
        grant=Grant(
            executables=executables or [GrantedExecutable(path=command[0])],
            work_dir_root=request.work_dir if work_dir_root is None else work_dir_root,
            limits=ResourceLimits.model_validate(limits or {}),
            interpreters=True,
            denied=denied,
            capabilities=capabilities,
            isolation=isolation,
            tmp=tmp,
        ),
    )  # fmt: skip


def python(code: str, *arguments: str) -> list[str]:
    """A command that runs Python code."""
    return [PYTHON, "-I", "-S", "-c", code, *arguments]


async def read_all(descriptor: int) -> bytes:
    """Everything until the last writer has closed."""
    content = b""
    while data := await read_some(descriptor):
        content += data
    return content


async def read_some(descriptor: int, size: int = 1 << 20) -> bytes:
    """What there is, or nothing at the end."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(descriptor, size)
        except BlockingIOError:
            readable = asyncio.Event()
            loop.add_reader(descriptor, readable.set)
            try:
                await asyncio.wait_for(readable.wait(), PATIENCE_SECONDS)
            finally:
                loop.remove_reader(descriptor)


async def read_line(descriptor: int) -> bytes:
    """One line."""
    line = b""
    while not line.endswith(b"\n"):
        data = await read_some(descriptor, 1)
        assert data, "the command ended without a word"
        line += data
    return line


async def becomes_true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 (processes give no event)
            await asyncio.sleep(0.02)


class Running:
    """A started command."""

    def __init__(self, process: Process, prepared: Prepared) -> None:
        self.process = process
        self.prepared = prepared
        self.cgroup = prepared.cgroup

    async def exit(self) -> Exit:
        return await asyncio.wait_for(asyncio.shield(self.process.exited), PATIENCE_SECONDS)


class Host:
    """An agent's spawner and cgroups."""

    def __init__(self, spawner: Spawner, abilities: Abilities, cgroups: Hierarchy, folder: Path, name: str) -> None:
        self.spawner = spawner
        self.abilities = abilities
        self.cgroups = cgroups
        self.folder = folder
        self.name = name

    def settings(self, **values: Any) -> WorkerSettings:
        # Whoever runs the tests, unless a test says otherwise: commands look at files of the tests.
        defaults = {"agent_id": "a", "redis_url": "unix:///x", "identity": self.folder, "data": self.folder}
        return WorkerSettings(**{**defaults, "user": os.environ["TACHIKOMA_USER"], **values})

    def enclosures(self, **values: Any) -> Enclosures:
        return Enclosures(self.settings(**values), self.abilities)

    def prepare(self, *command: str, settings: dict[str, Any] | None = None, **values: Any) -> Prepared:
        enclosures = self.enclosures(**(settings or {}))
        return prepare(order(*command, **values), enclosures.settings, self.spawner.uid, self.cgroups, enclosures)

    @asynccontextmanager
    async def running(self, *command: str, **values: Any) -> AsyncIterator[Running]:
        """A command that is ended and forgotten whatever happens."""
        prepared = self.prepare(*command, **values)
        try:
            process = await start(prepared, self.spawner)
            try:
                yield Running(process, prepared)
            finally:
                await process.kill_all()
                await asyncio.wait_for(asyncio.shield(process.exited), PATIENCE_SECONDS)
                await process.close()
        finally:
            prepared.discard()

    async def run(self, *command: str, **values: Any) -> tuple[int, bytes, bytes]:
        """Run to the end: status, output, error output."""
        status, out, err, _ = await self.measure(*command, **values)
        return status, out, err

    async def measure(self, *command: str, **values: Any) -> tuple[int, bytes, bytes, ResourceUsage]:
        """As `run`, and what it used."""
        async with self.running(*command, **values) as it:
            out, err = await asyncio.gather(read_all(it.process.stdout), read_all(it.process.stderr))
            return (await it.exit()).status, out, err, it.cgroup.usage()


@asynccontextmanager
async def a_host(capabilities: int = 0) -> AsyncIterator[Host]:
    """A host whose spawner ends with the test, and that leaves no process and no cgroup."""
    # Not under tmp_path: the path of a unix socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="tk-"))
    name = f"tachikoma-test-{uuid.uuid4().hex[:12]}"
    cgroups = detect("a", name=name, where=WHERE)
    spawner = Spawner.connect(folder / "spawner.sock", capabilities)
    abilities = spawner.abilities()
    spawner.attach()
    try:
        yield Host(spawner, abilities, cgroups, folder, name)
        assert await spawner.held() == []
    finally:
        program = spawner._started
        assert program is not None
        await spawner.stop()
        try:
            program.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            program.kill()
            raise
        left = cgroups.leftovers()
        cgroups.close()
        shutil.rmtree(folder)
        assert left == []
        assert cgroups_named(name) == []
