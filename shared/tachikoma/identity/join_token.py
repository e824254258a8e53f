"""What a host without an identity is given to become an agent, and what it keeps of that.

A token is one string. Beside its secret it says where to join and whom to find there: the root itself, not only its
fingerprint, since TLS does not send roots. So the secret is told to nobody but the orchestrator.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Annotated

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import AfterValidator, Field, ValidationError

from tachikoma.errors import ConfigurationError, InvalidRequest
from tachikoma.identity.files import write_private
from tachikoma.identity.spiffe import SpiffeId
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.types import ID_PATTERN, Base64

__all__ = ["JOINED_FILE", "SECRET_BYTES", "JoinToken", "Joined", "agent_of"]

#: In the identity's folder of an agent that joined.
JOINED_FILE = "joined.json"
SECRET_BYTES = 32

_PREFIX = "tachikoma-join-"
#: Longest token; ours have about 1000 characters, more where the root has a long key.
_MAX_TOKEN = 16 * 1024


def agent_of(spiffe_id: SpiffeId) -> str:
    """The agent that an ID names; empty where it names none."""
    found = re.fullmatch(f"/agent/({ID_PATTERN})", spiffe_id.path)
    return found[1] if found else ""


def _agent_id(text: str) -> str:
    if not agent_of(SpiffeId.parse(text)):
        raise ValueError(f"{text[:100]!r} is not the ID of an agent")
    return text


def _root(der: bytes) -> bytes:
    x509.load_der_x509_certificate(der)
    return der


class JoinToken(Model):
    """Lets one host join once. Whoever has it may."""

    #: SPIFFE ID of the agent.
    id: Annotated[str, AfterValidator(_agent_id)]
    #: host:port where to join, and the DNS name in the certificate there.
    address: Annotated[str, Field(min_length=1, max_length=300)]
    server_name: Annotated[str, Field(min_length=1, max_length=255)]
    #: The root that vouches for that certificate, DER.
    root: Annotated[Base64, Field(max_length=8192), AfterValidator(_root)]
    # Not in `repr`.
    secret: Annotated[Base64, Field(min_length=SECRET_BYTES, max_length=SECRET_BYTES, repr=False)]

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Read one.

        Raises:
            InvalidRequest: it is none. The message does not tell what it is, since it may be a part of one.
        """
        text = text.strip()
        body = text.removeprefix(_PREFIX)
        try:
            if body == text or len(text) > _MAX_TOKEN:
                raise ValueError
            return cls.model_validate_json(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        except (ValidationError, ValueError, binascii.Error):
            raise InvalidRequest(
                "this is no token, or not the whole of one; `tachikoma agents enroll` prints it in one line"
            ) from None

    def __str__(self) -> str:
        return _PREFIX + base64.urlsafe_b64encode(self.to_json().encode()).decode().rstrip("=")

    @property
    def spiffe_id(self) -> SpiffeId:
        """Who the holder becomes."""
        return SpiffeId.parse(self.id)

    @property
    def root_pem(self) -> bytes:
        """What the orchestrator is known by."""
        return x509.load_der_x509_certificate(self.root).public_bytes(Encoding.PEM)


class Joined(Model):
    """Stands beside the identity of an agent that joined: it renews that itself, and where."""

    #: host:port of the orchestrator, and the DNS name in its certificate.
    address: str
    server_name: str

    @classmethod
    def load(cls, folder: Path) -> Joined | None:
        """What stands in an identity's folder; None where its agent did not join.

        Raises:
            ConfigurationError: it cannot be read.
        """
        try:
            return cls.model_validate_json((folder / JOINED_FILE).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise ConfigurationError(f"cannot read {folder / JOINED_FILE}: {error}") from None

    def save(self, folder: Path) -> None:
        """Write it. Raises OSError."""
        write_private(folder / JOINED_FILE, self.to_json().encode() + b"\n")
