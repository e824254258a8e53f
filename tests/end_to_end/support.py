"""What the end-to-end tests use: requests, the CLI as a process, waiting for conditions."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from redis import Redis
from redis.exceptions import RedisError

from patience import PATIENCE_SECONDS
from pty_process import PtyProcess
from tachikoma import ExecRequest
from tachikoma.dev.identities import own_user
from tachikoma.dev.stack import SERVER_NAME, TRUST_DOMAIN, Stack
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tachikoma.identity.spiffe import user_id
from tachikoma.redis import keys
from tachikoma.redis.users import APPLICATION_PREFIX
from warm_start import WarmPopen, interruptible, run

AGENT = "agent-1"


def publish_report(redis: Redis, agent: str, exec_id: str, raw: bytes | str) -> None:
    """Publish a result as an agent does, to whichever orchestrator listens."""
    for lane in range(keys.REPLY_LANES):
        redis.publish(keys.report(agent, lane, exec_id), raw)


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait for a condition and return its value; fail when it does not come true."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"did not come true in {seconds:g} s: {what}")
        time.sleep(0.01)


def write_at_once(stack: Stack) -> None:
    """Let the Redis of a stack answer a change after it has written it. With `appendfsync everysec` it may answer up to
    two seconds before, while an earlier part of its file is on its way to a slow disk."""
    with Redis(**stack.redis_admin) as redis:
        redis.config_set("appendfsync", "always")


def kill_redis(stack: Stack) -> None:
    """Kill the Redis of a stack without a loss."""
    write_at_once(stack)
    stack.redis.kill()


def install_packages(folder: Path) -> None:
    """Install what the lock of npm in a folder names."""
    install = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    subprocess.run(install, cwd=folder, check=True, timeout=3 * PATIENCE_SECONDS)


def free_addresses(number: int) -> list[str]:
    """Return different addresses on which nothing listens."""
    with ExitStack() as taken:
        sockets = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def read_metrics(address: str) -> dict[str, float]:
    """Return the metrics that a part serves, by name and labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE_SECONDS) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def request(*command: str, **values: Any) -> ExecRequest:
    """A request to the first agent, of at most ten minutes: a test that is slow ends no command."""
    values.setdefault("timeout", 600)
    return ExecRequest(agent_id=values.pop("agent_id", AGENT), command=command, **values)


def gone(pid: int) -> bool:
    """Whether a process runs no more; one that only waits for its parent to look counts as gone."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@dataclass
class Cli:
    """The command line, as processes."""

    profile: Path

    def environment(self) -> dict[str, str]:
        return {**os.environ, "TACHIKOMA_PROFILE": str(self.profile), "COLUMNS": "200"}

    def run(
        self, *arguments: str, stdin: bytes | None = None, timeout: float = PATIENCE_SECONDS
    ) -> subprocess.CompletedProcess[bytes]:
        """Run to the end."""
        command = [sys.executable, "-m", "tachikoma", *arguments]
        return run(command, input=stdin, env=self.environment(), timeout=timeout)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start, to be watched while it runs."""
        return WarmPopen(
            [sys.executable, "-m", "tachikoma", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(),
            # As in a terminal: Ctrl-C goes to the process, not to pytest.
            start_new_session=True,
            preexec_fn=interruptible,
        )

    def open(self, *arguments: str, rows: int = 24, columns: int = 80) -> PtyProcess:
        """Start at a terminal, as a person does."""
        command = [sys.executable, "-m", "tachikoma", *arguments]
        return PtyProcess(command, env=self.environment(), rows=rows, columns=columns)


#: Starts the command line of a person at a terminal, which ends with the test.
OpenCli = Callable[..., PtyProcess]


def plain_channel(stack: Stack, identity: Path | None) -> grpc.Channel:
    """A channel of plain grpc, without the checks of our client."""
    bundle = (stack.identity("user") / BUNDLE_FILE).read_bytes()
    if identity is None:
        credentials = grpc.ssl_channel_credentials(bundle)
    else:
        key, certificate = (identity / KEY_FILE).read_bytes(), (identity / CERTIFICATE_FILE).read_bytes()
        credentials = grpc.ssl_channel_credentials(bundle, key, certificate)
    return grpc.secure_channel(stack.address, credentials, [("grpc.ssl_target_name_override", SERVER_NAME)])


def make_cli(stack: Stack, folder: Path | None = None) -> Cli:
    """The command line with a stack's profile, kept in its data folder or elsewhere."""
    path = (folder or stack.data) / "profile.json"
    stack.profile().save(path)
    return Cli(path)


#: Everybody may run things for ten minutes on every agent; root and only root is an operator.
POLICY = """\
operators: ["{user}"]
policies:
  - name: everybody
    subjects: ["spiffe://tachikoma.local/user/*"]
    agents: ["**"]
    allowedCommands: ["/** ..."]
    allowInterpreters: true
    deniedCommands: [reboot, "/usr/bin/touch /forbidden"]
    allowedUsers: ["*", root]
    hostAccess: true
    allowedWorkDirs: ["/tmp/**", "/tmp", "/nonexistent"]
    allowedEnvironment: ["TEST_*", "LANG"]
    maxTimeout: 10m
"""


def prepare(data: Path) -> Path:
    """Put the test policy where a stack finds it."""
    user = user_id(TRUST_DOMAIN, own_user())
    (data / "policy.yaml").write_text(POLICY.format(user=user))
    return data


def _harmless(denial: dict[str, Any]) -> bool:
    """What redis-py says of itself in applications that we do not configure; it takes no for an answer."""
    return bool(denial["object"] == "client|setinfo" and denial["username"].startswith(APPLICATION_PREFIX))


def nothing_denied(stack: Stack) -> None:
    """Fail when Redis denied something to a part. Says nothing of a stack whose Redis is gone."""
    if not stack.redis.alive:
        return
    with Redis(**stack.redis_admin) as redis:
        try:
            denials = [item for item in redis.acl_log() if not _harmless(item)]
        except RedisError:
            return
    assert denials == [], f"Redis denied: {denials}"
