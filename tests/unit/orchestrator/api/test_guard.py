"""The guard: who may call what, and what callers see of errors. With a real gRPC server and real certificates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from authority import Authority
from patience import PATIENCE_SECONDS
from tachikoma.errors import InvalidRequest, NotFound, ServerError, Unavailable
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import (
    RemoteExecutionServicer,
    RemoteExecutionStub,
    add_RemoteExecutionServicer_to_server,
)
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.addresses import HostPort
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.admission.call_quotas import CallQuotas
from tachikoma_orchestrator.api.guard import Guard, current_peer, translate
from tachikoma_orchestrator.processes.listening import listen, server_credentials

DOMAIN = "spiffe://tachikoma.local"
ALICE, AGENT = f"{DOMAIN}/user/alice", f"{DOMAIN}/agent/web-1"
NAME = "orchestrator.test"


class Source:
    """The orchestrator's identity, which a test replaces."""

    def __init__(self, svid: Svid) -> None:
        self.svid = svid

    def current(self) -> Svid:
        return self.svid

    def close(self) -> None:
        pass


class Trail:
    """Keeps what is recorded."""

    def __init__(self) -> None:
        self.events: list[tuple[AuditCode, dict[str, str]]] = []

    def check(self) -> None:
        pass

    async def append_refusal(self, code: AuditCode, *, subject: str, **fields: str) -> None:
        self.events.append((code, {"subject": subject, **fields}))


class NoRevocations:
    """The reason for which an agent is refused; empty for none."""

    reason = ""

    async def refresh(self) -> None:
        pass

    def refusal(self, agent: str, begins: datetime) -> str:
        return self.reason


class Echo(RemoteExecutionServicer):
    """Answers with the caller, fails as it is asked to, or waits."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:  # noqa: N802
        if request.id == "bug":
            raise ZeroDivisionError("secret")
        if request.id == "none":
            raise NotFound("there is none")
        return pb.StatusResponse(status=pb.ExecStatus(requested_by=str(current_peer())))

    async def RenewAgent(self, request: pb.RenewAgentRequest, context: Any) -> pb.RenewAgentResponse:  # noqa: N802
        return pb.RenewAgentResponse(renew_address=str(current_peer()))

    async def Attach(self, request: pb.AttachRequest, context: Any) -> AsyncIterator[pb.ExecOutput]:  # noqa: N802
        yield pb.ExecOutput(id=str(current_peer()))
        self.waiting.set()
        await asyncio.Event().wait()

    async def ExecuteInteractive(  # noqa: N802
        self, requests: AsyncIterator[pb.ExecInput], context: Any
    ) -> AsyncIterator[pb.ExecOutput]:
        async for message in requests:
            yield pb.ExecOutput(id=str(current_peer()), stdout=message.data.data)


class Stand:
    """A guarded server."""

    def __init__(self, authority: Authority, address: HostPort, guard: Guard, source: Source, trail: Trail) -> None:
        self.authority, self.address, self.guard, self.source, self.trail = authority, address, guard, source, trail

    @asynccontextmanager
    async def stub(self, spiffe_id: str, signer: Authority | None = None) -> AsyncIterator[Any]:
        """A client with a certificate of its own."""
        svid = (signer or self.authority).svid(spiffe_id)
        credentials = grpc.ssl_channel_credentials(self.authority.pem, svid.key_pem, svid.certificate_pem)
        options = [("grpc.ssl_target_name_override", NAME)]
        async with grpc.aio.secure_channel(str(self.address), credentials, options) as channel:
            yield RemoteExecutionStub(channel)


@pytest.fixture
async def stand(authority: Authority) -> AsyncIterator[Stand]:
    source, trail = Source(authority.svid(f"{DOMAIN}/service/orchestrator", dns=(NAME,))), Trail()
    guard = Guard(source, trail, NoRevocations())  # type: ignore[arg-type]
    server = grpc.aio.server(interceptors=(guard,))
    add_RemoteExecutionServicer_to_server(Echo(), server)
    address = listen(server, HostPort("127.0.0.1", 0), server_credentials(source))
    await server.start()
    yield Stand(authority, address, guard, source, trail)
    await server.stop(None)


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), str(caught.value.details())


async def test_the_caller_is_the_identity_in_the_certificate(stand: Stand) -> None:
    async with stand.stub(ALICE) as stub:
        answer = await stub.Status(pb.StatusRequest(id="x"), timeout=PATIENCE_SECONDS)
        assert answer.status.requested_by == ALICE
    assert stand.trail.events == []


async def test_an_agent_may_only_renew_its_certificate(stand: Stand) -> None:
    async with stand.stub(AGENT) as stub:
        assert (await stub.RenewAgent(pb.RenewAgentRequest(), timeout=PATIENCE_SECONDS)).renew_address == AGENT
        code, reason = await code_of(stub.Status(pb.StatusRequest(id="x"), timeout=PATIENCE_SECONDS))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "agents do not call this service" in reason
    ((event, fields),) = stand.trail.events
    assert event is AuditCode.IDENTITY_REJECTED
    assert (fields["client_ip"], fields["authorized"]) == ("127.0.0.1", "0")


async def test_a_revoked_agent_may_not_even_renew(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoRevocations, "reason", "agent web-1 is revoked")
    async with stand.stub(AGENT) as stub:
        code, reason = await code_of(stub.RenewAgent(pb.RenewAgentRequest(), timeout=PATIENCE_SECONDS))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert reason == "your certificate is not accepted: agent web-1 is revoked"
    assert len(stand.trail.events) == 1


async def test_an_error_without_a_class_of_ours_is_internal_and_keeps_its_text_secret(stand: Stand) -> None:
    async with stand.stub(ALICE) as stub:
        code, reason = await code_of(stub.Status(pb.StatusRequest(id="bug"), timeout=PATIENCE_SECONDS))
        assert code is grpc.StatusCode.INTERNAL
        assert "secret" not in reason
        code, reason = await code_of(stub.Status(pb.StatusRequest(id="none"), timeout=PATIENCE_SECONDS))
        assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "there is none")


async def test_a_call_in_progress_ends_when_its_issuer_is_not_trusted_any_more(
    stand: Stand, new_authority: type[Authority]
) -> None:
    async with stand.stub(ALICE) as stub:
        call = stub.Attach(pb.AttachRequest(id="x"), timeout=PATIENCE_SECONDS)
        assert (await call.read()).id == ALICE
        # Nothing has changed.
        stand.guard.check_calls()
        stand.source.svid = new_authority().svid(f"{DOMAIN}/service/orchestrator", dns=(NAME,))
        stand.guard.check_calls()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    # As after a broken connection, so that clients resume with the identity they have by then.
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "your certificate is not accepted any more" in str(caught.value.details())


async def test_a_call_in_progress_goes_on_with_new_bundles_that_still_trust_it(stand: Stand) -> None:
    async with stand.stub(ALICE) as stub:
        call = stub.Attach(pb.AttachRequest(id="x"), timeout=PATIENCE_SECONDS)
        assert (await call.read()).id == ALICE
        stand.source.svid = stand.authority.svid(f"{DOMAIN}/service/orchestrator", dns=(NAME,))
        stand.guard.check_calls()
        assert not call.done()
        call.cancel()


async def test_a_call_in_progress_ends_with_its_certificate(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stand.stub(ALICE) as stub:
        call = stub.Attach(pb.AttachRequest(id="x"), timeout=PATIENCE_SECONDS)
        await call.read()
        (entry,) = stand.guard._calls.values()
        entry.until = datetime.now(UTC) - timedelta(seconds=1)
        # The certificate itself is valid still, so the call goes on, with a new time.
        stand.guard.check_calls()
        assert entry.until > datetime.now(UTC)
        assert not entry.ended
        call.cancel()


# --- requests that are too many, too large, or none ------------------------------------------------------------------


async def test_a_dialogue_goes_both_ways_while_it_lasts(stand: Stand) -> None:
    async with stand.stub(ALICE) as stub:
        call = stub.ExecuteInteractive(timeout=PATIENCE_SECONDS)
        for data in (b"one", b"two"):
            await call.write(pb.ExecInput(data=pb.InputData(data=data)))
            answer = await call.read()
            assert (answer.id, answer.stdout) == (ALICE, data)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_later_message_of_a_dialogue_that_is_none_of_this_api_is_invalid(stand: Stand) -> None:
    good = pb.ExecInput(data=pb.InputData(data=b"x")).SerializeToString()
    code, reason = await raw_call(stand, "ExecuteInteractive", [good, b"\xff\xff\xff"])
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "no message of this API" in reason


async def raw_call(stand: Stand, method: str, data: list[bytes], by: str = ALICE) -> tuple[grpc.StatusCode, str]:
    """Call a method with messages of any form; return status and details."""
    svid = stand.authority.svid(by)
    credentials = grpc.ssl_channel_credentials(stand.authority.pem, svid.key_pem, svid.certificate_pem)
    options = [("grpc.ssl_target_name_override", NAME), ("grpc.max_send_message_length", -1)]
    # Not by grpc.aio, whose call is INTERNAL if the answer comes while its request is still being sent.
    with grpc.secure_channel(str(stand.address), credentials, options) as channel:
        call = channel.stream_unary(f"/tachikoma.exec.v1.RemoteExecution/{method}").future(
            iter(data), timeout=PATIENCE_SECONDS
        )
        return await asyncio.to_thread(call.code), str(await asyncio.to_thread(call.details))


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x01\xff"])
async def test_a_message_that_is_no_request_is_invalid(stand: Stand, data: bytes) -> None:
    code, reason = await raw_call(stand, "Status", [data])
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of this API")


async def test_a_call_without_a_request_is_invalid(stand: Stand) -> None:
    assert await raw_call(stand, "Status", []) == (grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")


async def test_a_request_that_does_not_come_is_invalid(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tachikoma_orchestrator.api.incoming.RECEIVE_SECONDS", 0.05)
    svid = stand.authority.svid(ALICE)
    credentials = grpc.ssl_channel_credentials(stand.authority.pem, svid.key_pem, svid.certificate_pem)
    async with grpc.aio.secure_channel(
        str(stand.address), credentials, [("grpc.ssl_target_name_override", NAME)]
    ) as channel:
        call = channel.stream_unary("/tachikoma.exec.v1.RemoteExecution/Status")(timeout=PATIENCE_SECONDS)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "did not arrive" in str(await call.details())


async def test_a_request_beyond_the_limit_is_refused_and_the_server_serves_on(stand: Stand) -> None:
    code, _ = await raw_call(stand, "Status", [b"\x0a\x80\x80\x80\x04" + b"x" * (8 * 1024 * 1024)])
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    async with stand.stub(ALICE) as stub:
        assert (await stub.Status(pb.StatusRequest(id="x"), timeout=PATIENCE_SECONDS)).status.requested_by == ALICE


async def test_a_caller_without_a_right_is_refused_before_its_request_is_received(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def received(_: Any) -> bytes:
        raise AssertionError("it was received")

    monkeypatch.setattr("tachikoma_orchestrator.api.guard.first_message", received)
    for data in ([b"\xff"], [b"x" * 1_000_000], []):
        code, reason = await raw_call(stand, "Status", data, by=AGENT)
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "agents do not call this service" in reason


async def test_an_identity_beyond_its_quota_waits_for_its_own_calls_only(stand: Stand) -> None:
    stand.guard._quotas = CallQuotas(calls=2, streams=1)
    async with stand.stub(ALICE) as stub, stand.stub(f"{DOMAIN}/user/bob") as other:
        first = stub.Attach(pb.AttachRequest(id="x"), timeout=PATIENCE_SECONDS)
        await first.read()
        second = stub.Attach(pb.AttachRequest(id="x"), timeout=PATIENCE_SECONDS)
        with pytest.raises(grpc.aio.AioRpcError, match="1 streams in progress") as caught:
            await second.read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.Status(pb.StatusRequest(id="x"), timeout=PATIENCE_SECONDS)).status.requested_by == ALICE
        third = other.Attach(pb.AttachRequest(id="x"), timeout=PATIENCE_SECONDS)
        await third.read()
        first.cancel()
        third.cancel()


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (InvalidRequest("no"), InvalidRequest, "no"),
        (RedisConnectionError("refused"), Unavailable, "nothing was lost, try again"),
        (OSError("broken pipe"), Unavailable, "nothing was lost, try again"),
        (ResponseError("MISCONF the disk is full"), Unavailable, "refuses: MISCONF the disk is full"),
        (ValueError("secret"), ServerError, "the reason is in its log"),
    ],
)
def test_errors_are_translated(error: Exception, kind: type[Exception], text: str) -> None:
    translated = translate(error)
    assert type(translated) is kind
    assert text in str(translated)
    if kind is Unavailable:
        assert translated.retry_after_seconds
        assert translated.metadata == {"dependency": "redis"}
