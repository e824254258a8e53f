"""The token with which a host becomes an agent, or a person a user, and the file in which a used token is recorded.

A token is one string. Beside its secret it contains the address to join at and the root certificate of the server
there: the root itself, not only its fingerprint, since TLS does not send roots. So only the orchestrator receives the
secret.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Annotated

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import AfterValidator, Field, ValidationError

from tachikoma.errors import ConfigurationError, InvalidRequest
from tachikoma.identity.files import write_private
from tachikoma.identity.spiffe import Member, SpiffeId
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.types import Base64

__all__ = ["JOINED_FILE", "SECRET_BYTES", "JoinToken", "Joined", "agent_of"]

#: Name of the file in the identity's folder of an agent that joined.
JOINED_FILE = "joined.json"
#: Bytes of the secret in a token.
SECRET_BYTES = 32

_PREFIX = "tachikoma-join-"
#: Largest number of characters of a token; usual are about 1000, more if the root has a long key.
_MAX_TOKEN = 16 * 1024


def agent_of(spiffe_id: SpiffeId) -> str:
    """Return the agent that an ID names; empty if it names none."""
    member = Member.of(spiffe_id)
    return member.name if member is not None and member.is_agent else ""


def _member_id(text: str) -> str:
    Member.required(SpiffeId.parse(text))
    return text


def _root(der: bytes) -> bytes:
    x509.load_der_x509_certificate(der)
    return der


class JoinToken(Model):
    """A token that lets one host or person join once. Any holder may join."""

    #: SPIFFE ID of the agent or the person.
    id: Annotated[str, AfterValidator(_member_id)]
    #: host:port of the join service.
    address: Annotated[str, Field(min_length=1, max_length=300)]
    #: DNS name in the certificate of the join service.
    server_name: Annotated[str, Field(min_length=1, max_length=255)]
    #: Root certificate of the join service, DER.
    root: Annotated[Base64, Field(max_length=8192), AfterValidator(_root)]
    #: Random secret; not in `repr`.
    secret: Annotated[Base64, Field(min_length=SECRET_BYTES, max_length=SECRET_BYTES, repr=False)]

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Parse a token.

        Raises:
            InvalidRequest: the text is not a token. The message does not repeat it, since it may be a part of one.
        """
        text = text.strip()
        body = text.removeprefix(_PREFIX)
        try:
            if body == text or len(text) > _MAX_TOKEN:
                raise ValueError
            return cls.model_validate_json(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        except (ValidationError, ValueError, binascii.Error):
            raise InvalidRequest(
                "this is not a complete join token; copy the one line that `tachikoma agents enroll` or "
                "`tachikoma users add` prints"
            ) from None

    def __str__(self) -> str:
        return _PREFIX + base64.urlsafe_b64encode(self.to_json().encode()).decode().rstrip("=")

    @property
    def spiffe_id(self) -> SpiffeId:
        """The SPIFFE ID that the holder gets."""
        return SpiffeId.parse(self.id)

    @property
    def root_pem(self) -> bytes:
        """The root certificate of the join service as PEM."""
        return x509.load_der_x509_certificate(self.root).public_bytes(Encoding.PEM)


class Joined(Model):
    """The file beside the identity of a member that joined, by which the member renews its certificate."""

    #: host:port of the orchestrator, or of several with commas.
    address: str
    #: DNS name in the orchestrator's certificate.
    server_name: str

    @classmethod
    def load(cls, folder: Path) -> Joined | None:
        """Read the file in an identity's folder; None if its owner did not join.

        Raises:
            ConfigurationError: the file cannot be read.
        """
        try:
            return cls.model_validate_json((folder / JOINED_FILE).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise ConfigurationError(f"cannot read {folder / JOINED_FILE}: {error}") from None

    def save(self, folder: Path) -> None:
        """Write the file into an identity's folder. Raises OSError."""
        write_private(folder / JOINED_FILE, self.to_json().encode() + b"\n")
