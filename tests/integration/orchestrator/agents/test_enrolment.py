"""Tokens, certificates and revocations on a real Redis, as somebody sees them who should get none."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from redis.exceptions import NoPermissionError

from tachikoma.dev.ca import DevelopmentCA
from tachikoma.errors import (
    AgentUnknown,
    ConfigurationError,
    FailedPrecondition,
    InvalidRequest,
    PermissionDenied,
)
from tachikoma.identity.authority import CertificateAuthority, make_request, new_key, private_pem
from tachikoma.identity.join_token import JoinToken, agent_of
from tachikoma.identity.signed_messages import Enrolment, sign
from tachikoma.identity.spiffe import SpiffeId, agent_id, service_id, user_id
from tachikoma.identity.svid import FileSvidSource, Svid
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.enrolment import Authority, Certificate, Membership, TokenRefused
from tachikoma_orchestrator.agents.redis_accounts import Accounts
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.agents.revocations import LOOK_SECONDS, Revocations
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.collector import Collector
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.ledger import FENCE, Admission, Dispatch, Ledger, Outcome
from tachikoma_orchestrator.executions.reaper import Reaper
from tachikoma_orchestrator.executions.waiters import Endings

DOMAIN, AGENT = "tachikoma.local", "web-1"
OPERATOR = Peer(user_id(DOMAIN, "root"), "192.0.2.7")
WEB = agent_id(DOMAIN, AGENT)


class Stand:
    """An orchestrator's membership, under the authority of a root."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.redis, self.folder = redis, folder
        self.root = DevelopmentCA(folder / "root", DOMAIN)
        self.root.issue(service_id(DOMAIN, "orchestrator"), folder / "orchestrator", dns_names=("orch.example",))
        self.identity = FileSvidSource(folder / "orchestrator")
        above = CertificateAuthority.load(folder / "root")
        self.ca = CertificateAuthority.create(
            folder / "ca", DOMAIN, name="Agents", lifetime=timedelta(days=1), under=above
        )
        self.trail = AuditTrail(redis)
        self.ledger = Ledger(
            redis, self.trail, queue_size=10, approvals_size=10, retention=timedelta(hours=1), durable=False
        )
        self.authority = Authority(self.ca, timedelta(hours=1), "192.0.2.1:8535", "192.0.2.1:8534", "orch.example")
        self.authority.check(self.identity.current())
        self.revocations = Revocations(redis)
        self.members = self.another(self.revocations)

    def another(self, revocations: Revocations) -> Membership:
        return Membership(self.redis, self.ledger, self.identity, revocations, self.authority, Accounts(self.redis))

    async def token(self, agent: str = AGENT, ttl: timedelta = timedelta(minutes=5)) -> JoinToken:
        return JoinToken.parse((await self.members.enroll(agent, ttl, OPERATOR)).token)

    async def join(self, token: JoinToken, **changes: Any) -> Certificate:
        agent = agent_of(token.spiffe_id)
        right = {"agent": agent, "secret": token.secret, "csr": request_of(token.spiffe_id), "address": "192.0.2.9"}
        return (await self.members.join(**{**right, **changes}))[0]

    async def joined(self, agent: str = AGENT) -> Svid:
        """The identity of an agent that joined."""
        key = new_key()
        token = await self.token(agent)
        made, begins = await self.members.join(agent, token.secret, make_request(key, token.spiffe_id), "192.0.2.9")
        await asyncio.sleep(max(0.0, (begins - dt.datetime.now(dt.UTC)).total_seconds()))
        svid = Svid.load(made.chain_pem, private_pem(key), made.bundle_pem)
        svid.verify()
        return svid

    async def events(self) -> list[ExecAuditLog]:
        return await self.trail.read(after="0", limit=100)

    async def codes(self) -> list[str]:
        return [event.event for event in await self.events()]


def request_of(spiffe_id: SpiffeId = WEB) -> bytes:
    return make_request(new_key(), spiffe_id)


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return Stand(redis, tmp_path)


def refused() -> Any:
    return pytest.raises(TokenRefused)


# --- the way it is meant ----------------------------------------------------------------------------------------------


async def test_the_holder_of_a_token_becomes_the_agent_and_nobody_else(stand: Stand) -> None:
    token = await stand.token()
    assert (token.spiffe_id, token.address, token.server_name) == (WEB, "192.0.2.1:8535", "orch.example")
    assert token.root_pem == stand.root.bundle_pem
    key = new_key()
    made = await stand.join(token, csr=make_request(key, WEB))
    svid = Svid.load(made.chain_pem, private_pem(key), made.bundle_pem)
    svid.verify()
    assert svid.spiffe_id == WEB
    assert len(svid.chain) == 2
    left = svid.not_after - dt.datetime.now(dt.UTC)
    assert timedelta(minutes=59) < left <= timedelta(hours=1)
    users = await stand.redis.acl_list()
    rules = next(line for line in users if line.startswith(f"user agent.{AGENT} "))
    assert f"#{hashlib.sha256(made.redis_password.encode()).hexdigest()}" in rules
    enrolled, joined = await stand.events()
    assert (enrolled.event, enrolled.agent_id, enrolled.actor) == ("agent_enrolled", AGENT, str(OPERATOR))
    assert (joined.event, joined.agent_id, joined.actor) == ("join_accepted", AGENT, str(OPERATOR))
    assert joined.client_ip == "192.0.2.9"
    assert joined.evidence_sha256 == svid.chain[0].fingerprint(hashes.SHA256()).hex()


async def test_the_secret_is_nowhere_but_in_the_token(stand: Stand) -> None:
    token = await stand.token()
    assert token.secret.hex() not in repr(token)
    assert str(token) not in repr(await stand.members.enroll("web-2", timedelta(minutes=1), OPERATOR))
    everything = [await stand.redis.get(keys.enrolment(AGENT))]
    everything += [value for _, event in await stand.redis.xrange(keys.AUDIT) for value in event.values()]
    for value in everything:
        assert token.secret not in value
        assert token.secret.hex().encode() not in value


# --- the way it is not ------------------------------------------------------------------------------------------------


async def test_a_token_is_good_once(stand: Stand) -> None:
    token = await stand.token()
    await stand.join(token)
    with refused():
        await stand.join(token)
    assert (await stand.codes()).count("join_accepted") == 1


async def test_of_many_who_come_with_one_token_at_once_one_joins(stand: Stand) -> None:
    token = await stand.token()
    answers = await asyncio.gather(*(stand.join(token) for _ in range(20)), return_exceptions=True)
    made = [answer for answer in answers if isinstance(answer, Certificate)]
    assert len(made) == 1
    assert all(isinstance(answer, TokenRefused) for answer in answers if answer is not made[0])
    # And its password is the one that holds.
    [line] = [line for line in await stand.redis.acl_list() if line.startswith(f"user agent.{AGENT} ")]
    assert hashlib.sha256(made[0].redis_password.encode()).hexdigest() in line
    assert (await stand.codes()).count("join_accepted") == 1


async def test_a_join_whose_answer_was_lost_is_not_somebody_elses(stand: Stand) -> None:
    """redis-py repeats a script when the connection breaks under it."""
    token = await stand.token()
    run = stand.members._runner.run

    async def twice(call: Any) -> Any:
        await run(call)
        return await run(call)

    stand.members._runner.run = twice  # type: ignore[method-assign]
    await stand.join(token)
    assert (await stand.codes()).count("join_accepted") == 1


async def test_a_token_ends(stand: Stand) -> None:
    token = await stand.token(ttl=timedelta(milliseconds=1))
    await asyncio.sleep(0.01)
    with refused():
        await stand.join(token)


async def test_a_token_ends_also_where_redis_keeps_its_enrolment(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    token = await stand.token(ttl=timedelta(minutes=1))
    await stand.redis.persist(keys.enrolment(AGENT))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    with pytest.raises(TokenRefused, match="has expired"):
        await stand.join(token)


async def test_a_new_token_takes_the_place_of_the_one_before(stand: Stand) -> None:
    old, new = await stand.token(), await stand.token()
    with refused():
        await stand.join(old)
    await stand.join(new)


@pytest.mark.parametrize(
    "changes",
    [
        {"agent": "web-2"},
        {"agent": "nobody"},
        {"agent": ""},
        {"agent": f"{AGENT}\n"},
        {"agent": "*"},
        {"agent": "x" * 10_000},
        {"secret": b""},
        {"secret": b"\0" * 32},
        {"secret": b"x" * 10_000},
    ],
    ids=lambda changes: "-".join(f"{name}-{str(value)[:12]}" for name, value in changes.items()),
)
async def test_what_is_no_token_of_that_agent_is_refused_and_spends_nothing(
    stand: Stand, changes: dict[str, Any]
) -> None:
    await stand.token("web-2")
    token = await stand.token()
    with refused():
        await stand.join(token, **changes)
    await stand.join(token)


def hostile_requests() -> dict[str, bytes]:
    """Requests for certificates that no agent of ours makes."""
    key = new_key()

    def request(*extensions: x509.ExtensionType, by: Any = key) -> x509.CertificateSigningRequest:
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(by, hashes.SHA256())

    def names(*uris: str, dns: str = "") -> x509.SubjectAlternativeName:
        others = [x509.DNSName(dns)] if dns else []
        return x509.SubjectAlternativeName([*map(x509.UniformResourceIdentifier, uris), *others])

    def der(made: x509.CertificateSigningRequest) -> bytes:
        return made.public_bytes(Encoding.DER)

    web = str(WEB)
    right = der(request(names(web)))
    made = {
        "nothing": b"",
        "garbage": b"\x30\x82" + b"x" * 300,
        "a text": b"-----BEGIN CERTIFICATE REQUEST-----",
        "cut off": right[:-20],
        "much": right + b"\0" * 20_000,
        "no name": der(request()),
        "another agent": der(request(names(str(agent_id(DOMAIN, "web-2"))))),
        "the orchestrator": der(request(names(str(service_id(DOMAIN, "orchestrator"))))),
        "an operator": der(request(names(str(user_id(DOMAIN, "root"))))),
        "another trust domain": der(request(names(str(agent_id("evil.example", AGENT))))),
        "two names": der(request(names(web, str(user_id(DOMAIN, "root"))))),
        "the orchestrator's DNS name": der(request(names(web, dns="orch.example"))),
        "a CA": der(request(names(web), x509.BasicConstraints(ca=True, path_length=None))),
        "RSA": der(request(names(web), by=rsa.generate_private_key(65537, 2048))),
        "P-384": der(request(names(web), by=ec.generate_private_key(ec.SECP384R1()))),
        "secp256k1": der(request(names(web), by=ec.generate_private_key(ec.SECP256K1()))),
    }
    # Somebody else's public key in a request that one signs oneself; and a signature that was touched.
    other = der(request(names(web), by=new_key()))
    points = [_point(item) for item in (right, other)]
    made["another's key"] = right.replace(points[0], points[1])
    made["a wrong signature"] = right[:-1] + bytes([right[-1] ^ 1])
    assert made["another's key"] != right
    return made


def _point(der: bytes) -> bytes:
    key = x509.load_der_x509_csr(der).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


HOSTILE = hostile_requests()


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_request_for_anything_else_is_refused_and_spends_no_token(stand: Stand, name: str) -> None:
    token = await stand.token()
    with pytest.raises(InvalidRequest):
        await stand.join(token, csr=HOSTILE[name])
    await stand.join(token)
    # A renewal is no other way to it.
    peer = Peer(WEB, "", (await stand.joined()).chain[0])
    with pytest.raises(InvalidRequest):
        await stand.members.renew(peer, HOSTILE[name])


async def test_who_owns_redis_makes_no_enrolment(stand: Stand) -> None:
    """Only what an orchestrator signed counts, for the agent and the time that it signed."""
    token = await stand.token()
    stored: bytes = await stand.redis.get(keys.enrolment(AGENT))
    secret = b"m" * 32
    svid = await stand.joined("web-2")
    claims = Enrolment(
        iss=str(service_id(DOMAIN, "orchestrator")), iat=int(time.time()), agent=AGENT,
        secret_sha256=hashlib.sha256(secret).hexdigest(), made_ms=0, exp=int(time.time()) + 600, by="me",
    )  # fmt: skip
    for forged in (
        sign(svid, claims),
        sign(svid, claims.model_copy(update={"iss": str(svid.spiffe_id)})),
        stored.decode().rsplit(".", 1)[0] + ".AAAA",
        "{}",
        "",
        b"\xff\xfe",
    ):
        await stand.redis.set(keys.enrolment(AGENT), forged)
        with refused():
            await stand.join(token, secret=secret)
    # Another agent's enrolment under its name.
    other = await stand.token("web-3")
    await stand.redis.copy(keys.enrolment("web-3"), keys.enrolment(AGENT), replace=True)
    with refused():
        await stand.join(token, secret=other.secret)


async def test_a_revoked_agent_is_not_let_in_by_an_enrolment_that_redis_kept(stand: Stand) -> None:
    token = await stand.token()
    stored = await stand.redis.get(keys.enrolment(AGENT))
    await stand.members.revoke(AGENT, "stolen", OPERATOR)
    with refused():
        await stand.join(token)
    await stand.redis.set(keys.enrolment(AGENT), stored)
    with pytest.raises(TokenRefused, match="before the agent was cut off"):
        await stand.join(token)
    # Nor where Redis takes back that it was cut off.
    await stand.redis.delete(keys.REVOKED)
    with pytest.raises(TokenRefused, match="before the agent was cut off"):
        await stand.join(token)


# --- who asks for a token ---------------------------------------------------------------------------------------------


async def test_an_agent_that_is_online_is_not_replaced_unasked(stand: Stand) -> None:
    await stand.redis.set(keys.info(AGENT), "{}")
    with pytest.raises(FailedPrecondition, match="online"):
        await stand.token()
    assert await stand.events() == []


@pytest.mark.parametrize("ttl", [timedelta(days=2), timedelta(seconds=-1)])
async def test_a_token_lasts_a_day_at_the_most(stand: Stand, ttl: timedelta) -> None:
    with pytest.raises(InvalidRequest):
        await stand.token(ttl=ttl)


@pytest.mark.parametrize("agent", ["", "a.b", "a:b", "*", "../x", "x" * 64, "web-1\n"])
async def test_what_is_no_id_is_neither_enrolled_nor_revoked(stand: Stand, agent: str) -> None:
    with pytest.raises(InvalidRequest):
        await stand.token(agent)
    with pytest.raises(AgentUnknown):
        await stand.members.revoke(agent, "why", OPERATOR)
    assert await stand.redis.keys("orch:*") == []


async def test_an_orchestrator_whose_bundle_would_not_trust_its_authority_says_so(stand: Stand, tmp_path: Path) -> None:
    for domain in (DOMAIN, "evil.example"):
        strange = CertificateAuthority.create(tmp_path / domain, domain, name="x", lifetime=timedelta(days=1))
        authority = Authority(strange, timedelta(hours=1), "", "", "")
        with pytest.raises(ConfigurationError, match="would not trust"):
            authority.check(stand.identity.current())


# --- renewing ---------------------------------------------------------------------------------------------------------


async def test_an_agent_renews_itself_and_nobody_else(stand: Stand) -> None:
    svid = await stand.joined()
    peer = Peer(WEB, "192.0.2.9", svid.chain[0])
    key = new_key()
    made = await stand.members.renew(peer, make_request(key, WEB))
    next_one = Svid.load(made.chain_pem, private_pem(key), made.bundle_pem)
    next_one.verify()
    assert next_one.spiffe_id == WEB
    assert made.redis_password == ""
    with pytest.raises(InvalidRequest):
        await stand.members.renew(peer, request_of(agent_id(DOMAIN, "web-2")))


async def test_who_did_not_join_is_renewed_by_somebody_else(stand: Stand, tmp_path: Path) -> None:
    stand.root.issue(WEB, tmp_path / "web")
    with pytest.raises(PermissionDenied, match="did not join here"):
        await stand.members.renew(Peer(WEB, "", FileSvidSource(tmp_path / "web").current().chain[0]), request_of())
    for other in (user_id(DOMAIN, "root"), agent_id("partner.example", AGENT)):
        with pytest.raises(PermissionDenied, match="only agents renew"):
            await stand.members.renew(Peer(other, ""), request_of())


async def test_an_agent_of_an_authority_that_was_replaced_renews_at_the_new_one(stand: Stand, tmp_path: Path) -> None:
    svid = await stand.joined()
    above = CertificateAuthority.load(stand.folder / "root")
    CertificateAuthority.create(tmp_path / "new", DOMAIN, name="New", lifetime=timedelta(days=1), under=above)
    peer = Peer(WEB, "", svid.chain[0])

    def members() -> Membership:
        authority = Authority(CertificateAuthority.load(tmp_path / "new"), timedelta(hours=1), "a:1", "a:2", "x")
        return Membership(stand.redis, stand.ledger, stand.identity, stand.revocations, authority, None)

    with pytest.raises(PermissionDenied):
        await members().renew(peer, request_of())
    (tmp_path / "new" / "retired.pem").write_bytes((stand.folder / "ca" / "ca.pem").read_bytes())
    assert (await members().renew(peer, request_of())).chain_pem


# --- cutting off ------------------------------------------------------------------------------------------------------


async def test_every_orchestrator_knows_within_a_second(stand: Stand) -> None:
    await stand.joined()
    others = [Revocations(stand.redis) for _ in range(3)]
    assert LOOK_SECONDS < 1
    tasks = [asyncio.create_task(other.run()) for other in others]
    try:
        await asyncio.sleep(0)
        await stand.members.revoke(AGENT, "stolen", OPERATOR)
        began = time.monotonic()
        while not all(other.in_force(AGENT) for other in others):
            await asyncio.sleep(0.01)
            assert time.monotonic() - began < 30
        assert all(other.in_force(AGENT).by == str(OPERATOR) for other in others)  # type: ignore[union-attr]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_was_issued_before_stays_refused_when_the_agent_joins_again(stand: Stand) -> None:
    old = await stand.joined()
    assert stand.revocations.refusal(AGENT, old.chain[0].not_valid_before_utc) == ""
    await stand.members.revoke(AGENT, "stolen", OPERATOR)
    assert "cut off" in stand.revocations.refusal(AGENT, dt.datetime.now(dt.UTC) + timedelta(days=1))
    assert not [line for line in await stand.redis.acl_list() if line.startswith(f"user agent.{AGENT} ")]
    new = await stand.joined()
    assert stand.revocations.in_force(AGENT) is None
    assert stand.revocations.refusal(AGENT, new.chain[0].not_valid_before_utc) == ""
    assert "issued before" in stand.revocations.refusal(AGENT, old.chain[0].not_valid_before_utc)
    # Nor does its first renewal look as if it had been issued before.
    key = new_key()
    made = await stand.members.renew(Peer(WEB, "", new.chain[0]), make_request(key, WEB))
    renewed = Svid.load(made.chain_pem, private_pem(key), made.bundle_pem)
    assert stand.revocations.refusal(AGENT, renewed.chain[0].not_valid_before_utc) == ""


async def test_an_orchestrator_does_not_forget_whom_redis_forgets(stand: Stand) -> None:
    await stand.joined()
    before = await stand.redis.hget(keys.REVOKED, AGENT)
    assert before is None
    await stand.members.revoke(AGENT, "stolen", OPERATOR)
    first = await stand.redis.hget(keys.REVOKED, AGENT)
    await stand.members.revoke(AGENT, "again", OPERATOR)
    await stand.redis.hset(keys.REVOKED, AGENT, first.replace(b"true", b"false"))
    await stand.revocations.look()
    assert stand.revocations.in_force(AGENT)
    await stand.redis.delete(keys.REVOKED)
    await stand.revocations.look()
    assert stand.revocations.in_force(AGENT)


async def test_an_entry_that_nobody_can_read_keeps_its_agent_out(stand: Stand) -> None:
    await stand.redis.hset(keys.REVOKED, AGENT, "nonsense")
    await stand.revocations.look()
    assert stand.revocations.in_force(AGENT)


async def test_where_redis_makes_no_users_no_token_is_spent(stand: Stand) -> None:
    token = await stand.token()
    await stand.redis.execute_command("ACL", "SETUSER", "weak", "on", ">x", "+ping", "~*")
    path = str(stand.redis.connection_pool.connection_kwargs["path"])
    weak = redis_asyncio.Redis(unix_socket_path=path, username="weak", password="x")
    stand.members._accounts = Accounts(weak)
    with pytest.raises(NoPermissionError):
        await stand.join(token)
    await weak.aclose()
    await stand.redis.execute_command("ACL", "DELUSER", "weak")
    stand.members._accounts = Accounts(stand.redis)
    await stand.join(token)


async def test_a_join_that_a_revocation_overtakes_gets_nothing(stand: Stand) -> None:
    token = await stand.token()
    give = Accounts.give

    class Slow(Accounts):
        async def give(self, agent: str) -> str:
            await stand.another(Revocations(stand.redis)).revoke(AGENT, "stolen", OPERATOR)
            return await give(self, agent)

    stand.members._accounts = Slow(stand.redis)
    with refused():
        await stand.join(token)
    assert not [line for line in await stand.redis.acl_list() if line.startswith(f"user agent.{AGENT} ")]


async def test_an_agent_that_was_only_enrolled_can_be_revoked_and_one_that_never_was_cannot(stand: Stand) -> None:
    token = await stand.token()
    await stand.members.revoke(AGENT, "wrong host", OPERATOR)
    with refused():
        await stand.join(token)
    with pytest.raises(AgentUnknown):
        await stand.members.revoke("web-2", "typo", OPERATOR)
    assert await stand.codes() == ["agent_enrolled", "agent_revoked"]


async def test_without_an_authority_nobody_joins_but_agents_are_cut_off(stand: Stand) -> None:
    await stand.redis.hset(keys.AGENTS, AGENT, "{}")
    bare = Membership(stand.redis, stand.ledger, stand.identity, stand.revocations, None, None)
    with pytest.raises(FailedPrecondition, match="TACHIKOMA_CA"):
        await bare.enroll(AGENT, timedelta(0), OPERATOR)
    done = await bare.revoke(AGENT, "stolen", OPERATOR)
    assert "ACL DELUSER agent.web-1" in done.warnings[0]
    assert stand.revocations.in_force(AGENT)


async def test_an_order_that_slipped_past_a_revocation_is_ended_by_the_reaper(stand: Stand) -> None:
    """Another orchestrator cut the agent off, and stopped halfway."""
    registry = Registry(stand.redis)
    findings = Findings(stand.redis, stand.trail)
    evidence = Evidence(stand.redis, findings, stand.identity, registry.revocations)
    collector = Collector(stand.redis, stand.ledger, Endings(), registry, stand.identity, evidence, findings)
    reaper = Reaper(
        stand.redis, stand.ledger, registry, collector, lease=timedelta(hours=1), interval=timedelta(hours=1),
        trail=stand.trail, audit_retention=timedelta(hours=1), audit_events=1000, audit_closed=False,
    )  # fmt: skip
    await stand.redis.set(keys.info(AGENT), "{}")
    await stand.redis.hset(keys.AGENTS, AGENT, "{}")
    for exec_id in ("waits", "runs", "asks"):
        request = ExecRequest(id=exec_id, agent_id=AGENT, command=["/bin/true"], requested_by=str(OPERATOR))
        asks = {"parked": "x", "approvers": (str(OPERATOR),)} if exec_id == "asks" else {}
        admission = Admission(
            request, request.command, "digest", "web@1", "", timedelta(minutes=9), timedelta(hours=1), {}, **asks
        )
        dispatch = None if asks else Dispatch("digest", "order", "web@1", b"message")
        assert (await stand.ledger.admit(admission, dispatch))[0] is Outcome.ADMITTED
    await stand.redis.set(keys.claim(AGENT, "runs"), "boot")
    await stand.ledger.started(AGENT, "runs", 1)

    entry = b'{"in_force":true,"at_ms":1,"said":{"by":"spiffe://x/user/y","reason":"stolen"}}'
    await stand.redis.hset(keys.REVOKED, AGENT, entry)
    assert await stand.ledger.readiness(AGENT) is Outcome.REVOKED
    await registry.revocations.look()
    await reaper.look()
    states = {record.exec_id: record.state for record in await stand.ledger.records(["waits", "runs", "asks"])}
    # What nobody approved has no order yet, and may still have an agent by then.
    assert states == {"waits": ExecState.CANCELLED, "runs": ExecState.LOST, "asks": ExecState.PENDING_APPROVAL}
    assert await stand.redis.get(keys.claim(AGENT, "waits")) == FENCE.encode()
    ended = {event.id: event for event in await stand.events() if event.event in ("cancelled", "lost")}
    assert all("stolen" in event.reason and event.actor == "spiffe://x/user/y" for event in ended.values())
    assert set(ended) == {"waits", "runs"}
