"""What joining and renewal share: the check of a new certificate, and the orchestrator's errors."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from grpc.aio import AioRpcError, Metadata

from authority import Authority
from tachikoma.client.membership.certificates import check_certificate, save_identity, translate_error
from tachikoma.errors import ServerError, Unavailable
from tachikoma.identity.authority import new_key
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.join_token import Joined
from tachikoma.identity.spiffe import agent_id

WEB_1, WEB_2 = agent_id("tachikoma.local", "web-1"), agent_id("tachikoma.local", "web-2")


def test_a_certificate_for_the_agents_own_key_is_taken(authority: Authority) -> None:
    key = new_key()
    certificate, _ = authority.leaf(str(WEB_1), key=key)
    svid = check_certificate(certificate.public_bytes(Encoding.PEM), key, authority.pem, WEB_1)
    assert svid.spiffe_id == WEB_1


def test_a_certificate_that_is_not_the_requested_one_is_refused(authority: Authority, stranger: Authority) -> None:
    key = new_key()
    mine = authority.leaf(str(WEB_1), key=key)[0].public_bytes(Encoding.PEM)
    wrong = [
        (authority.leaf(str(WEB_2), key=key)[0].public_bytes(Encoding.PEM), authority.pem),
        (authority.leaf(str(WEB_1))[0].public_bytes(Encoding.PEM), authority.pem),
        (mine, stranger.pem),
        (b"nonsense", authority.pem),
        (mine, b""),
    ]
    for chain, bundle in wrong:
        with pytest.raises(ServerError, match="are both clocks right"):
            check_certificate(chain, key, bundle, WEB_1)


def test_an_identity_is_stored_with_the_place_of_its_renewal(tmp_path: Path, authority: Authority) -> None:
    svid = authority.svid(str(WEB_1))
    joined = Joined(address="orch.example:8535", server_name="orch.example")
    save_identity(tmp_path, svid, joined)
    assert FileSvidSource(tmp_path).current().certificate_pem == svid.certificate_pem
    assert Joined.load(tmp_path) == joined


def rpc_error(code: grpc.StatusCode, details: str) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details=details)


def test_an_orchestrator_that_cannot_be_reached_is_named() -> None:
    error = translate_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "refused"), "orch.example:1")
    assert type(error) is Unavailable
    assert str(error) == "cannot reach the orchestrator at orch.example:1, or it is not the right one: refused"


def test_an_orchestrator_that_does_not_answer_is_named() -> None:
    error = translate_error(rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, ""), "orch.example:1")
    assert isinstance(error, Unavailable)
    assert "orch.example:1 did not answer in 20 s" in str(error)


def test_an_answer_of_the_orchestrator_is_what_it_says() -> None:
    error = translate_error(rpc_error(grpc.StatusCode.PERMISSION_DENIED, "revoked"), "orch.example:1")
    assert not isinstance(error, Unavailable)
    assert str(error) == "revoked (PERMISSION_DENIED)"
