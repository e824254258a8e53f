"""Renewal of certificates: of agents that joined here, and of no other."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from members import AGENT, DOMAIN, WEB, Fixed, Stand, request_of
from tachikoma.errors import FailedPrecondition, InvalidRequest, PermissionDenied
from tachikoma.identity.authority import CertificateAuthority, issued_at, make_request, new_key, private_pem
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.spiffe import agent_id, service_id, user_id
from tachikoma.identity.svid import Svid
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.agents.authority import Authority
from tachikoma_orchestrator.agents.renewal import Renewals
from tachikoma_orchestrator.caller import Peer


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return Stand(redis, tmp_path)


async def test_an_agent_renews_its_own_certificate_and_no_other(stand: Stand) -> None:
    svid = await stand.joined()
    peer = Peer(WEB, "192.0.2.9", svid.chain[0])
    key = new_key()
    made = await stand.members.renewals.renew(peer, make_request(key, WEB))
    next_one = Svid.load(made.chain_pem, private_pem(key), made.bundle_pem)
    next_one.verify()
    assert next_one.spiffe_id == WEB
    assert made.redis_password == ""
    with pytest.raises(InvalidRequest):
        await stand.members.renewals.renew(peer, request_of(agent_id(DOMAIN, "web-2")))


async def test_certificates_that_were_not_issued_here_are_not_renewed_here(stand: Stand, tmp_path: Path) -> None:
    stand.root.issue(WEB, tmp_path / "web")
    by_hand = FileSvidSource(tmp_path / "web").current().chain[0]
    for certificate in (by_hand, None):
        with pytest.raises(PermissionDenied, match="did not join here"):
            await stand.members.renewals.renew(Peer(WEB, "", certificate), request_of())
    with pytest.raises(PermissionDenied, match="only its members renew"):
        await stand.members.renewals.renew(Peer(agent_id("partner.example", AGENT), ""), request_of())
    with pytest.raises(PermissionDenied, match="an orchestrator, which renews its certificate itself"):
        await stand.members.renewals.renew(Peer(stand.identity.current().spiffe_id, ""), request_of())


async def test_people_and_services_renew_what_was_issued_here(stand: Stand) -> None:
    for owner in (user_id(DOMAIN, "ada.l"), service_id(DOMAIN, "beat")):
        current = stand.ca.sign(new_key().public_key(), owner, lifetime=timedelta(hours=1))
        made = await stand.members.renewals.renew(Peer(owner, "", current), request_of(owner))
        leaf = x509.load_pem_x509_certificates(made.chain_pem)[0]
        life = leaf.not_valid_after_utc - issued_at(leaf)
        expected = stand.authority.user_lifetime if "user" in owner.path else stand.authority.lifetime
        assert abs(life - min(expected, stand.ca.not_after - issued_at(leaf))) < timedelta(minutes=1)


async def test_an_agent_of_an_authority_that_was_replaced_renews_at_the_new_one(stand: Stand, tmp_path: Path) -> None:
    svid = await stand.joined()
    above = CertificateAuthority.load(stand.folder / "root")
    CertificateAuthority.create(tmp_path / "new", DOMAIN, name="New", lifetime=timedelta(days=1), under=above)
    peer = Peer(WEB, "", svid.chain[0])

    def renewals() -> Renewals:
        authority = Authority(CertificateAuthority.load(tmp_path / "new"), timedelta(hours=1), "a:1", "a:2", "x")
        return Renewals(stand.identity, stand.revocations, Fixed(authority))

    with pytest.raises(PermissionDenied):
        await renewals().renew(peer, request_of())
    (tmp_path / "new" / "retired.pem").write_bytes((stand.folder / "ca" / "ca.pem").read_bytes())
    renewed = await renewals().renew(peer, request_of())
    issuer = x509.load_pem_x509_certificates(renewed.chain_pem)[0].issuer
    assert issuer == CertificateAuthority.load(tmp_path / "new").certificate.subject


async def test_without_an_authority_no_certificate_is_renewed(stand: Stand) -> None:
    svid = await stand.joined()
    with pytest.raises(FailedPrecondition, match="TACHIKOMA_CA"):
        await Renewals(stand.identity, stand.revocations, None).renew(Peer(WEB, "", svid.chain[0]), request_of())
