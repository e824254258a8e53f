"""This system as a peer, as it is in one source tree; several trees can be measured in one run.

Each tree runs in a process of its own (`host.py`), with the Python of that tree. The client is always this tree's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import redis
from peers import TRUE, Peer

from tachikoma import AsyncClient, ExecRequest
from tachikoma.client.profile import Profile

__all__ = ["System"]


class System(Peer):
    """A development stack of one tree: Redis, an orchestrator and an agent."""

    def __init__(
        self,
        name: str,
        python: Path | None = None,
        environment: Mapping[str, str] | None = None,
        *,
        replica: bool = False,
    ) -> None:
        """Prepare it.

        Args:
            name: its name in the table.
            python: the interpreter of its tree; None for this one.
            environment: further settings of its parts.
            replica: True for a Redis with a replica on this machine.
        """
        self.name = f"{name}, with a replica" if replica else name
        self._replica = replica
        self._environment = dict(environment or {})
        #: The interpreter of its tree; None for this one.
        self.python = python
        self._python = str(python or sys.executable)
        self._host: subprocess.Popen[str] | None = None
        self._client: AsyncClient | None = None
        #: What `host.py` reported: profile, process ids, access to Redis.
        self.facts: dict[str, Any] = {}

    async def start(self, folder: Path) -> None:
        host = Path(__file__).with_name("host.py")
        environment = {**os.environ, "BENCHMARK_SETTINGS": json.dumps(self._environment)}
        if self._replica:
            environment["BENCHMARK_REPLICA"] = "1"
        self._host = subprocess.Popen(
            [self._python, str(host), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        assert self._host.stdout is not None
        self.facts = json.loads(self._host.stdout.readline())
        self._client = AsyncClient(Profile(**self.facts["profile"]))

    async def call(self, exec_id: str | None = None) -> None:
        assert self._client is not None
        named = {} if exec_id is None else {"id": exec_id}
        response = await self._client.execute(ExecRequest(agent_id="agent-1", command=(TRUE,), **named))
        if response.exit_code != 0:
            raise SystemExit(f"a command failed: {response.error}")

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()
        if self._host is not None:
            self._host.communicate("")

    def redis(self) -> redis.Redis:
        """Return a connection to its Redis as administrator."""
        return redis.Redis(**self.facts["redis"])

    def cpu_ms(self) -> dict[str, float]:
        """Return the processor time of each part since its start, in milliseconds; commands count for the spawner."""
        agent = psutil.Process(self.facts["pids"]["agent"])
        return {
            "orchestrator": _cpu_ms(psutil.Process(self.facts["pids"]["orchestrator"])),
            "agent": _cpu_ms(agent),
            "redis": _cpu_ms(psutil.Process(self.facts["pids"]["redis"])),
            "spawner and commands": sum(
                _cpu_ms(child) + (child.cpu_times().children_user + child.cpu_times().children_system) * 1000
                for child in agent.children()
            ),
        }

    def memory_mib(self) -> dict[str, float]:
        """Return the proportional share (PSS) of each part, in MiB; the agent's with its spawner."""
        agent = psutil.Process(self.facts["pids"]["agent"])
        parts = {name: [psutil.Process(pid)] for name, pid in self.facts["pids"].items()}
        parts["agent"] += agent.children()
        return {
            name: sum(process.memory_full_info().pss for process in processes) / 2**20
            for name, processes in parts.items()
        }


def _cpu_ms(process: psutil.Process) -> float:
    """Return the processor time of a process in milliseconds, from the scheduler's own count in nanoseconds."""
    total = 0
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e6
