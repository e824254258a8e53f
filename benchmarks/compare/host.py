"""A development stack that runs until its standard input ends: `python host.py FOLDER`, by the Python of its tree."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from redis import Redis

from tachikoma.dev.stack import Stack


@contextmanager
def replica(stack: Stack) -> Iterator[None]:
    """Run a replica of a stack's Redis, which follows before the block begins."""
    admin: dict[str, Any] = stack.redis_admin
    program = psutil.Process(stack.redis.pid).exe()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, Redis(**admin) as redis:
        redis.config_set("bind", "127.0.0.1")
        redis.config_set("port", port)
        command = [
            # A server must listen somewhere.
            program, "--port", "0", "--unixsocket", str(Path(folder, "redis.sock")), "--dir", folder, "--save", "",
            "--replicaof", "127.0.0.1", str(port), "--masteruser", admin["username"], "--masterauth", admin["password"],
        ]  # fmt: skip
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
            try:
                while redis.info("replication").get("slave0", {}).get("state") != "online":
                    if server.poll() is not None:
                        raise SystemExit(f"the replica ended with exit code {server.returncode}")
                    time.sleep(0.05)
                # The orchestrator looks four times a second.
                time.sleep(1)
                yield
            finally:
                server.terminate()


def main() -> None:
    """Start a stack, print its facts as one line of JSON, and wait."""
    settings = json.loads(os.environ.get("BENCHMARK_SETTINGS", "{}"))
    with Stack(Path(sys.argv[1]), environment=settings) as stack, ExitStack() as more:
        if "BENCHMARK_REPLICA" in os.environ:
            more.enter_context(replica(stack))
        pids = {"orchestrator": stack.orchestrator.pid, "agent": stack.agents["agent-1"].pid, "redis": stack.redis.pid}
        # By name, since the profile of an older version is no dataclass.
        profile = {name: str(getattr(stack.profile(), name)) for name in ("address", "server_name", "identity")}
        facts = {"profile": profile, "pids": pids, "redis": stack.redis_admin}
        print(json.dumps(facts), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
