"""The signed messages about batches: an application's request, the frozen list of targets, and its approval."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tachikoma.identity.signing import Claims
from tachikoma.vocabulary.batches import MAX_EXPRESSIONS, ApprovalNeed, BatchRequest
from tachikoma.vocabulary.formats import FORMATS
from tachikoma.vocabulary.grants import Digest
from tachikoma.vocabulary.types import Identifier

__all__ = ["ApprovedBatch", "FrozenBatch", "SignedBatchRequest"]


class SignedBatchRequest(Claims):
    """A request of a batch that its requester signed, as `SignedRequest`."""

    type: Literal["tachikoma-batch-request+jws"] = "tachikoma-batch-request+jws"
    #: Version of the format.
    v: int = FORMATS["request"]
    #: SPIFFE ID of the orchestrator that it is addressed to.
    aud: str
    #: Second since the epoch from which on the request must not be accepted.
    exp: int
    #: Id of the batch, so that reading the message twice gives one batch.
    jti: Identifier
    #: The request, with the same id.
    batch: BatchRequest

    @model_validator(mode="after")
    def _one_id(self) -> Self:
        if self.jti != self.batch.id:
            raise ValueError("names another batch than its request")
        return self


class FrozenBatch(Claims):
    """A batch as it was requested, with its list of targets. Redis stores it and cannot replace it."""

    type: Literal["tachikoma-batch+jws"] = "tachikoma-batch+jws"
    #: Id of the batch.
    jti: Identifier
    #: SPIFFE ID of the requester.
    sub: str
    #: IP address that the request came from; empty if it is unknown.
    client_ip: str = ""
    #: Random text from which the ids of the executions are derived, so that nobody can guess them.
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    #: The request.
    batch: BatchRequest
    #: The agents, in the order in which they start.
    targets: Annotated[tuple[Identifier, ...], Field(min_length=1, max_length=MAX_EXPRESSIONS)]
    #: The policies that require an approval; with one, nothing starts without an `ApprovedBatch`.
    needs: tuple[ApprovalNeed, ...] = ()


#: The first half of a SHA-256, in hexadecimal, or nothing.
Binding = Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")]


class ApprovedBatch(Claims):
    """The approval of a batch. Redis stores it and cannot make one."""

    type: Literal["tachikoma-batch-approval+jws"] = "tachikoma-batch-approval+jws"
    #: Id of the batch.
    jti: Identifier
    #: SPIFFE ID of the approver.
    sub: str
    #: The approver's reason.
    reason: str
    #: SHA-256 of the signed batch.
    batch_sha256: Digest
    #: Digest of what was approved; see `BatchApproval.digest`.
    digest: Digest
    #: The first half of the digest of what each target would run, in the order of the list; empty for a denied one.
    targets: Annotated[tuple[Binding, ...], Field(max_length=MAX_EXPRESSIONS)]
    #: The same of its first health gate; empty without one.
    gate: Binding = ""
