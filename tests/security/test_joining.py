"""Hosts join with a token, stay agents by themselves, and are revoked: with real processes and Debian's Redis."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import socket
import stat
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import psutil
import pytest
import redis as redis_py
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.retry import Retry

from authority import Authority
from joining import Host, csr_of, letting_join, try_join
from json_schemas import checked
from patience import PATIENCE_SECONDS
from tachikoma import AgentOffline, AgentRevoked, AgentUnknown, Client, ExecState, FailedPrecondition, PermissionDenied
from tachikoma.client.membership.joining import join
from tachikoma.client.membership.renewal import renew_if_due
from tachikoma.dev.stack import SERVER_NAME, TRUST_DOMAIN, Stack
from tachikoma.errors import ConfigurationError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import JoiningStub, RemoteExecutionStub
from tachikoma.identity.authority import CertificateAuthority
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.join_token import Joined, JoinToken
from tachikoma.identity.signed_messages import OutputDigest, Receipt
from tachikoma.identity.signing import sign
from tachikoma.identity.spiffe import user_id
from tachikoma.identity.svid import Svid
from tachikoma.redis import keys
from tachikoma.redis.users import agent_user

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from support import gone, make_cli, plain_channel, publish_report, request, wait_until

#: Lifetimes in seconds of the certificate of an agent that renews while the test looks on. The longer ones are for a
#: machine on which a shorter one ended before a process had its turn: an agent cannot renew during a restart.
LIFETIMES = (6, 30, 90)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, debian: Path) -> Iterator[Stack]:
    with letting_join(tmp_path_factory.mktemp("joining"), debian) as running:
        yield running
        with redis_py.Redis(**running.redis_admin) as redis:
            # Only revoked agents were denied anything: their logins.
            denied = [item for item in redis.acl_log() if item["reason"] != "auth"]
            redis.acl_log_reset()
        assert denied == []


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.profile()) as connected:
        yield connected


def online(client: Client, agent: str) -> bool:
    return any(item.id == agent and item.online for item in client.agents())


def enrolled(client: Client, agent: str) -> JoinToken:
    return JoinToken.parse(client.enroll_agent(agent).token)


def logs_in(stack: Stack, agent: str, password: str) -> bool:
    redis = redis_py.Redis(
        unix_socket_path=str(stack.socket), username=agent_user(agent), password=password, retry=Retry(NoBackoff(), 0)
    )
    try:
        return bool(redis.ping())
    except AuthenticationError:
        return False
    finally:
        redis.close()


# --- joining ----------------------------------------------------------------------------------------------------------


def test_a_host_joins_by_the_command_line_runs_commands_is_revoked_and_joins_again(
    stack: Stack, client: Client, tmp_path: Path
) -> None:
    cli, host = make_cli(stack), Host(stack, "web-1", tmp_path / "host")
    printed = cli.run("agents", "enroll", "web-1", "--ttl", "2m", "-o", "json")
    assert printed.returncode == 0, printed.stderr
    (enrolment,) = checked("agents enroll", printed.stdout)
    token = enrolment["token"]
    joined = checked("worker join", host.join(token).stdout)
    assert (joined["spiffeId"], joined["identity"]) == (str(host.spiffe_id), str(host.identity))
    for name in ("svid_key.pem", "redis_password"):
        assert stat.S_IMODE((host.identity / name).stat().st_mode) == 0o600
    host.start()
    try:
        wait_until(lambda: online(client, "web-1"), "it is online")
        assert client.execute(request("echo", "hi", agent_id="web-1")).stdout == b"hi\n"

        # It is revoked while all its slots are busy and more executions wait.
        running = [client.submit(request("sleep", "300", agent_id="web-1", timeout=600)).id for _ in range(2)]
        for exec_id in running:
            wait_until(lambda exec_id=exec_id: client.status(exec_id).state is ExecState.STARTED, "it runs")
        marker = tmp_path / "marker"
        waiting = [client.submit(request("touch", str(marker), agent_id="web-1")).id for _ in range(4)]
        pids = _sleepers(host)
        assert len(pids) == 2
        password = (host.identity / "redis_password").read_text().strip()
        assert logs_in(stack, "web-1", password)
        stolen = FileSvidSource(host.identity).current()
        done = cli.run("agents", "revoke", "web-1", "--reason", "stolen", "--yes", "--output", "json")
        assert checked("agents revoke", done.stdout) == {"agentId": "web-1", "cancelled": 4, "lost": 2, "warnings": []}

        # Of what waited and of what ran everybody is told the end, at once.
        assert {client.status(exec_id).state for exec_id in waiting} == {ExecState.CANCELLED}
        assert {client.status(exec_id).state for exec_id in running} == {ExecState.LOST}
        assert "stolen" in client.status(running[0]).error
        assert "stolen" in client.execute(request("touch", str(marker), agent_id="web-1", id=waiting[0])).error
        with pytest.raises(AgentRevoked):
            client.execute(request("true", agent_id="web-1"))
        [told] = [item for item in client.agents() if item.id == "web-1"]
        assert (told.revoked, told.online, told.revoked_by, told.revoke_reason) == (
            True, False, str(stack.user), "stolen",
        )  # fmt: skip
        # Redis knows it no more; and an agent that still heeds what it is told has ended what it ran.
        assert not logs_in(stack, "web-1", password)
        with redis_py.Redis(**stack.redis_admin) as redis:
            assert not redis.exists(keys.queue("web-1"), keys.info("web-1"))
            saved = (stack.data / "redis" / "users.acl").read_text()
            assert f"user {agent_user('web-1')} " not in saved
        wait_until(lambda: all(map(gone, pids)), "what it ran is gone")

        # With the identity that was stolen, and even all of Redis, nothing is told as true.
        _forges_are_refused(stack, client, stolen, running[0])

        # The old token is no way back; a new one is, without a restart of the worker.
        assert b"not accepted" in host.join(token).stderr
        assert host.join(client.enroll_agent("web-1").token).returncode == 0
        wait_until(lambda: online(client, "web-1"), "it is online again")
        again = client.execute(request("echo", "again", agent_id="web-1"))
        assert again.stdout == b"again\n", again
        assert not marker.exists()
        assert {client.status(exec_id).state for exec_id in waiting} == {ExecState.CANCELLED}
        # A signature from before the revocation stays worthless.
        _forges_are_refused(stack, client, stolen, running[1])
    finally:
        host.stop()
    codes = [event.event for event in client.audit(limit=1000) if event.agent_id == "web-1"]
    assert [code for code in codes if code in ("agent_enrolled", "join_accepted", "agent_revoked", "join_refused")] == [
        *("agent_enrolled", "join_accepted", "agent_revoked", "join_refused", "agent_enrolled", "join_accepted")
    ]
    # The secrets are nowhere but in the token and with the agent.
    secret = JoinToken.parse(token).secret
    written = b"".join(path.read_bytes() for path in (stack.data / "logs").iterdir()) + host.log.read_bytes()
    written += (stack.data / "audit" / "audit.jsonl").read_bytes()
    for word in (token.strip().encode(), base64.b64encode(secret), secret.hex().encode(), password.encode()):
        assert word not in written


def _sleepers(host: Host) -> list[int]:
    """What it runs; all have a spawner as their parent, which is the worker's child."""
    below = psutil.Process(host.worker.pid).children(recursive=True)
    return [process.pid for process in below if process.cmdline()[-1:] == ["300"]]


def _forges_are_refused(stack: Stack, client: Client, svid: Svid, exec_id: str) -> None:
    """A receipt, a heartbeat and a call for a certificate, with an identity that was revoked."""
    nothing = hashlib.sha256(b"").hexdigest()
    empty = OutputDigest(total_bytes=0, sha256=nothing, truncated=False, excerpt_sha256=nothing)
    receipt = Receipt(
        iss=str(svid.spiffe_id), iat=math.ceil(time.time()), jti=exec_id, order_sha256="", state=ExecState.SUCCEEDED,
        exit_code=0, signal=0, error="", executable="/bin/true", started_ms=1, ended_ms=2, duration_us=1, chunks=0,
        stdout=empty, stderr=empty,
    )  # fmt: skip
    token = sign(svid, receipt)
    raw = json.dumps({"status": "SUCCESS", "result": {"receipt": token, "stdout": "", "stderr": ""}})
    with redis_py.Redis(**stack.redis_admin) as redis:
        publish_report(redis, "web-1", exec_id, raw)
        # The same of an execution is told once, and its worker may have sent one of its own just before.
        wait_until(
            lambda: any(event.event == "receipt_refused" for event in client.audit(exec_id=exec_id)),
            "it is on the record",
        )
        assert client.status(exec_id).state is ExecState.LOST
        # Also where it is put into the ledger.
        redis.hset(keys.execution(exec_id), "receipt", token)
        with pytest.raises(Exception, match="was revoked"):
            client.status(exec_id)
        redis.hdel(keys.execution(exec_id), "receipt")
    credentials = grpc.ssl_channel_credentials(svid.bundle.pem, svid.key_pem, svid.certificate_pem)
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    channel = grpc.secure_channel(stack.address, credentials, options)
    with channel, pytest.raises(grpc.RpcError) as caught:
        RemoteExecutionStub(channel).RenewAgent(pb.RenewAgentRequest(csr=csr_of("web-1")), timeout=PATIENCE_SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_what_a_revoked_agent_says_of_itself_is_on_the_record_once(stack: Stack, client: Client) -> None:
    client.enroll_agent("liar")
    client.revoke_agent("liar", "before it came")
    last = client.audit(limit=1)[-1].cursor
    beat = {"boot": "b", "run": "r", "version": "1", "hostname": "h", "running": 0, "slots": 1, "load": 0}
    raw = json.dumps({"type": "heartbeat", **beat, "memory_used": 0, "disk_used": 0})
    with redis_py.Redis(**stack.redis_admin) as redis:
        redis.set(keys.info("liar"), raw)
        for _ in range(50):
            redis.publish(keys.events("liar"), raw)
        wait_until(lambda: client.audit(after=last, limit=100), "it is on the record")
        with pytest.raises(AgentRevoked):
            client.execute(request("true", agent_id="liar"))
        assert not redis.hexists(keys.AGENTS, "liar")
        redis.delete(keys.info("liar"))
    assert [event.event for event in client.audit(after=last, limit=100)] == ["notice_refused", "refused"]


def test_with_several_orchestrators_one_that_is_away_keeps_no_host_from_joining_and_renewing(
    stack: Stack, client: Client, tmp_path: Path
) -> None:
    token, folder = enrolled(client, "web-8"), tmp_path / "identity"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        away = f"127.0.0.1:{probe.getsockname()[1]}"
    several = token.model_copy(update={"address": f"{away},{token.address}"})
    answer = asyncio.run(join(several, folder, tmp_path / "password"))
    first = FileSvidSource(folder).current()
    Joined(address=f"{away},{answer.address}", server_name=answer.server_name).save(folder)
    renewed = asyncio.run(renew_if_due(folder, part=1))
    assert renewed is not None
    assert renewed.certificate_pem != first.certificate_pem


def test_members_get_certificates_of_an_authority_that_replaced_the_first_without_a_restart(
    stack: Stack, client: Client, tmp_path: Path
) -> None:
    folder, settings = stack.data / "joining-ca", tmp_path / "identity"
    token = enrolled(client, "web-9")
    asyncio.run(join(token, settings, tmp_path / "password"))
    (folder / "retired.pem").write_bytes((folder / "ca.pem").read_bytes())
    root = CertificateAuthority.load(stack.data / "ca")
    second = CertificateAuthority.create(folder, TRUST_DOMAIN, name="Second", lifetime=timedelta(days=1), under=root)

    def renewed_by_the_second() -> bool:
        svid = asyncio.run(renew_if_due(settings, part=1))
        return svid is not None and second.issued(svid.chain[0])

    wait_until(renewed_by_the_second, "the second authority renews a certificate of the first")
    FileSvidSource(settings).current().verify()
    joined = try_join(enrolled(client, "web-10"))
    assert second.issued(x509.load_pem_x509_certificates(joined.certificate_chain)[0])


# --- who may not ------------------------------------------------------------------------------------------------------


def test_a_host_tells_its_secret_to_nobody_but_the_orchestrator(stack: Stack, client: Client) -> None:
    """Who answers there has to show a certificate of the root in the token, with the orchestrator's name."""
    token = enrolled(client, "careful")
    stranger = Authority().certificate.public_bytes(Encoding.DER)
    for wrong in ({"root": stranger}, {"server_name": "evil.example"}):
        with pytest.raises(grpc.RpcError) as caught:
            try_join(token.model_copy(update=wrong))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    # So it is as good as before.
    assert try_join(token).certificate_chain
    with pytest.raises(grpc.RpcError) as caught:
        try_join(token)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "wrong" not in (caught.value.details() or "")
    assert "by hand" not in (caught.value.details() or "")


def test_at_the_joining_address_there_is_nothing_but_joining(stack: Stack, client: Client) -> None:
    token = enrolled(client, "curious")
    credentials = grpc.ssl_channel_credentials(token.root_pem)
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    service = pb.DESCRIPTOR.services_by_name["RemoteExecution"]
    with grpc.secure_channel(token.address, credentials, options) as channel:
        for method in service.methods:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{service.full_name}/{method.name}")(b"", timeout=PATIENCE_SECONDS)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.RpcError) as caught:
            JoiningStub(channel).Join(pb.JoinRequest(agent_id="x", csr=b"x" * 20_000), timeout=PATIENCE_SECONDS)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with plain_channel(stack, stack.identity("user")) as channel, pytest.raises(grpc.RpcError) as caught:
        JoiningStub(channel).Join(pb.JoinRequest(), timeout=PATIENCE_SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_agent_may_call_for_its_next_certificate_and_for_nothing_else(stack: Stack) -> None:
    service = pb.DESCRIPTOR.services_by_name["RemoteExecution"]
    with plain_channel(stack, stack.identity("agent-1")) as channel:
        for method in service.methods:
            if method.name == "RenewAgent":
                continue
            name = f"/{service.full_name}/{method.name}"
            call = channel.unary_stream(name) if method.server_streaming else channel.unary_unary(name)
            with pytest.raises(grpc.RpcError) as caught:
                list(call(b"", timeout=PATIENCE_SECONDS))
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, method.name
        # It did not join, so not even that; nor may it for another.
        for agent in ("agent-1", "web-1"):
            with pytest.raises(grpc.RpcError) as caught:
                RemoteExecutionStub(channel).RenewAgent(
                    pb.RenewAgentRequest(csr=csr_of(agent)), timeout=PATIENCE_SECONDS
                )
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with plain_channel(stack, stack.identity("user")) as channel, pytest.raises(grpc.RpcError) as caught:
        RemoteExecutionStub(channel).RenewAgent(pb.RenewAgentRequest(csr=csr_of("agent-1")), timeout=PATIENCE_SECONDS)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_only_operators_enroll_and_revoke(stack: Stack, client: Client) -> None:
    with Client(stack.issue(user_id(TRUST_DOMAIN, "mallory"))) as mallory:
        with pytest.raises(PermissionDenied):
            mallory.enroll_agent("web-9")
        with pytest.raises(PermissionDenied):
            mallory.revoke_agent("agent-1", "mine")
    with pytest.raises(FailedPrecondition, match="online"):
        client.enroll_agent("agent-1")
    with pytest.raises(AgentUnknown):
        client.revoke_agent("nobody", "typo")
    asked = make_cli(stack).run("agents", "revoke", "agent-1", "--reason", "x")
    assert asked.returncode == 1
    assert b"--yes" in asked.stderr
    assert online(client, "agent-1")


def test_the_orchestrators_own_user_of_redis_makes_nobody_else(stack: Stack) -> None:
    rules = ["SETUSER", agent_user("x"), "on", ">x", "+@all", "~*"]
    commands = [["ACL", *rules], ["ACL", "DELUSER", agent_user("agent-1")], ["ACL", "SAVE"], ["ACL", "LIST"]]
    with redis_py.Redis(**stack.redis_admin) as redis:
        for user in ("orchestrator", agent_user("agent-1"), "check"):
            for command in commands:
                answer = redis.execute_command("ACL", "DRYRUN", user, *command)
                assert (answer == b"OK") == (user == "check" and command[1] == "LIST"), (user, command)
        # And who may do that, may do little else by itself.
        for command in (["GET", keys.info("agent-1")], ["HSET", keys.REVOKED, "x", "y"], ["LPUSH", "agent.x", "y"]):
            assert redis.execute_command("ACL", "DRYRUN", "enroller", *command) != b"OK"


def test_a_check_of_redis_knows_the_agents_that_joined_and_the_revoked_ones(stack: Stack, client: Client) -> None:
    def findings() -> list[tuple[str, str]]:
        folder = ("--passwords", str(stack.redis_passwords.folder))
        done = make_cli(stack).run("redis", "check", "--redis-url", stack.redis_url, *folder, "--output", "json")
        return [(item["where"], item["what"]) for item in json.loads(done.stdout)["findings"]]

    try_join(enrolled(client, "checked"))
    assert "user agent.checked" not in dict(findings())
    client.revoke_agent("checked", "stolen")
    # Somebody prints an ACL file, with users of old.
    stack.redis_passwords.make("agent.checked")
    with redis_py.Redis(**stack.redis_admin) as redis:
        redis.execute_command("ACL", "SETUSER", "agent.checked", "on", ">x", "+@all", "~*")
        told = [what for where, what in findings() if where == "user agent.checked"]
        redis.execute_command("ACL", "DELUSER", "agent.checked")
    stack.redis_passwords.path("agent.checked").unlink()
    assert "is revoked, and can still connect" in told
    assert "is revoked, and still has a password: the next ACL file would let it connect" in told


# --- renewing ---------------------------------------------------------------------------------------------------------


def restart(stack: Stack) -> None:
    """Restart the orchestrator."""
    stack.orchestrator.stop()
    stack.start_orchestrator()


def renews(stack: Stack, client: Client, host: Host, stop: Path, lifetime: int) -> bool:
    """Let a host join and renew, before and after a restart of the orchestrator and under one running command.

    Returns:
        False if the certificate ended meanwhile, which says only that the machine was slower than its lifetime.
    """
    stack.orchestrator._environment = {**stack.orchestrator._environment, "TACHIKOMA_SVID_LIFETIME": f"{lifetime}s"}
    restart(stack)
    assert host.join(client.enroll_agent("web-1").token).returncode == 0
    first = FileSvidSource(host.identity).current()
    try:
        host.start()
    except ConfigurationError:
        # The certificate had ended when the worker was as far as to look at it.
        assert first.not_after <= datetime.now(UTC), host.worker.failure()
        return False
    seen = {first.certificate_pem}

    def ended() -> bool:
        return b"svid.ended" in host.log.read_bytes()

    def renewed(times: int) -> bool:
        seen.add((host.identity / "svid.pem").read_bytes())
        return len(seen) > times or ended()

    wait_until(lambda: online(client, "web-1") or ended(), "it is online", PATIENCE_SECONDS + lifetime)
    wait = ("sh", "-c", f"until [ -e {stop} ]; do sleep 0.1; done; echo done")
    try:
        running = client.submit(request(*wait, agent_id="web-1", timeout=300))
    except AgentOffline:
        assert ended()
        return False
    wait_until(lambda: renewed(1), "it has renewed", PATIENCE_SECONDS + lifetime)
    restart(stack)
    wait_until(lambda: renewed(2), "it goes on renewing", PATIENCE_SECONDS + lifetime)
    if ended():
        return False
    stop.touch()
    *_, last = client.attach(running.id)
    assert last.result is not None
    assert last.result.state is ExecState.SUCCEEDED or ended()
    assert FileSvidSource(host.identity).current().key_pem != first.key_pem
    return not ended()


@pytest.mark.long
def test_an_agent_renews_by_itself_under_a_running_command_and_over_a_restart_of_the_orchestrator(
    tmp_path: Path, debian: Path
) -> None:
    (tmp_path / "stack").mkdir()
    with letting_join(tmp_path / "stack", debian) as stack, Client(stack.profile()) as client:
        for lifetime in LIFETIMES:
            host = Host(stack, "web-1", tmp_path / f"host-{lifetime}")
            try:
                if not renews(stack, client, host, tmp_path / f"stop-{lifetime}", lifetime):
                    client.revoke_agent("web-1", "it was too slow")
                    continue
                # A revoked agent renews no more, and its log says what to do.
                client.revoke_agent("web-1", "stolen")
                ended = "its certificate has ended"
                wait_until(lambda log=host.log: b"svid.ended" in log.read_bytes(), ended, PATIENCE_SECONDS + lifetime)
                assert b"tachikoma worker join" in host.log.read_bytes()
                host.stop()
                # Nor does it start with that.
                host.worker.start()
                wait_until(lambda part=host.worker: not part.alive, "it does not start")
                assert "tachikoma agents enroll" in host.worker.failure()
                break
            finally:
                host.stop()
        else:
            pytest.fail(f"a certificate of {LIFETIMES[-1]} s ended before the agent could renew it")
        with redis_py.Redis(**stack.redis_admin) as redis:
            redis.acl_log_reset()
