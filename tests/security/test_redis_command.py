"""`tachikoma redis`, as whoever runs the server uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from json_schemas import checked
from patience import PATIENCE_SECONDS
from tachikoma.dev.stack import Stack
from tachikoma.redis.passwords import read_password
from tachikoma.redis.users import SERVICES, agent_user, application_user, rules
from tachikoma_orchestrator.commands.redis_check.acl import categories_of, parse_acl
from warm_start import run

pytestmark = pytest.mark.long

AS_IT_IS = "any client may do everything, without a password"


def tachikoma(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = run(
        [sys.executable, "-m", "tachikoma", "redis", *arguments],
        env={**os.environ, "TACHIKOMA_AUDIT_DURABLE": "false", **environment},
        timeout=PATIENCE_SECONDS,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def check(stack: Stack, *arguments: str, **environment: str) -> dict[str, Any]:
    done = tachikoma(
        *("check", "--redis-url", stack.redis_url_of("check"), "--identity", str(stack.identity("user"))),
        *("--passwords", str(stack.redis_passwords.folder), "--output", "json", *arguments),
        **environment,
    )
    assert done.stderr == ""
    report: dict[str, Any] = checked("redis check", done.stdout)
    assert done.returncode == bool(report["findings"])
    return report


@pytest.fixture
def server(admin: redis_py.Redis) -> Iterator[redis_py.Redis]:
    """The server of a stack; what a test changes is put back."""
    names = ("maxmemory-policy", "appendonly", "appendfsync", "maxclients")
    before = admin.config_get(*names)
    yield admin
    for name in names:
        admin.config_set(name, before[name])
    admin.acl_load()


def test_check_says_what_is_wrong_with_the_stack_and_nothing_when_that_is_mended(
    stack: Stack, server: redis_py.Redis
) -> None:
    report = check(stack)
    assert report["findings"] == []
    assert report["agents"] == ["agent-1", "agent-2"]
    server.execute_command("ACL", "SETUSER", "default", "on", "nopass")
    report = check(stack)
    assert [(item["where"], item["what"]) for item in report["findings"]] == [("user default", AS_IT_IS)]
    # As `default` was before: nobody connects as it, but a restart of Redis 7.0 loses data.
    for words in (["-@all"], ["+@all", "resetkeys"], ["~*", "resetchannels"]):
        server.execute_command("ACL", "SETUSER", "default", "off", *words)
        (finding,) = check(stack)["findings"]
        assert finding["where"] == "user default"
        assert "a restart of Redis drops what scripts wrote" in finding["what"]
    server.execute_command("ACL", "SETUSER", "default", "&*")
    assert check(stack)["findings"] == []
    shown = tachikoma(
        *("check", "--redis-url", stack.redis_url_of("check"), "--identity", str(stack.identity("user"))),
        TACHIKOMA_REDIS_PASSWORD_FILE=str(stack.redis_passwords.path("check")),
    )
    assert shown.returncode == 0, shown
    assert shown.stdout.endswith(", 2 agents: all as it should be\n")


def test_check_finds_every_kind_of_drift(stack: Stack, server: redis_py.Redis) -> None:
    for words in (
        (agent_user("agent-1"), "+keys"),
        (agent_user("agent-2"), "clearselectors", ">another"),
        ("check", "nopass"),
        (application_user("reports"), *rules(application_user("reports"), ()), "+keys"),
        ("stranger", "on", "nopass", "~agent.*", "+lpush", "+llen"),
        ("bystander", "on", "nopass", "~other:*", "&other:*", "+@all"),
    ):
        server.execute_command("ACL", "SETUSER", *words)
    server.execute_command("ACL", "DELUSER", "orchestrator")
    server.execute_command("ACL", "SETUSER", "default", "on", "nopass")
    server.execute_command("ACL", "SETUSER", "admin", "off")
    server.config_set("maxmemory-policy", "allkeys-lru")
    server.config_set("appendfsync", "no")
    server.config_set("maxclients", "100")
    found = {(item["where"], item["what"]): item["remedy"] for item in check(stack)["findings"]}
    expected = {
        ("maxmemory-policy", "is allkeys-lru"),
        ("appendfsync", "is no"),
        ("maxclients", "is 100; 2 agents need about 272"),
        ("user orchestrator", "does not exist"),
        ("user admin", "is off"),
        ("user agent.agent-1", "has in addition +keys"),
        ("user agent.agent-2", "lacks (%R~agent.agent-2:cancel:*"),
        ("user agent.agent-2", "accepts 1 passwords"),
        ("user check", "has in addition nopass"),
        ("user app.reports", "has in addition +keys"),
        ("user app.reports", "has no password"),
        ("user check", "does not accept its password"),
        ("user stranger", "is not a user of Tachikoma and may put orders on agents' queues"),
        ("user default", AS_IT_IS),
    }
    for where, what in expected:
        assert any(at == where and said.startswith(what) for at, said in found), (where, what, found)
    assert len(found) == len(expected), sorted(found)
    assert all(found.values())
    server.config_set("appendonly", "no")
    assert any(item["where"] == "appendonly" for item in check(stack)["findings"])
    shown = tachikoma(
        *("check", "--redis-url", stack.redis_url_of("check"), "--identity", str(stack.identity("user"))),
        *("--passwords", str(stack.redis_passwords.folder)),
    )
    assert shown.returncode == 1
    assert "CONFIG SET maxmemory-policy noeviction" in shown.stdout


def test_check_by_a_user_that_may_not_look_says_which_may(stack: Stack, admin: redis_py.Redis) -> None:
    done = tachikoma(
        *("check", "--redis-url", stack.redis_url_of("check"), "--identity", str(stack.identity("user"))),
        *("--redis-user", agent_user("agent-1"), "--passwords", str(stack.redis_passwords.folder)),
    )
    assert done.returncode == 1
    assert "use the user check of `tachikoma redis acl`" in done.stderr
    admin.acl_log_reset()


def test_a_server_that_is_away_is_said(tmp_path: Path) -> None:
    done = tachikoma("check", "--redis-url", f"unix://{tmp_path}/nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("tachikoma: cannot check Redis: ")


def test_acl_makes_users_that_a_server_takes(stack: Stack, server: redis_py.Redis, tmp_path: Path) -> None:
    folder = tmp_path / "passwords"
    made = tachikoma("acl", "--passwords", str(folder), "--agent", "web-1", "--application", "reports")
    assert made.returncode == 0, made
    users = [*SERVICES, agent_user("web-1"), application_user("reports")]
    assert [line.split()[1] for line in made.stdout.splitlines()] == ["default", *users]
    assert made.stdout.startswith("user default off ~* &* +@all\n")
    assert made.stderr.splitlines() == [f"made {folder / user}" for user in users]
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0
        assert read_password(path) not in made.stdout + made.stderr
    # A second time it makes nothing new, and knows whom it has made.
    assert tachikoma("acl", "--passwords", str(folder)).stdout == made.stdout

    one = tachikoma("acl", "--passwords", str(folder), "--agent", "web-1", "--format", "setuser").stdout
    (line,) = one.splitlines()
    assert server.execute_command(*line.split(" ")) == "OK"
    password = read_password(folder / agent_user("web-1"))
    with redis_py.Redis(unix_socket_path=str(stack.socket), username=agent_user("web-1"), password=password) as web:
        assert web.get("agent.web-1:claim:x") is None
        with pytest.raises(redis_py.exceptions.NoPermissionError):
            web.get("agent.web-2:claim:x")
    # The ACL file says the same.
    name = f"user {agent_user('web-1')} "
    (listed,) = [item.removeprefix(name) for item in server.acl_list() if item.startswith(name)]
    (promised,) = [item.removeprefix(name) for item in made.stdout.splitlines() if item.startswith(name)]
    categories = {name: frozenset(server.acl_cat(name)) for name in categories_of(listed + promised)}
    assert parse_acl(listed, categories) == parse_acl(promised, categories)
    server.acl_log_reset()


def test_acl_takes_several_passwords_so_that_one_can_be_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "passwords"
    tachikoma("acl", "--passwords", str(folder), "--agent", "web-1")
    file = folder / agent_user("web-1")
    old = read_password(file)
    file.write_text(f"new\n{old}\n")
    shown = tachikoma("acl", "--passwords", str(folder), "--agent", "web-1", "--format", "setuser").stdout
    assert shown.count("#") == 2
    assert read_password(file) == "new"


@pytest.mark.parametrize("name", ["we b", "a.b", "", "x" * 64, "web\n", "*"])
def test_acl_refuses_what_is_no_agent(tmp_path: Path, name: str) -> None:
    done = tachikoma("acl", "--passwords", str(tmp_path / "passwords"), "--agent", name)
    assert done.returncode == 1
    assert "is not a Redis user of Tachikoma" in done.stderr


def test_acl_refuses_a_folder_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    done = tachikoma("acl", "--passwords", str(tmp_path))
    assert done.returncode == 1
    assert "'notes.txt' is not a Redis user of Tachikoma" in done.stderr


def test_acl_refuses_an_empty_password(tmp_path: Path) -> None:
    (tmp_path / "check").touch()
    done = tachikoma("acl", "--passwords", str(tmp_path))
    assert done.returncode == 1
    assert "there is no password in" in done.stderr
