"""Signatures of messages that travel through Redis (RFC 7515, compact JWS).

Each message is signed with the key of the signer's X.509-SVID, whose chain travels in `x5c`. So there is no second key
to distribute. The reader fixes type and algorithm; `jku`, `jwk` and `kid` are ignored. Redis carries these messages and
is trusted with none of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tachikoma.identity import jws
from tachikoma.identity.bundles import TrustBundle, TrustBundles
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.model import describe_validation_error

__all__ = ["Claims", "InvalidSignature", "UnreadableMessage", "sign", "signer_begins", "verify"]

#: Largest difference between the clocks of two hosts, in seconds.
CLOCK_SKEW_SECONDS = 60


class InvalidSignature(ValueError):
    """A signed message that must not be trusted; the message names the reason."""


class UnreadableMessage(InvalidSignature):
    """A message that its issuer signed, and whose format this version does not read."""

    def __init__(self, reason: str, content: Mapping[str, object]) -> None:
        """Keep the signed content as it is: nothing but the signature was checked."""
        super().__init__(reason)
        self.content = content


class Claims(BaseModel):
    """The signed content of a message; each kind of message is a subclass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The kind of message, which `typ` in the JWS header must repeat.
    type: str
    #: SPIFFE ID of the signer.
    iss: str
    #: Time of the signature, in seconds since the epoch.
    iat: int
    #: Version of the format, from the table in `tachikoma.vocabulary.formats`.
    v: int = 1
    #: Names of the fields that every reader must understand (as in RFC 7515, section 4.1.11). Others may be ignored.
    crit: tuple[str, ...] = ()


C = TypeVar("C", bound=Claims)


def sign(svid: Svid, claims: Claims) -> str:
    """Sign claims with an identity's key and return a compact JWS."""
    return jws.sign_payload(claims.model_dump_json().encode(), claims.type, svid.chain, svid.signing_key)


def verify(
    token: str, kind: type[C], bundle: TrustBundle | TrustBundles, issuer: SpiffeId | None, *,
    kept: bool = False, timely: bool = True,
) -> C:  # fmt: skip
    """Verify a signed message and return its claims.

    Args:
        token: compact JWS.
        kind: the expected claims.
        bundle: roots of the issuer's trust domain, or of all trust domains that an issuer may have.
        issuer: the only identity that may have signed; None for any, which the claims then name as `iss`.
        kept: True for a stored message, which may be older than its signer's certificate. That certificate must then
            have been valid at the time of the signature.
        timely: False for a message of a host whose clock may be wrong: its time is not checked.

    Raises:
        InvalidSignature: type, algorithm, chain, issuer, signature or claims are not as they must be.
    """
    try:
        signer, claims = _verified(token, kind, bundle, issuer, kept)
    except InvalidIdentity as error:
        raise InvalidSignature(f"is not signed by a trusted identity: {error}") from None
    except InvalidSignature:
        raise
    except Exception as error:
        # The errors that hostile tokens cause in the parsers of JSON, JOSE and X.509 cannot be listed. Each of them
        # means that the message was not verified.
        raise InvalidSignature(f"is not validly signed: {str(error)[:300] or type(error).__name__}") from None
    if claims.iss != str(signer):
        raise InvalidSignature("names another issuer than its signer")
    if timely and claims.iat > time.time() + CLOCK_SKEW_SECONDS:
        raise InvalidSignature("was signed in the future; check the clocks of both hosts")
    return claims


def signer_begins(token: str, kind: type[Claims]) -> datetime:
    """Return the time from which on the signer's certificate is valid. Only for a message that was verified."""
    return jws.parse(token, kind.model_fields["type"].default).header.chain[0].not_valid_before_utc


def _verified(
    token: str, kind: type[C], bundle: TrustBundle | TrustBundles, issuer: SpiffeId | None, kept: bool
) -> tuple[SpiffeId, C]:
    """Verify header, chain, issuer and signature, in this order, and return the signer and the claims."""
    try:
        message = jws.parse(token, kind.model_fields["type"].default)
    except jws.WrongHeader as error:
        raise InvalidSignature(str(error)) from None
    chain = message.header.chain
    at = None
    if kept:
        # Read before it is verified. It is the signer's claim, and counts only if the signature below is valid.
        at = datetime.fromtimestamp(int(json.loads(message.payload)["iat"]), UTC)
    signer = bundle.verify(chain[0], list(chain[1:]), at)
    if issuer is not None and signer != issuer:
        raise InvalidSignature(f"is signed by {signer}, not by {issuer}")
    message.check_signature()
    return signer, _read(kind, message.payload)


def _read(kind: type[C], payload: bytes) -> C:
    """Read the content of a message whose signature is valid. Raises UnreadableMessage."""
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        # The model names the mistake.
        content = {}
    written, known = content.get("v", 1), kind.model_fields["v"].default
    if written != known:
        reason = f"is written in version {str(written)[:20]} of its format, and this program reads version {known}"
        raise UnreadableMessage(reason, content)
    critical = content.get("crit")
    names = [name for name in critical if isinstance(name, str)] if isinstance(critical, list) else []
    if unknown := [name[:60] for name in names if name not in kind.model_fields]:
        reason = f"requires fields that this program does not know in version {known} of its format: {unknown[:5]}"
        raise UnreadableMessage(reason, content)
    try:
        return kind.model_validate_json(payload)
    except ValidationError as error:
        raise UnreadableMessage(f"has wrong claims: {describe_validation_error(error)}", content) from None
