"""What arrives over a network: frames, signed messages, Celery messages, requests and page tokens."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.message import DecodeError
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey
from rounds import JSON, fuzz, mutated, mutated_json

from authority import Authority
from tachikoma.client import batch_wire, wire
from tachikoma.errors import InvalidRequest, RecordAltered, Unauthenticated
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.identity.join_token import JoinToken
from tachikoma.identity.signed_messages import (
    CancelOrder,
    LifeRecord,
    OutputDigest,
    Receipt,
    SessionAnswer,
    SessionOffer,
    SignedRequest,
    WorkOrder,
)
from tachikoma.identity.signing import Claims, InvalidSignature, sign
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId
from tachikoma.identity.svid import Svid
from tachikoma.redis import keys
from tachikoma.sessions import frames as session_frames
from tachikoma.sessions.messages import decode_entry, decode_notice
from tachikoma.sessions.sealing import Direction, EphemeralKey, Opener, Sealer
from tachikoma.streams.frames import STDOUT, Frame
from tachikoma.streams.heartbeat import Heartbeat, Started
from tachikoma.targets.expressions import read_lines, resolve
from tachikoma.vocabulary.batches import BatchRequest
from tachikoma.vocabulary.requests import ExecRequest, WindowSize
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.api.page_token import PageToken
from tachikoma_orchestrator.executions.collector import Collector, _Notice
from tachikoma_orchestrator.executions.final_state import VerifiedReceipt
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.processes import plain_messages
from tachikoma_orchestrator.processes.submission import read_request
from tachikoma_orchestrator.sessions.handshake import SessionAddress, verified_answer
from tachikoma_worker import intake
from tachikoma_worker.execution.cancel import verify_cancel
from tachikoma_worker.execution.context import Context
from tachikoma_worker.execution.lives import Lives
from tachikoma_worker.execution.order import verify_order
from tachikoma_worker.sessions.attachment import AgentParty, attach, verified_offer

DOMAIN, AGENT, EXEC = "tachikoma.local", "web-1", "job-7"
ORCHESTRATOR, THE_AGENT, ALICE = (
    f"spiffe://{DOMAIN}/{path}" for path in ("service/orchestrator", f"agent/{AGENT}", "user/alice")
)
NOW = int(time.time())
REQUEST = ExecRequest(id=EXEC, agent_id=AGENT, command=["/bin/true"], timeout="5m", request_time=NOW)
DIGEST = OutputDigest(total_bytes=0, sha256="ab" * 32, truncated=False, excerpt_sha256="ab" * 32)
CLAIMS: dict[type[Claims], Claims] = {
    WorkOrder: WorkOrder(
        iss=ORCHESTRATOR, iat=NOW, aud=THE_AGENT, sub=ALICE, exp=NOW + 10**6, jti=EXEC, policy="web@0123456789ab",
        grant={"executables": [{"path": "/bin/true"}]}, request=REQUEST,
    ),
    CancelOrder: CancelOrder(iss=ORCHESTRATOR, iat=NOW, aud=THE_AGENT, sub=ALICE, jti=EXEC),
    Receipt: Receipt(
        iss=THE_AGENT, iat=NOW, jti=EXEC, order_sha256="cd", state=ExecState.SUCCEEDED, exit_code=0, signal=0, error="",
        executable="/bin/true", started_ms=1, ended_ms=2, duration_us=1000, chunks=1, stdout=DIGEST, stderr=DIGEST,
    ),
    SignedRequest: SignedRequest(iss=ALICE, iat=NOW, aud=ORCHESTRATOR, exp=NOW + 60, jti=EXEC, request=REQUEST),
    SessionOffer: SessionOffer(
        iss=ORCHESTRATOR, iat=NOW, aud=THE_AGENT, sub=ALICE, exp=NOW + 10**6, jti=EXEC, order_sha256="ab" * 32, epoch=1,
        key=EphemeralKey().public,
    ),
    LifeRecord: LifeRecord(iss=ORCHESTRATOR, iat=NOW, number=3, valid_from=2, lost_ms=1, replid="ab" * 20),
    SessionAnswer: SessionAnswer(
        iss=THE_AGENT, iat=NOW, aud=ORCHESTRATOR, jti=EXEC, epoch=1, offer_sha256="ab" * 32, key=EphemeralKey().public,
        accepted=0,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def signers() -> dict[type[Claims], Svid]:
    """The identity that signs each kind of message."""
    authority = Authority()
    made = {name: authority.svid(name) for name in (ORCHESTRATOR, THE_AGENT, ALICE)}
    return {kind: made[claims.iss] for kind, claims in CLAIMS.items()}


def _tokens(kind: type[Claims], signer: Svid) -> st.SearchStrategy[str]:
    """Tokens of a kind that were altered on their way, and genuine signatures over other content."""
    valid = sign(signer, CLAIMS[kind])
    header = json.loads(base64.urlsafe_b64decode(valid.partition(".")[0] + "==="))

    def signed(payload: str, headers: dict[str, Any]) -> str:
        registry = jws.JWSRegistry(algorithms=["ES256"])
        registry.max_header_length = 10**6
        try:
            content = payload.encode("utf-8", "replace")
            return jws.serialize_compact(headers, content, ECKey.import_key(signer.key_pem), registry=registry)
        except Exception:
            # A header with which the library signs nothing.
            return valid

    content = json.loads(CLAIMS[kind].model_dump_json())
    payloads = st.one_of(mutated_json(content).map(json.dumps), mutated([json.dumps(content)]), JSON.map(json.dumps))
    return st.one_of(
        mutated([valid]),
        st.builds(signed, payloads, st.just(header)),
        st.builds(signed, payloads, mutated_json(header).filter(lambda value: isinstance(value, dict))),
    )


@contextmanager
def _refused(*errors: type[Exception]) -> Iterator[None]:
    """Expect one of the documented errors, with a reason, or none."""
    reason = "none"
    try:
        yield
    except errors as error:
        reason = str(error)
    assert reason


def test_the_samples_are_valid(signers: dict[type[Claims], Svid]) -> None:
    context = _agent(signers)
    assert verify_order(context, EXEC, sign(signers[WorkOrder], CLAIMS[WorkOrder])) == CLAIMS[WorkOrder]
    verify_cancel(context, EXEC, ALICE, sign(signers[CancelOrder], CLAIMS[CancelOrder]))
    read_request(sign(signers[SignedRequest], CLAIMS[SignedRequest]), signers[WorkOrder], SignedRequest)
    assert _attach(signers, sign(signers[SessionOffer], CLAIMS[SessionOffer])) == 1
    assert _answer(signers, sign(signers[SessionAnswer], CLAIMS[SessionAnswer])) == CLAIMS[SessionAnswer]


def _attach(signers: dict[type[Claims], Svid], token: str) -> int:
    """Return the epoch that an agent begins for an offer."""
    party = AgentParty(AGENT, cast(Any, SimpleNamespace(current=lambda: signers[Receipt])), "orchestrator")
    offer = verified_offer(party, token, EXEC, "ab" * 32, after_epoch=0)
    return attach(party, offer, token, session_frames.Accepted(0)).epoch


def _answer(signers: dict[type[Claims], Svid], token: str) -> SessionAnswer:
    """Return an agent's answer, as an orchestrator verifies it."""
    revocations = cast(Any, SimpleNamespace(refusal=lambda agent, begins: ""))
    address = SessionAddress(AGENT, EXEC, ALICE, "")
    return verified_answer(token, signers[WorkOrder].bundle, DOMAIN, address, revocations)


def _agent(signers: dict[type[Claims], Svid]) -> Context:
    """The parts of an agent that verify messages."""
    identity = SimpleNamespace(current=lambda: signers[Receipt])
    settings = SimpleNamespace(orchestrator="orchestrator")
    return cast(Context, SimpleNamespace(agent=AGENT, identity=identity, settings=settings))


def test_an_order_is_verified_or_refused(signers: dict[type[Claims], Svid]) -> None:
    context = _agent(signers)

    def verify(token: str) -> None:
        with _refused(InvalidSignature, InvalidIdentity):
            assert verify_order(context, EXEC, token).jti == EXEC

    fuzz(verify, _tokens(WorkOrder, signers[WorkOrder]))


def test_a_cancel_is_verified_or_refused(signers: dict[type[Claims], Svid]) -> None:
    context = _agent(signers)

    def verify(token: str) -> None:
        with _refused(InvalidSignature, InvalidIdentity):
            verify_cancel(context, EXEC, ALICE, token)

    fuzz(verify, _tokens(CancelOrder, signers[CancelOrder]))


def test_a_record_of_a_life_of_redis_is_verified_or_ignored(signers: dict[type[Claims], Svid]) -> None:
    identity = cast(Any, SimpleNamespace(current=lambda: signers[Receipt]))

    def read(token: str) -> None:
        lives = Lives(cast(Any, SimpleNamespace(life=lambda: token)), identity, "orchestrator")
        assert lives.token == (token if lives.number else "")

    assert Lives(
        cast(Any, SimpleNamespace(life=lambda: sign(signers[LifeRecord], CLAIMS[LifeRecord]))), identity, "orchestrator"
    ).number == 3  # fmt: skip
    fuzz(read, _tokens(LifeRecord, signers[LifeRecord]))


def test_a_request_of_an_application_is_verified_or_refused(signers: dict[type[Claims], Svid]) -> None:
    def read(token: str) -> None:
        with _refused(Unauthenticated):
            claims, peer = read_request(token, signers[WorkOrder], SignedRequest)
            assert claims.request.id == claims.jti
            assert peer.spiffe_id == SpiffeId.parse(ALICE)

    fuzz(read, _tokens(SignedRequest, signers[SignedRequest]))


def test_a_result_has_a_verified_receipt_or_a_reason(signers: dict[type[Claims], Svid]) -> None:
    collector = object.__new__(Collector)
    collector._identity = cast(Any, SimpleNamespace(current=lambda: signers[WorkOrder]))
    collector._registry = cast(Any, SimpleNamespace(revocations=SimpleNamespace(latest=lambda agent: None)))

    def verify(raw: bytes) -> None:
        found = collector.verify(AGENT, EXEC, raw)
        assert isinstance(found, VerifiedReceipt) or found

    def result(token: Any) -> dict[str, Any]:
        return {"status": "SUCCESS", "result": {"state": "SUCCEEDED", "receipt": token, "stdout": "", "stderr": ""}}

    valid = result(sign(signers[Receipt], CLAIMS[Receipt]))
    raws = st.one_of(
        _tokens(Receipt, signers[Receipt]).map(lambda token: json.dumps(result(token)).encode()),
        mutated_json(valid).map(lambda value: json.dumps(value).encode()),
        mutated([json.dumps(valid).encode()]),
    )
    fuzz(verify, raws)


def test_frames_are_read_or_refused() -> None:
    def read(raw: bytes) -> None:
        for decode in (Frame.decode, session_frames.decode, decode_notice, lambda raw: decode_entry({b"f": raw})):
            with _refused(ValueError):
                decode(raw)

    valid = [Frame(STDOUT, 1, 0, 10**15, b"text").encode(), session_frames.encode(session_frames.Data(0, b"text"))]
    fuzz(read, mutated(valid))


def test_an_offer_of_a_session_begins_an_epoch_or_is_refused(signers: dict[type[Claims], Svid]) -> None:
    def offer(token: str) -> None:
        with _refused(InvalidSignature, InvalidIdentity, ValueError):
            assert _attach(signers, token) > 0

    fuzz(offer, _tokens(SessionOffer, signers[SessionOffer]))


def test_an_answer_of_a_session_is_verified_or_refused(signers: dict[type[Claims], Svid]) -> None:
    def answer(token: str) -> None:
        with _refused(InvalidSignature, InvalidIdentity):
            found = _answer(signers, token)
            with _refused(ValueError):
                way = Direction.TO_AGENT
                EphemeralKey().agree(found.key, "offer", token, EXEC, found.epoch, sends=way)

    fuzz(answer, _tokens(SessionAnswer, signers[SessionAnswer]))


def test_sealed_input_of_a_session_is_opened_or_refused() -> None:
    key, way = bytes(32), Direction.TO_AGENT
    frames = [
        session_frames.Data(0, b"text"), session_frames.End(5), session_frames.Resize(WindowSize(24, 80)),
        session_frames.Signal(session_frames.SignalName.INT), session_frames.Acknowledge(2**40), session_frames.Close(),
    ]  # fmt: skip

    def opened(content: bytes, seals: bool) -> None:
        raw = Sealer(key, EXEC, 1, way).seal(content) if seals else content
        with _refused(ValueError):
            frame = session_frames.decode(Opener(key, EXEC, 1, way, complete=True).open(raw))
            assert session_frames.decode(session_frames.encode(frame)) == frame

    valid = [session_frames.encode(frame) for frame in frames]
    sealed = [Sealer(key, EXEC, 1, way).seal(raw) for raw in valid]
    fuzz(opened, mutated([*valid, *sealed]), st.booleans())


def test_heartbeats_of_agents_are_read_or_refused() -> None:
    valid = Heartbeat(
        boot="b", run="r", version="1", hostname="h", labels={"role": "web"}, running=1, slots=2, load=0.5,
        memory_used=0.5, disk_used=0.5, warnings=("w",), executions=(EXEC,), formats={"order": 1}, sent_ms=5,
    ).model_dump_json()  # fmt: skip

    def read(raw: bytes) -> None:
        with _refused(ValueError):
            found = Heartbeat.model_validate_json(raw)
            assert Heartbeat.model_validate_json(found.model_dump_json()) == found

    changed = mutated_json(json.loads(valid)).map(lambda value: json.dumps(value).encode())
    fuzz(read, st.one_of(mutated([valid.encode()]), changed))


def test_notices_of_agents_are_read_or_refused() -> None:
    def read(raw: bytes) -> None:
        with _refused(ValueError):
            notice = _Notice.validate_json(raw)
            assert notice is not None

    valid = [Started(id=EXEC, started_ms=1).model_dump_json().encode(), b'{"id": "job-7"}']
    fuzz(
        read,
        st.one_of(mutated(valid), mutated_json(json.loads(valid[0])).map(lambda value: json.dumps(value).encode())),
    )


def test_celery_messages_are_reduced_or_refused() -> None:
    headers = {"id": keys.task_id(AGENT, EXEC), "task": keys.EXECUTE_TASK, "lang": "py", "root_id": "x"}
    message = {
        "body": json.dumps([["token"], {}, {}]), "content-encoding": "utf-8", "content-type": "application/json",
        "headers": headers, "properties": {"delivery_tag": "x", "delivery_info": {"exchange": "", "routing_key": "x"}},
    }  # fmt: skip
    refusals = (ValueError, TypeError, KeyError, IndexError, RecursionError, AttributeError)

    def read(value: Any) -> None:
        # The refusals that the worker's transport handles.
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            intake.read_order(value)
        # Which of these the caller handles is the contract of each; all of them mean that the message is dropped.
        for queue in (keys.SUBMIT, keys.BATCH):
            with suppress(*refusals):
                plain_messages.plain(value, queue)

    assert intake.read_order(message) == (EXEC, "token")
    fuzz(read, mutated_json(message))


def test_a_request_on_the_wire_is_read_or_refused() -> None:
    valid = wire.request_to_pb(REQUEST).SerializeToString()

    def read(raw: bytes) -> None:
        message = pb.ExecRequest()
        try:
            message.ParseFromString(raw)
        except DecodeError:
            return
        with _refused(InvalidRequest):
            request = wire.request_from_pb(message)
            wire.request_to_pb(request)

    fuzz(read, mutated([valid]))


def test_a_batch_on_the_wire_is_read_or_refused() -> None:
    valid = batch_wire.request_to_pb(
        BatchRequest(targets=("web[1-3]",), command=("/bin/true",), timeout="5m", canary=1, wave="10%", pause="1s")
    ).SerializeToString()

    def read(raw: bytes) -> None:
        message = pb.BatchRequest()
        try:
            message.ParseFromString(raw)
        except DecodeError:
            return
        with _refused(InvalidRequest):
            batch_wire.request_to_pb(batch_wire.request_from_pb(message))

    fuzz(read, mutated([valid]))


def test_targets_are_found_or_refused() -> None:
    known = {f"web{number}": {"role": "web"} for number in range(50)} | {"db-1": {"role": "db", "site": "berlin"}}

    def find(text: str) -> None:
        with _refused(InvalidRequest):
            found = resolve(read_lines(text), known)
            assert len(set(found)) == len(found)

    valid = ["web[1-9]!web7", "web*,db-?", "role=web,site=b*", "!web1", "&web[01-40]", "rack[1-3]-node[1-8]"]
    fuzz(find, mutated(valid, ["[0-9999999999]", "[1-19999]" * 2, "*" * 60, "web[1-3/0]", "@all", "%", "^"]))


def test_page_tokens_and_join_tokens_are_read_or_refused() -> None:
    def read(text: str) -> None:
        with _refused(InvalidRequest):
            PageToken.parse(text)
        with _refused(InvalidRequest):
            JoinToken.parse(text)

    fuzz(read, mutated(["1790000000000:3", "tkj1.web-1.x", "1:1"]))


def test_a_record_of_the_ledger_is_read_or_named_as_altered() -> None:
    fields = {
        b"state": b"SUCCEEDED", b"history": b"QUEUED 1;STARTED 2;SUCCEEDED 3", b"agent": AGENT.encode(),
        b"requested_by": ALICE.encode(), b"admitted_ms": b"1790000000000", b"deadline_ms": b"1790000000000",
        b"request": REQUEST.model_dump_json().encode(), b"order_sha256": b"cd", b"exit_code": b"0",
    }  # fmt: skip
    values = st.dictionaries(st.sampled_from(sorted(fields)), mutated(sorted(fields.values())), max_size=4)

    def read(changed: dict[bytes, bytes], removed: set[bytes]) -> None:
        with _refused(RecordAltered):
            record = Record.parse(EXEC, {key: value for key, value in (fields | changed).items() if key not in removed})
            status = record.status()
            assert isinstance(status.request_time, datetime)

    fuzz(read, values, st.sets(st.sampled_from(sorted(fields)), max_size=2))
