"""Signed messages between orchestrator and agents: work orders, cancels and receipts (RFC 7515, compact JWS).

Each is signed with the key of the signer's X.509-SVID, whose chain travels in `x5c`, so that there is no second key to
distribute. Type and algorithm are fixed by the reader; `jku`, `jwk` and `kid` are never looked at. Redis carries these
messages and is trusted with none of them.
"""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.jwk import ECKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tachikoma.identity.bundles import TrustBundle, TrustBundles
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.grants import Digest, Grant
from tachikoma.vocabulary.limits import ResourceUsage
from tachikoma.vocabulary.model import describe_validation_error
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import KillReceipt
from tachikoma.vocabulary.states import ExecState
from tachikoma.vocabulary.types import Identifier, Milliseconds

__all__ = [
    "AuditCheckpoint",
    "CancelOrder",
    "Enrolment",
    "InvalidSignature",
    "OutputDigest",
    "ParkedRequest",
    "Receipt",
    "SignedRequest",
    "WorkOrder",
    "sign",
    "signer_begins",
    "verify",
]

#: How far the clocks of two hosts may differ.
CLOCK_SKEW_SECONDS = 60
#: Largest signed payload: 4 MiB of stdin in base64, and the rest.
MAX_PAYLOAD_BYTES = 8 * 1024 * 1024

_registry = jws.JWSRegistry(algorithms=["ES256"])
_registry.max_header_length = 16 * 1024
_registry.max_payload_length = MAX_PAYLOAD_BYTES * 4 // 3 + 4


#: Bounds of what an agent says: an agent may be hostile, and what it says is stored and shown.
Count = Annotated[int, Field(ge=0, lt=2**63)]


class InvalidSignature(ValueError):
    """A signed message that must not be believed; the message says why."""


class _Claims(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    #: What `typ` in the JWS header must say.
    type: str
    #: SPIFFE ID of the signer.
    iss: str
    #: When it was signed, in seconds since the epoch.
    iat: int


C = TypeVar("C", bound=_Claims)


class WorkOrder(_Claims):
    """What an agent is told to run: everything it acts on is in here."""

    type: Literal["tachikoma-order+jws"] = "tachikoma-order+jws"
    #: SPIFFE ID of the agent it is for.
    aud: str
    #: SPIFFE ID of the requester.
    sub: str
    #: Not to be started at or after this second since the epoch.
    exp: int
    #: The execution; an agent starts each at most once.
    jti: Identifier
    #: name@digest of the policy that granted it.
    policy: str
    #: SPIFFE ID of who approved it; empty where policy asked for no approval.
    approved_by: str = ""
    #: The journal its agent had when it was signed. With another the agent cannot know whether it was started before.
    journal: str = ""
    #: The labels of the agent that policy decided by. They came over Redis, so the agent holds them against its own.
    labels: dict[str, str] = Field(default_factory=dict)
    #: Address it was asked for from; empty where it was not known.
    client_ip: str = ""
    grant: Grant
    request: ExecRequest


class SignedRequest(_Claims):
    """A request that its requester signed, since it comes over Redis and not over a connection of its own."""

    type: Literal["tachikoma-request+jws"] = "tachikoma-request+jws"
    #: SPIFFE ID of the orchestrator it is for.
    aud: str
    #: Not to be admitted at or after this second since the epoch.
    exp: int
    #: The execution, which is the same however often this is read.
    jti: Identifier
    request: ExecRequest

    @model_validator(mode="after")
    def _one_id(self) -> Self:
        if self.jti != self.request.id:
            raise ValueError("names another execution than its request")
        return self


class ParkedRequest(_Claims):
    """A request that waits for its approval. It is no order to any agent, and Redis can put no other in its place."""

    type: Literal["tachikoma-parked+jws"] = "tachikoma-parked+jws"
    #: The execution.
    jti: Identifier
    #: With the requester that was authenticated.
    request: ExecRequest
    #: Address it was asked for from; empty where it was not known.
    client_ip: str = ""


class CancelOrder(_Claims):
    """Tells an agent to end, or never to start, an execution."""

    type: Literal["tachikoma-cancel+jws"] = "tachikoma-cancel+jws"
    #: SPIFFE ID of the agent it is for.
    aud: str
    #: Who asked for it.
    sub: str
    #: Whose the execution must be for that; empty where an operator asks, who may end those of all.
    requested_by: str = ""
    jti: Identifier


class Enrolment(_Claims):
    """Lets whoever has a secret join once as an agent. Redis keeps it, and can put no other in its place."""

    type: Literal["tachikoma-enrolment+jws"] = "tachikoma-enrolment+jws"
    agent: Identifier
    #: SHA-256 of the secret.
    secret_sha256: Digest
    #: When it was made, in milliseconds: one from before the agent was cut off lets nobody back in.
    made_ms: Milliseconds
    #: Good for nothing at or after this second since the epoch.
    exp: int
    #: SPIFFE ID of the operator.
    by: str


class AuditCheckpoint(_Claims):
    """Vouches for a chain of the audit log up to a line."""

    type: Literal["tachikoma-checkpoint+jws"] = "tachikoma-checkpoint+jws"
    #: Number of the line in the chain, and its digest.
    line: Count
    head: Digest
    #: Number of the last event before it.
    seq: Count


class OutputDigest(BaseModel):
    """One output stream in a receipt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    total_bytes: Count
    #: Of the whole; empty where it is not known: its worker was started again when much of it was gone.
    sha256: Digest | Literal[""]
    truncated: bool
    #: SHA-256 of what stands in the result: the whole, or head and tail.
    excerpt_sha256: Digest


class Receipt(_Claims):
    """What an agent says of an execution's end."""

    type: Literal["tachikoma-receipt+jws"] = "tachikoma-receipt+jws"
    #: The execution.
    jti: Identifier
    #: SHA-256 of the order it answers, or empty where the order itself could not be read again.
    order_sha256: str
    state: ExecState
    exit_code: Annotated[int, Field(ge=-1, le=255)]
    signal: Annotated[int, Field(ge=0, le=64)]
    error: Annotated[str, Field(max_length=8192)]
    #: The file that was executed, or empty.
    executable: Annotated[str, Field(max_length=8192)]
    #: Milliseconds since the epoch by the agent's clock; 0 for never.
    started_ms: Milliseconds
    ended_ms: Milliseconds
    duration_us: Count
    #: Number of the last chunk of output.
    chunks: Count
    stdout: OutputDigest
    stderr: OutputDigest
    usage: ResourceUsage = ResourceUsage()
    #: How it was killed, where it was.
    kill: KillReceipt | None = None

    @model_validator(mode="after")
    def _killed_means_gone(self) -> Self:
        killed = self.state in (ExecState.CANCELLED, ExecState.TIMED_OUT) and self.started_ms
        if killed and not (self.kill and self.kill.empty):
            raise ValueError(f"says {self.state} of a command, and not that nothing of it is left")
        return self


def sign(svid: Svid, claims: _Claims) -> str:
    """Sign claims as the given identity: a compact JWS."""
    payload = claims.model_dump_json().encode()
    x5c = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode() for certificate in svid.chain]
    header = {"alg": "ES256", "typ": claims.type, "x5c": x5c}
    return jws.serialize_compact(header, payload, svid.signing_key, registry=_registry)


@lru_cache(maxsize=1024)
def _parse_chain(x5c: tuple[str, ...]) -> tuple[list[x509.Certificate], ECKey]:
    """The certificates of a header and the leaf's key. Nothing is trusted by being parsed, so it can be remembered."""
    chain = [x509.load_der_x509_certificate(base64.b64decode(item, validate=True)) for item in x5c]
    public_key = chain[0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return chain, ECKey.import_key(public_key)


def _chain(header: dict[str, Any]) -> tuple[list[x509.Certificate], ECKey]:
    x5c = header.get("x5c")
    if not isinstance(x5c, list) or not 1 <= len(x5c) <= 8 or not all(isinstance(item, str) for item in x5c):
        raise InvalidSignature("carries no certificate chain")
    return _parse_chain(tuple(x5c))


def verify(
    token: str, kind: type[C], bundle: TrustBundle | TrustBundles, issuer: SpiffeId | None, *, kept: bool = False
) -> C:
    """The claims of a signed message, after checking who signed it.

    Args:
        token: compact JWS.
        kind: the claims expected.
        bundle: roots of the issuer's trust domain, or of all trust domains an issuer may be of.
        issuer: the only identity that may have signed it; None where anybody may, who then is its `iss`.
        kept: whether the message may be older than its signer's certificate lasts, which then must have been valid
            when it was signed.

    Raises:
        InvalidSignature: type, algorithm, chain, issuer, signature or claims are not as they must be.
    """
    expected_type = kind.model_fields["type"].default
    try:
        message = jws.extract_compact(token.encode("ascii"), registry=_registry)
        header = message.headers()
        if not isinstance(header, dict):
            raise InvalidSignature("has a header that is no object")
        if header.get("typ") != expected_type or header.get("alg") != "ES256":
            raise InvalidSignature(f"is a {str(header.get('typ'))[:60]!r}, not a {expected_type!r}")
        chain, key = _chain(header)
        at = None
        if kept:
            # Read before it is verified; it is the signer's word, and believed only with the signature.
            at = datetime.fromtimestamp(int(json.loads(message.payload)["iat"]), UTC)
        signer = bundle.verify(chain[0], chain[1:], at)
        if issuer is not None and signer != issuer:
            raise InvalidSignature(f"is signed by {signer}, not by {issuer}")
        jws.deserialize_compact(token.encode("ascii"), key, registry=_registry)
        claims = kind.model_validate_json(message.payload)
    except InvalidIdentity as error:
        raise InvalidSignature(f"is signed by nobody we trust: {error}") from None
    except ValidationError as error:
        raise InvalidSignature(f"has wrong claims: {describe_validation_error(error)}") from None
    except InvalidSignature:
        raise
    except Exception as error:
        # What a hostile token makes the parsers of JSON, JOSE and X.509 raise cannot be listed. Whatever it is: the
        # message was not verified.
        raise InvalidSignature(f"is not validly signed: {str(error)[:300] or type(error).__name__}") from None
    if claims.iss != str(signer):
        raise InvalidSignature("names another issuer than its signer")
    if claims.iat > time.time() + CLOCK_SKEW_SECONDS:
        raise InvalidSignature("is of a time that is still to come")
    return claims


def signer_begins(token: str) -> datetime:
    """From when on the certificate of a signer is valid. Only of a message that was verified."""
    chain, _ = _chain(jws.extract_compact(token.encode("ascii"), registry=_registry).headers())
    return chain[0].not_valid_before_utc
