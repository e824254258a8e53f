"""The gRPC surface as any client sees it: who gets in, and what the server says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support import AGENT, Cli, plain_channel, request

from patience import PATIENCE_SECONDS
from tachikoma import Client, InvalidRequest, PermissionDenied, Profile, Unauthenticated, Unavailable
from tachikoma.client import wire
from tachikoma.client.rpc_errors import error_from_rpc
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionStub
from tachikoma.identity.authority import CertificateAuthority, new_key, private_pem
from tachikoma.identity.files import BUNDLE_FILE, write_identity
from tachikoma.identity.spiffe import SpiffeId, user_id


def _code(channel: grpc.Channel, message: pb.ExecRequest | None = None) -> grpc.StatusCode:
    """What `Execute` of `true` ends with."""
    with channel:
        try:
            message = message or wire.request_to_pb(request("true"))
            RemoteExecutionStub(channel).Execute(message, timeout=PATIENCE_SECONDS)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.fixture
def channel(stack: Stack) -> Iterator[grpc.Channel]:
    with plain_channel(stack, stack.identity("user")) as connected:
        yield connected


def test_a_plain_grpc_client_with_an_identity_gets_in(stack: Stack) -> None:
    assert _code(plain_channel(stack, stack.identity("user"))) is grpc.StatusCode.OK


def test_without_a_certificate_there_is_no_connection(stack: Stack) -> None:
    assert _code(plain_channel(stack, None)) is grpc.StatusCode.UNAVAILABLE


def test_without_tls_there_is_no_connection(stack: Stack) -> None:
    assert _code(grpc.insecure_channel(stack.address)) is grpc.StatusCode.UNAVAILABLE


def test_an_expired_certificate_does_not_connect_and_the_client_says_why(stack: Stack, tmp_path: Path) -> None:
    ca = DevelopmentCA(stack.data / "ca", TRUST_DOMAIN)
    ca.issue(
        user_id(TRUST_DOMAIN, "late"),
        tmp_path,
        not_before=datetime.now(UTC) - timedelta(hours=2),
        lifetime=timedelta(hours=1),
    )
    assert _code(plain_channel(stack, tmp_path)) is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(Unauthenticated, match=r"user/late is valid from .* not now"):
        Client(replace(stack.profile(), identity=tmp_path))
    path = tmp_path / "profile.json"
    replace(stack.profile(), identity=tmp_path).save(path)
    done = Cli(path).run("exec", AGENT, "true")
    assert done.returncode == 125
    assert re.fullmatch(
        rf"tachikoma: your identity in {tmp_path} cannot be used: the certificate of "
        r"spiffe://tachikoma.local/user/late is valid from .* to .* UTC, not now\n",
        done.stderr.decode(),
    )


def test_a_profile_without_its_certificate_is_told(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    replace(stack.profile(), identity=tmp_path / "missing").save(path)
    done = Cli(path).run("exec", AGENT, "true")
    assert done.returncode == 125
    assert f"tachikoma: cannot read the identity in {tmp_path / 'missing'}: " in done.stderr.decode()


def test_a_certificate_of_another_ca_does_not_connect(stack: Stack, tmp_path: Path) -> None:
    foreign = DevelopmentCA(tmp_path / "ca", TRUST_DOMAIN)
    foreign.issue(user_id(TRUST_DOMAIN, "root"), tmp_path / "user")
    assert _code(plain_channel(stack, tmp_path / "user")) is grpc.StatusCode.UNAVAILABLE


def test_another_trust_domain_under_our_ca_is_not_authenticated(stack: Stack, tmp_path: Path) -> None:
    authority, key = CertificateAuthority.load(stack.data / "ca"), new_key()
    foreign = SpiffeId.parse("spiffe://elsewhere.example/user/root")
    leaf = authority.sign(key.public_key(), foreign, lifetime=timedelta(hours=1))
    bundle = (stack.identity("user") / BUNDLE_FILE).read_bytes()
    write_identity(tmp_path, key_pem=private_pem(key), certificate_pem=authority.chain(leaf), bundle_pem=bundle)
    assert _code(plain_channel(stack, tmp_path)) is grpc.StatusCode.UNAUTHENTICATED


def test_an_agent_is_no_caller(stack: Stack) -> None:
    assert _code(plain_channel(stack, stack.identity(AGENT))) is grpc.StatusCode.PERMISSION_DENIED


def test_a_client_does_not_talk_to_an_impostor(stack: Stack) -> None:
    # An agent's certificate is of the right CA but carries no DNS name, so it cannot stand in for the orchestrator.
    profile = replace(stack.profile(), server_name="agent-1.tachikoma.local")
    with Client(profile) as client, pytest.raises(Unavailable, match="cannot reach the orchestrator"):
        client.agents()


def test_nobody_asks_in_the_name_of_another(stack: Stack, client: Client) -> None:
    with Client(stack.issue(user_id(TRUST_DOMAIN, "mallory"))) as mallory:
        wanted = request("true", requested_by=client.spiffe_id)
        with pytest.raises(PermissionDenied, match="comes from") as refusal:
            mallory.execute(wanted)
    assert refusal.value.metadata["rule"] == "requestedBy"
    (event,) = client.audit(exec_id=wanted.id)
    assert (event.event, event.authorized) == ("denied", False)
    assert event.requested_by == str(user_id(TRUST_DOMAIN, "mallory"))


def test_nobody_but_a_proxy_says_where_a_call_comes_from(channel: grpc.Channel, client: Client) -> None:
    wanted = request("true")
    metadata = (("x-forwarded-for", "198.51.100.9"),)
    RemoteExecutionStub(channel).Execute(wire.request_to_pb(wanted), metadata=metadata)
    assert {event.client_ip for event in client.audit(exec_id=wanted.id) if event.event == "admitted"} == {"127.0.0.1"}


def test_only_operators_read_the_audit_trail(stack: Stack) -> None:
    with (
        Client(stack.issue(user_id(TRUST_DOMAIN, "mallory"))) as mallory,
        pytest.raises(PermissionDenied, match="operators"),
    ):
        mallory.audit()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"command": []}, "command"),
        ({"command": [""]}, "the first element, the program, is empty"),
        ({"command": ["echo", "a\0b"]}, "NUL"),
        ({"command": ["x"] * 1025}, "1024"),
        ({"command": ["echo", "x" * 200_000]}, "131072"),
        ({"id": "no spaces"}, "not an id"),
        ({"id": "-x"}, "not an id"),
        ({"agent_id": "a.b"}, "not an id"),
        ({"agent_id": ""}, "not an id"),
        ({"timeout": -1}, "longer than zero"),
        ({"timeout": 0}, "longer than zero"),
        ({"timeout": 10**9}, "7 days"),
        ({"environment": {"A=B": "x"}}, "variable name"),
        ({"work_dir": "relative"}, "absolute"),
        ({"user": "0"}, "user name"),
        ({"stdin": b"x" * (4 * 1024 * 1024 + 1)}, "4194304"),
    ],
)
def test_a_malformed_request_is_an_invalid_argument_with_its_field(
    channel: grpc.Channel, change: dict[str, object], what: str
) -> None:
    values: dict[str, object] = {"agent_id": AGENT, "command": ["true"], **change}
    timeout = values.pop("timeout", 60)
    message = pb.ExecRequest(**values)  # type: ignore[arg-type]
    message.timeout.seconds = timeout  # type: ignore[assignment]
    with pytest.raises(grpc.RpcError) as failure:
        RemoteExecutionStub(channel).Execute(message)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert what in failure.value.details()
    error = error_from_rpc(failure.value.code(), "", failure.value.trailing_metadata())
    assert type(error) is InvalidRequest


def test_a_request_beyond_all_bounds_does_not_reach_the_service(channel: grpc.Channel, stack: Stack) -> None:
    message = pb.ExecRequest(agent_id=AGENT, command=["true"], stdin=bytes(80 * 1024 * 1024))
    with pytest.raises(grpc.RpcError) as failure:
        RemoteExecutionStub(channel).Execute(message)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stack.orchestrator.alive


def test_health_and_reflection_are_on(channel: grpc.Channel) -> None:
    name = "tachikoma.exec.v1.RemoteExecution"
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", name):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    (listed,) = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert name in {service.name for service in listed.list_services_response.service}


def test_pages_of_the_list_give_everything_once(client: Client) -> None:
    wanted = [request("true") for _ in range(7)]
    for item in wanted:
        client.execute(item)
    seen: list[str] = []
    token = ""
    for _ in range(1000):
        page, token = client.list_page(AGENT, include_ended=True, page_size=3, page_token=token)
        seen += [status.id for status in page]
        if not token or set(seen) >= {item.id for item in wanted}:
            break
    assert len(seen) == len(set(seen))
    assert seen[:7] == [item.id for item in reversed(wanted)]
    with pytest.raises(InvalidRequest, match="page token"):
        client.list_page(page_token="nonsense")
    with pytest.raises(InvalidRequest, match="1000"):
        client.list_page(page_size=1001)


def test_a_profile_survives_being_written_and_read(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "profile.json"
    stack.profile().save(path)
    assert Profile.load(path) == stack.profile()
