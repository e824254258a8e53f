"""TLS on the wire: who is let in, whom we let ourselves be served by, and that nobody notices new certificates."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import kombu
import pytest
import redis as redis_py
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from support import AGENT, request, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecState
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.dev.folder import REDIS_HOST
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tachikoma.identity.spiffe import agent_id
from tachikoma.redis import celery_broker
from tachikoma.redis.access import RedisAccess, RedisSettings, celery_url, connect
from tachikoma.redis.passwords import read_password
from tachikoma.redis.users import ADMIN, agent_user, application_user, rules


@pytest.fixture
def stack(tls_stack: Stack) -> Stack:
    return tls_stack


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """An identity of the same name, from another CA."""
    folder = tmp_path / "foreign"
    DevelopmentCA(tmp_path / "foreign-ca", TRUST_DOMAIN).issue(agent_id(TRUST_DOMAIN, AGENT), folder)
    return folder


def access_of(stack: Stack, identity: Path, **settings: object) -> RedisAccess:
    """How the agent reaches Redis with the certificates of a folder; or with other settings."""
    given = RedisSettings(
        **{
            "redis_url": stack.redis_url_of(AGENT),
            "redis_password_file": stack.redis_passwords.path(agent_user(AGENT)),
            "redis_ca": identity / BUNDLE_FILE,
            "redis_certificate": identity / CERTIFICATE_FILE,
            "redis_key": identity / KEY_FILE,
            **settings,
        }
    )
    return RedisAccess.of(given, identity=None, user=agent_user(AGENT))


async def by_engine(access: RedisAccess) -> None:
    client = connect(access, name="test")
    try:
        await client.ping()
    finally:
        await client.aclose()


async def by_broker(access: RedisAccess) -> None:
    celery_broker.install()
    options = {"connection_options": access.connection_options, "ack_emulation": False}
    with kombu.Connection(
        celery_url(access.url), ssl={"ssl_cert_reqs": "required"}, transport_options=options
    ) as connection:
        connection.channel().client.ping()


both_ways = pytest.mark.parametrize("way", [by_engine, by_broker])
Way = Callable[[RedisAccess], object]


def test_a_command_runs_over_it_and_over_nothing_else(stack: Stack) -> None:
    with Client(stack.profile()) as client:
        assert client.execute(request("/bin/true")).state is ExecState.SUCCEEDED
    with redis_py.Redis(**stack.redis_admin, decode_responses=True) as admin:
        assert admin.config_get("port") == {"port": "0"}
        connections = [item for item in admin.client_list() if item["user"] not in ("default", ADMIN)]
    addresses = {(item["user"], item["laddr"].rpartition(":")[2]) for item in connections}
    port = stack.redis_url_of(AGENT).rpartition(":")[2]
    assert addresses == {
        (user, port) for user in ("orchestrator", "submitter", agent_user("agent-1"), agent_user("agent-2"))
    }


#: As Celery's own documentation says, and with nothing of ours but the signature.
APPLICATION = """
import os, ssl, sys
from celery import Celery
from tachikoma.celery import Commands

url, *files = sys.argv[1:]
tls = dict(zip(("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"), files), ssl_cert_reqs=ssl.CERT_REQUIRED)
app = Celery("reports", broker=url, backend=url, broker_use_ssl=tls, redis_backend_use_ssl=tls)
print(Commands(app, application="reports").s("agent-1", ["/bin/true"]).delay().get(timeout=60)["exitCode"])
"""


@pytest.fixture
def user(stack: Stack, admin: redis_py.Redis) -> Iterator[str]:
    """The Redis user of an application."""
    made = application_user("reports")
    stack.redis_passwords.make(made)
    admin.execute_command("ACL", "SETUSER", made, *rules(made, stack.redis_passwords.hashes(made)))
    yield made
    admin.acl_deluser(made)
    stack.redis_passwords.path(made).unlink()


def test_a_celery_application_and_the_submitter_use_it_too(
    stack: Stack, admin: redis_py.Redis, user: str, tmp_path: Path
) -> None:
    password, identity = read_password(stack.redis_passwords.path(user)), stack.identity("user")
    url = stack.redis_url_of("submitter").replace("rediss://", f"rediss://{user}:{password}@")
    files = [str(identity / name) for name in (BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE)]
    stack.profile().save(tmp_path / "profile.json")
    done = subprocess.run(
        [sys.executable, "-c", APPLICATION, url, *files],
        env={**os.environ, "TACHIKOMA_PROFILE": str(tmp_path / "profile.json")},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == b"0\n", done.stderr.decode()
    names = {item["name"] for item in admin.client_list() if item["user"] == "submitter"}
    assert {"submitter-celery", "submitter-queues"} <= names


def test_a_plain_connection_is_refused(stack: Stack) -> None:
    port = int(stack.redis_url_of(AGENT).rpartition(":")[2])
    with socket.create_connection((REDIS_HOST, port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(b"PING\r\n")
        said = b""
        with suppress(ConnectionResetError):
            said = connection.recv(1024)
    assert b"PONG" not in said


def test_a_password_is_not_enough(stack: Stack) -> None:
    """Without a client certificate."""
    port = int(stack.redis_url_of(AGENT).rpartition(":")[2])
    password = read_password(stack.redis_passwords.path(agent_user(AGENT)))
    context = ssl.create_default_context(cafile=str(stack.identity(AGENT) / BUNDLE_FILE))
    said = b""
    # With TLS 1.3 the client believes in the handshake before the server has refused it.
    with (
        suppress(ssl.SSLError, ConnectionResetError, BrokenPipeError),
        socket.create_connection((REDIS_HOST, port), timeout=PATIENCE_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=REDIS_HOST) as connection,
    ):
        connection.sendall(f"AUTH {agent_user(AGENT)} {password}\r\n".encode())
        said = connection.recv(1024)
    assert said == b""


@both_ways
async def test_a_certificate_of_another_ca_is_not_let_in(stack: Stack, foreign: Path, way: Way) -> None:
    access = access_of(stack, foreign, redis_ca=stack.identity(AGENT) / BUNDLE_FILE)
    with pytest.raises((RedisConnectionError, kombu.exceptions.OperationalError)):
        await way(access)  # type: ignore[misc]


@both_ways
async def test_a_server_of_another_ca_is_told_nothing(
    stack: Stack, foreign: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also not where the host trusts it: what counts is the CA that was given, and no other.
    monkeypatch.setenv("SSL_CERT_FILE", str(stack.identity(AGENT) / BUNDLE_FILE))
    access = access_of(stack, stack.identity(AGENT), redis_ca=foreign / BUNDLE_FILE)
    with pytest.raises((RedisConnectionError, kombu.exceptions.OperationalError), match="certificate verify failed"):
        await way(access)  # type: ignore[misc]


@both_ways
async def test_a_server_of_another_name_is_told_nothing(stack: Stack, way: Way) -> None:
    url = stack.redis_url_of(AGENT).replace(REDIS_HOST, "127.0.0.1")
    access = access_of(stack, stack.identity(AGENT), redis_url=url)
    with pytest.raises((RedisConnectionError, kombu.exceptions.OperationalError), match=r"not valid for '127.0.0.1'"):
        await way(access)  # type: ignore[misc]


@both_ways
async def test_all_is_right_where_all_is_right(stack: Stack, way: Way) -> None:
    await way(access_of(stack, stack.identity(AGENT)))  # type: ignore[misc]


@both_ways
async def test_a_new_certificate_is_taken_by_the_next_connection(
    stack: Stack, foreign: Path, tmp_path: Path, way: Way
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(foreign, mine)
    access = access_of(stack, mine, redis_ca=stack.identity(AGENT) / BUNDLE_FILE)
    with pytest.raises((RedisConnectionError, kombu.exceptions.OperationalError)):
        await way(access)  # type: ignore[misc]
    # The key is exchanged and the certificate not yet: nothing to connect with, and what was there is kept.
    shutil.copy(stack.identity(AGENT) / KEY_FILE, mine)
    with pytest.raises((RedisConnectionError, kombu.exceptions.OperationalError)):
        await way(access)  # type: ignore[misc]
    shutil.copy(stack.identity(AGENT) / CERTIFICATE_FILE, mine)
    await way(access)  # type: ignore[misc]
    # And the other way about: a half-written pair does no harm to one that is good.
    shutil.copy(foreign / KEY_FILE, mine)
    await way(access)  # type: ignore[misc]


async def test_a_client_that_lives_on_takes_new_certificates_and_passwords_when_it_reconnects(
    stack: Stack, foreign: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(stack.identity(AGENT), mine)
    password = tmp_path / "password"
    shutil.copy(stack.redis_passwords.path(agent_user(AGENT)), password)
    client = connect(access_of(stack, mine, redis_password_file=password), name="test", max_connections=1)
    try:
        await client.ping()
        for name in (KEY_FILE, CERTIFICATE_FILE):
            shutil.copy(foreign / name, mine)
        # The connection that stands goes on.
        await client.ping()
        await client.connection_pool.disconnect()
        with pytest.raises(RedisConnectionError):
            await client.ping()
        for name in (KEY_FILE, CERTIFICATE_FILE):
            shutil.copy(stack.identity(AGENT) / name, mine)
        await client.ping()
        password.write_text("another\n")
        await client.connection_pool.disconnect()
        with pytest.raises(RedisConnectionError, match="invalid username-password"):
            await client.ping()
        shutil.copy(stack.redis_passwords.path(agent_user(AGENT)), password)
        await client.ping()
    finally:
        await client.aclose()
    with redis_py.Redis(**stack.redis_admin) as admin:
        admin.acl_log_reset()


def test_the_system_goes_on_when_everybodys_certificates_change_and_connections_break(stack: Stack) -> None:
    with (
        Client(stack.profile()) as client,
        redis_py.Redis(**stack.redis_admin, decode_responses=True) as admin,
    ):
        # Other tests of this module try what is denied.
        admin.acl_log_reset()
        running = client.submit(request("sleep", "60"))
        wait_until(lambda: client.status(running.id).state is ExecState.STARTED, "it runs")
        stack.issue_identities()
        identity = stack.identity("redis")
        admin.execute_command(
            "CONFIG", "SET",
            "tls-cert-file", str(identity / CERTIFICATE_FILE), "tls-key-file", str(identity / KEY_FILE),
        )  # fmt: skip
        before = {item["id"] for item in admin.client_list()}
        for kind in ("normal", "pubsub"):
            admin.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

        def back() -> bool:
            new = [item["user"] for item in admin.client_list() if item["id"] not in before]
            return new.count(agent_user(AGENT)) >= 3

        wait_until(back, "the agent is connected again")
        assert client.execute(request("/bin/true")).state is ExecState.SUCCEEDED
        client.cancel(running.id)
        wait_until(lambda: client.status(running.id).state is ExecState.CANCELLED, "a cancel gets there")
        assert admin.acl_log() == []


async def test_a_password_file_that_is_gone_is_said(stack: Stack, tmp_path: Path) -> None:
    password = tmp_path / "password"
    shutil.copy(stack.redis_passwords.path(agent_user(AGENT)), password)
    access = access_of(stack, stack.identity(AGENT), redis_password_file=password)
    password.unlink()
    with pytest.raises(RedisError, match="cannot read the Redis password"):
        await by_engine(access)
