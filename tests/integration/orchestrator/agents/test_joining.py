"""Joining on a real Redis, as hosts meet it that hold a token, or do not."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

from members import AGENT, DOMAIN, OPERATOR, WEB, Stand, refused
from tachikoma.errors import InvalidRequest, Unavailable
from tachikoma.identity.authority import make_request, new_key, private_pem
from tachikoma.identity.join_token import JoinToken
from tachikoma.identity.spiffe import Member, agent_id, service_id, user_id
from tachikoma.identity.svid import Svid
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.labels import LabelChange
from tachikoma_orchestrator.agents.authority import IssuedIdentity
from tachikoma_orchestrator.agents.enrolment import TokenRefused
from tachikoma_orchestrator.agents.labels import Labels
from tachikoma_orchestrator.agents.redis_accounts import Accounts
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.store.scripts import Call

WEB_1 = Member.agent(AGENT)


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return Stand(redis, tmp_path)


async def test_the_holder_of_a_token_becomes_its_agent(stand: Stand) -> None:
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


async def test_a_join_binds_the_labels_of_its_token(stand: Stand) -> None:
    enrolments = stand.members.enrolments
    token = JoinToken.parse((await enrolments.enroll(WEB_1, timedelta(minutes=5), OPERATOR, labels={"a": "1"}))[0])
    assert stand.labels.of(AGENT) == {}
    await stand.join(token)
    assert stand.labels.of(AGENT) == {"a": "1"}
    # A token that names none leaves them as they are.
    await stand.join(await stand.token())
    other = Labels(stand.redis, stand.identity)
    await other.refresh()
    assert other.of(AGENT) == {"a": "1"}
    found = [(event.actor, event.reason) for event in await stand.events() if event.event == "agent_labelled"]
    assert found == [(str(OPERATOR), "a=1")]
    with pytest.raises(InvalidRequest, match="labels"):
        await enrolments.enroll(WEB_1, timedelta(minutes=5), OPERATOR, labels={"a b": "1"})


async def test_labels_that_an_operator_changes_during_a_join_are_replaced_by_later_ones(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every orchestrator then knows the same labels, also one that has seen those in between."""
    enrolments = stand.members.enrolments
    token = JoinToken.parse((await enrolments.enroll(WEB_1, timedelta(minutes=5), OPERATOR, labels={"a": "1"}))[0])
    between = Labels(stand.redis, stand.identity)
    changes = [{"a": "2"}, {"b": "3"}]
    runner = stand.members.joins._runner
    run = runner.run

    async def overtaken(call: Call) -> object:
        """Run a script of the join; an operator's change is stored just before the first two."""
        if changes:
            await between.change(AGENT, LabelChange(changes.pop(), ()), OPERATOR)
        return await run(call)

    monkeypatch.setattr(runner, "run", overtaken)
    await stand.join(token)
    await between.refresh()
    fresh = Labels(stand.redis, stand.identity)
    await fresh.refresh()
    assert stand.labels.of(AGENT) == between.of(AGENT) == fresh.of(AGENT) == {"a": "1"}
    assert (await stand.codes()).count("join_accepted") == 1
    assert [event.reason for event in await stand.events() if event.event == "agent_labelled"][-1] == "a=1"


async def test_a_token_can_be_used_once(stand: Stand) -> None:
    token = await stand.token()
    await stand.join(token)
    with refused():
        await stand.join(token)
    assert (await stand.codes()).count("join_accepted") == 1


async def test_of_many_concurrent_attempts_with_one_token_one_joins(stand: Stand) -> None:
    token = await stand.token()
    answers = await asyncio.gather(*(stand.join(token) for _ in range(20)), return_exceptions=True)
    made = [answer for answer in answers if isinstance(answer, IssuedIdentity)]
    assert len(made) == 1
    assert all(isinstance(answer, TokenRefused) for answer in answers if answer is not made[0])
    # And its password is the one that holds.
    [line] = await stand.users()
    assert hashlib.sha256(made[0].redis_password.encode()).hexdigest() in line
    assert (await stand.codes()).count("join_accepted") == 1


async def test_a_join_script_that_is_repeated_after_a_lost_answer_succeeds_again(stand: Stand) -> None:
    # redis-py repeats a script when the connection breaks while it waits for the answer.
    token = await stand.token()
    run = stand.members.joins._runner.run

    async def twice(call: Any) -> Any:
        await run(call)
        return await run(call)

    stand.members.joins._runner.run = twice  # type: ignore[method-assign]
    await stand.join(token)
    assert (await stand.codes()).count("join_accepted") == 1


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
async def test_a_token_of_another_agent_or_a_wrong_secret_is_refused_and_costs_no_token(
    stand: Stand, changes: dict[str, Any]
) -> None:
    await stand.token("web-2")
    token = await stand.token()
    with refused():
        await stand.join(token, **changes)
    await stand.join(token)


def hostile_requests() -> dict[str, bytes]:
    """Certificate requests that no agent of this project makes."""
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
        "truncated": right[:-20],
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
    # A public key whose private key the sender does not have, and a signature that was changed.
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
async def test_a_hostile_certificate_request_is_refused_and_costs_no_token(stand: Stand, name: str) -> None:
    token = await stand.token()
    with pytest.raises(InvalidRequest):
        await stand.join(token, csr=HOSTILE[name])
    await stand.join(token)
    # Nor does a renewal accept it.
    peer = Peer(WEB, "", (await stand.joined()).chain[0])
    with pytest.raises(InvalidRequest):
        await stand.members.renewals.renew(peer, HOSTILE[name])


async def test_a_redis_that_cannot_store_users_costs_no_token(stand: Stand) -> None:
    token = await stand.token()
    await stand.redis.execute_command("ACL", "SETUSER", "weak", "on", ">x", "+ping", "~*")
    path = str(stand.redis.connection_pool.connection_kwargs["path"])
    weak = redis_asyncio.Redis(unix_socket_path=path, username="weak", password="x")
    with pytest.raises(NoPermissionError):
        await stand.join(token, stand.membership(authority=stand.authority, accounts=Accounts(weak)))
    await weak.aclose()
    await stand.redis.execute_command("ACL", "DELUSER", "weak")
    assert (await stand.join(token)).redis_password


async def test_a_user_that_cannot_be_created_costs_the_token_and_the_error_says_so(stand: Stand) -> None:
    token = await stand.token()

    class Broken(Accounts):
        async def create(self, agent: str) -> str:
            raise RedisConnectionError("gone")

    with pytest.raises(Unavailable, match="enroll it again"):
        await stand.join(token, stand.membership(authority=stand.authority, accounts=Broken(stand.redis)))
    with refused("was used"):
        await stand.join(token)


async def test_an_orchestrator_that_manages_no_redis_users_gives_no_password(stand: Stand) -> None:
    members = stand.membership(authority=stand.authority, accounts=None)
    assert (await stand.join(await stand.token("bare"), members)).redis_password == ""
    assert await stand.users("bare") == []


async def test_a_join_during_a_revocation_gets_no_identity(stand: Stand) -> None:
    token = await stand.token()
    other = stand.membership(
        authority=stand.authority, accounts=Accounts(stand.redis), revocations=Revocations(stand.redis)
    )

    class Slow(Accounts):
        async def create(self, agent: str) -> str:
            await other.revoker.revoke(AGENT, "stolen", OPERATOR)
            return await super().create(agent)

    with refused("revoked in the meantime"):
        await stand.join(token, stand.membership(authority=stand.authority, accounts=Slow(stand.redis)))
    assert await stand.users() == []
