"""Flower on both servers, over TLS too: its user in Redis can listen, and nothing else."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from support import AGENT, request, wait_until

from patience import PATIENCE_SECONDS
from rights import dry_run, every_command
from tachikoma import Client
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import service_id
from tachikoma.redis import keys
from tachikoma.redis.users import FLOWER, SERVICES

LOGIN = "somebody:something"
#: All that Flower may do with a name.
ALLOWED = {("psubscribe", keys.ALL_CELERY_EVENTS), ("publish", keys.EVENTS_WANTED)}
#: Commands that need none; the last four are open to whoever is not logged in yet.
NAMELESS = {"ping", "punsubscribe", "client|setname", "auth", "hello", "quit", "reset"}
NAMES = [
    *(keys.queue(AGENT), keys.info(AGENT), keys.events(AGENT), keys.control(AGENT), keys.claim(AGENT, "x")),
    *(keys.output(AGENT, "x"), keys.cancel(AGENT, "x"), keys.read(AGENT, "x"), keys.result(AGENT, "x")),
    *(keys.INDEX, keys.OPEN, keys.AGENTS, keys.ONLINE, keys.APPROVALS, keys.APPROVED, keys.AUDIT, keys.AUDIT_SEQ),
    *(keys.AUDIT_SINKS, keys.ENDED, keys.ALL_EVENTS, keys.reports_to(0), keys.ALL_INFO, keys.ALL_OURS, keys.ALL_QUEUES),
    *(keys.execution("x"), keys.parked("x"), keys.agent_index(AGENT), keys.audit_lock("events"), *keys.scope("x")),
    *(keys.celery_events("task"), keys.celery_events("worker"), keys.ALL_CELERY_EVENTS, keys.EVENTS_WANTED),
    *("celery", "unacked", "_kombu.binding.celeryev", "celeryev", "/0.celery.pidbox", "/0.reply.celery.pidbox", "*"),
]  # fmt: skip


@pytest.fixture
def flower(stack: Stack, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """A Flower on the stack's Redis; asks it for JSON."""
    users = tmp_path / "users"
    users.write_text(f"{LOGIN}\n")
    identity = stack.issue(service_id(TRUST_DOMAIN, "flower")).identity
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "tachikoma", "flower", "--redis-url", stack.redis_url_of(FLOWER)),
            *("--identity", str(identity), "--users", str(users), "--listen", "127.0.0.1:0"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TACHIKOMA_REDIS_PASSWORD_FILE": str(stack.redis_passwords.path(FLOWER))},
    ) as process:
        assert process.stderr is not None
        url = next(json.loads(line)["url"] for line in process.stderr if "flower.ready" in line)

        def ask(path: str) -> Any:
            token = base64.b64encode(LOGIN.encode()).decode()
            asked = urllib.request.Request(url + path, headers={"Authorization": f"Basic {token}"})
            with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as answer:
                text = answer.read().decode()
            return json.loads(text) if "json" in path else text

        yield ask
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0


def test_whatever_is_looked_at_flower_is_denied_nothing(
    stack: Stack, client: Client, admin: redis_py.Redis, flower: Callable[[str], Any]
) -> None:
    exec_id = client.execute(request("/bin/true")).id
    wait_until(lambda: _known(flower, exec_id), "it is shown")
    for path in ("/", "/tasks", "/broker", "/worker/agent-1@agent-1", "/workers?refresh=1"):
        assert flower(path)
    for connection in admin.client_list():
        if connection["user"] == FLOWER:
            admin.client_kill_filter(_id=connection["id"])
    later = client.execute(request("/bin/true")).id
    wait_until(lambda: _known(flower, later), "it goes on")
    assert admin.acl_log() == []
    assert {item["user"] for item in admin.client_list() if item["name"] == "flower"} == {FLOWER}


def _known(flower: Callable[[str], Any], exec_id: str) -> bool:
    """Whether it shows an execution as what it is."""
    try:
        return "SUCCESS" in flower(f"/task/{exec_id}")
    except urllib.error.HTTPError:
        return False


def test_of_all_commands_flower_may_listen_and_say_that_it_does(admin: redis_py.Redis, stack: Stack) -> None:
    allowed = dry_run(admin, FLOWER, list(every_command(admin)), NAMES)
    assert {(command, name) for command, name in allowed if command not in NAMELESS} == ALLOWED
    admin.acl_log_reset()


def test_flower_has_no_right_to_any_key() -> None:
    assert not any(grant.read or grant.write for grant in SERVICES[FLOWER])
