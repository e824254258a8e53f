"""What health checks of containers and load balancers ask: does this part work, as its own settings have it?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from support import wait_until

from json_schemas import checked
from patience import PATIENCE_SECONDS
from tachikoma.dev.stack import Stack
from tachikoma.redis import keys
from warm_start import run

pytestmark = pytest.mark.long

AGENT = "agent-1"
#: Place of the finding of a slow Redis, as a busy machine may have it.
SLOW = "TACHIKOMA_REDIS_URL"


def _health(stack: Stack, part: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Ask a part as its container would, with nothing but its settings."""
    return _run(stack, part, "orchestrator" if part == "orchestrator" else "worker", "health", **environment)


def _document(stack: Stack, part: str) -> Any:
    """Ask a part for its document."""
    name = "orchestrator" if part == "orchestrator" else "worker"
    done = _run(stack, part, name, "health", "-o", "json")
    assert done.returncode == 0, done.stderr
    return checked("orchestrator health" if part == "orchestrator" else "worker health", done.stdout)


def _doctor(stack: Stack, part: str, **environment: str) -> set[str]:
    """Return where the doctor finds something."""
    name = "orchestrator" if part == "orchestrator" else "worker"
    done = _run(stack, part, "doctor", name, "-o", "json", **environment)
    found = {finding["where"] for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == bool(found), done.stderr
    # They say something about the machine of the test.
    return found - {"cgroups", "spawner"}


def _run(stack: Stack, part: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "TACHIKOMA_REDIS_URL": stack.redis_url_of(part),
        "TACHIKOMA_REDIS_PASSWORD_FILE": str(stack.redis_passwords.path(stack.redis_user_of(part))),
        "TACHIKOMA_IDENTITY": str(stack.identity(part)),
        "TACHIKOMA_POLICY": str(stack.policy),
        "TACHIKOMA_LISTEN": stack.address,
        "TACHIKOMA_AGENT_ID": part,
        "TACHIKOMA_DATA": str(stack.data / "agents" / part),
        **environment,
    }
    done = run([sys.executable, "-m", "tachikoma", *command], env=os.environ | settings, timeout=PATIENCE_SECONDS)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_an_orchestrator_that_serves_says_so_wherever_it_listens(stack: Stack) -> None:
    port = stack.address.rpartition(":")[2]
    for listen in (stack.address, f"0.0.0.0:{port}"):
        done = _health(stack, "orchestrator", TACHIKOMA_LISTEN=listen)
        assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr
    assert _document(stack, "orchestrator") == {"part": "orchestrator", "running": None, "slots": None}


def test_an_orchestrator_without_its_redis_does_not_serve(own_stack: Stack) -> None:
    own_stack.redis.kill()
    done = wait_until(
        lambda: (done := _health(own_stack, "orchestrator")).returncode == 1 and done, "the orchestrator notices"
    )
    assert "reports NOT_SERVING; it has no connection to its Redis" in done.stderr
    own_stack.start_redis()
    wait_until(lambda: _health(own_stack, "orchestrator").returncode == 0, "the orchestrator is back")


def test_where_no_orchestrator_is_there_is_no_answer(stack: Stack) -> None:
    done = _health(stack, "orchestrator", TACHIKOMA_LISTEN="127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("tachikoma: no answer from 127.0.0.1:1: ")
    done = _run(stack, "orchestrator", "orchestrator", "health", "-o", "json", TACHIKOMA_LISTEN="127.0.0.1:1")
    assert (done.returncode, json.loads(done.stderr)["error"]["code"]) == (1, "UNAVAILABLE")


def test_only_the_certificate_of_the_orchestrator_itself_is_one_to_ask_with(stack: Stack) -> None:
    done = _health(stack, "orchestrator", TACHIKOMA_IDENTITY=str(stack.identity("user")))
    assert done.returncode == 1
    assert "has no DNS name for clients to check" in done.stderr


def test_a_worker_that_is_online_says_so(stack: Stack) -> None:
    done = _health(stack, AGENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("online, ")
    found = _document(stack, AGENT)
    assert found["part"] == "worker"
    assert 0 <= found["running"] <= found["slots"]


def test_a_worker_that_ended_or_cannot_reach_redis_is_not_healthy(own_stack: Stack) -> None:
    own_stack.agents[AGENT].stop()
    done = _health(own_stack, AGENT)
    assert (done.returncode, done.stderr) == (1, f"tachikoma: agent {AGENT} is offline\n")
    done = _health(own_stack, AGENT, TACHIKOMA_REDIS_URL="redis://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith(f"tachikoma: Redis cannot be asked for agent {AGENT}: ")


def test_a_worker_of_the_same_name_elsewhere_makes_nobody_healthy(own_stack: Stack) -> None:

    own_stack.agents[AGENT].stop()
    with redis.Redis.from_url(own_stack.redis_admin_url) as server:
        elsewhere = '{"boot": "b", "run": "r", "version": "0", "hostname": "elsewhere", "running": 0, "slots": 1,'
        elsewhere += ' "load": 0, "memory_used": 0, "disk_used": 0}'
        server.set(keys.info(AGENT), elsewhere, ex=60)
    done = _health(own_stack, AGENT)
    assert (done.returncode, done.stderr) == (
        1,
        f"tachikoma: agent {AGENT} is online, but on the host elsewhere\n",
    )


def test_the_doctor_finds_nothing_where_all_is_in_order(stack: Stack) -> None:
    assert _doctor(stack, "orchestrator") <= {SLOW}
    assert _doctor(stack, AGENT) <= {SLOW}


def test_the_doctor_finds_what_keeps_an_orchestrator_from_working(stack: Stack, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("version: 1\npolices: []\n")
    (tmp_path / "ca").mkdir()
    found = _doctor(
        stack, "orchestrator",
        TACHIKOMA_LISTEN="127.0.0.1:1", TACHIKOMA_POLICY=str(wrong), TACHIKOMA_SCHEDULES=str(wrong),
        TACHIKOMA_CA=str(tmp_path / "ca"), TACHIKOMA_JOIN_LISTEN="127.0.0.1:2",
        TACHIKOMA_AUDIT_LOG=str(wrong / "audit.jsonl"),
    )  # fmt: skip
    expected = {"TACHIKOMA_LISTEN", "TACHIKOMA_POLICY", "TACHIKOMA_SCHEDULES", str(tmp_path / "ca" / "ca_key.pem")}
    assert found - {SLOW} == {*expected, "TACHIKOMA_CA", str(wrong)}
