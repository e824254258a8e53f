"""The signed messages about batches: one id, and no message that another kind of message could replace."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import ValidationError

from authority import Authority
from tachikoma.identity.signed_batches import ApprovedBatch, FrozenBatch, SignedBatchRequest
from tachikoma.identity.signing import Claims, InvalidSignature, sign, verify
from tachikoma.vocabulary.batches import BatchRequest

ALICE = "spiffe://tachikoma.local/user/alice"
REQUEST = BatchRequest(id="b1", targets=("web-*",), command=("uptime",))
FIELDS: dict[type[Claims], dict[str, Any]] = {
    SignedBatchRequest: {"aud": "spiffe://tachikoma.local/service/orchestrator", "exp": 1, "batch": REQUEST},
    FrozenBatch: {"sub": ALICE, "nonce": "0" * 32, "batch": REQUEST, "targets": ("web-1",)},
    ApprovedBatch: {"sub": ALICE, "reason": "", "batch_sha256": "0" * 64, "digest": "1" * 64, "targets": ("",)},
}


def made(kind: type[Claims], **changes: Any) -> Claims:
    return kind(**{"iss": ALICE, "iat": int(time.time()), "jti": "b1", **FIELDS[kind], **changes})


@pytest.mark.parametrize("kind", FIELDS)
def test_each_message_is_read_as_its_own_kind_only(authority: Authority, kind: type[Claims]) -> None:
    svid = authority.svid(ALICE)
    message = made(kind)
    token = sign(svid, message)
    assert verify(token, kind, svid.bundle, svid.spiffe_id) == message
    for other in FIELDS.keys() - {kind}:
        with pytest.raises(InvalidSignature, match=", not a "):
            verify(token, other, svid.bundle, svid.spiffe_id)


def test_a_request_has_the_id_of_its_batch() -> None:
    with pytest.raises(ValidationError, match="names another batch than its request"):
        made(SignedBatchRequest, jti="b2")


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [(FrozenBatch, {"targets": ()}), (FrozenBatch, {"nonce": "x"}), (ApprovedBatch, {"targets": ("zz",)})],
)
def test_claims_are_bounded(kind: type[Claims], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        made(kind, **wrong)
