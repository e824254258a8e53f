"""Encryption of a session's frames between one orchestrator and one agent, with keys that Redis never sees.

Each attachment of an orchestrator is an *epoch* with keys of its own. Both sides make an ephemeral X25519 key and sign
its public half with their SVID: the orchestrator in a `SessionOffer`, the agent in a `SessionAnswer`. HKDF-SHA256
(RFC 5869) makes one key for each direction from the shared secret. Its salt is a digest over both signed messages, so
the keys are bound to everything in them: order, epoch, caller and agent.

A sealed frame is `epoch (u32) | number (u64) | AES-256-GCM ciphertext with tag`, in network order. The nonce is the
number, which no key uses twice; the associated data are execution, epoch, direction and number.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from enum import IntEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

__all__ = ["OVERHEAD_BYTES", "Direction", "EphemeralKey", "InvalidFrame", "Opener", "Sealer", "epoch_of"]

#: Epoch and number of a sealed frame.
_HEADER = struct.Struct("!IQ")
#: Bytes by which a sealed frame is longer than its content: header and tag.
OVERHEAD_BYTES = _HEADER.size + 16
#: Separates these keys from all other uses of HKDF.
_CONTEXT = b"tachikoma session 1"


class InvalidFrame(ValueError):
    """A sealed frame that must not be trusted; the message names the reason."""


class Direction(IntEnum):
    """The receiver of a frame."""

    TO_AGENT = 1
    TO_ORCHESTRATOR = 2

    @property
    def opposite(self) -> Direction:
        """Return the other direction."""
        return Direction.TO_ORCHESTRATOR if self is Direction.TO_AGENT else Direction.TO_AGENT


def epoch_of(raw: bytes) -> int:
    """Return the epoch that a sealed frame claims; it is not verified.

    Raises:
        InvalidFrame: the bytes are too short for a sealed frame.
    """
    if len(raw) < OVERHEAD_BYTES:
        raise InvalidFrame(f"a sealed frame of {len(raw)} bytes is too short")
    return int(_HEADER.unpack_from(raw)[0])


class Sealer:
    """The sending end of one direction of an epoch: it numbers and encrypts frames."""

    def __init__(self, key: bytes, execution: str, epoch: int, direction: Direction) -> None:
        """Use a key that nothing else seals with."""
        self._cipher = AESGCM(key)
        self._context = _context(execution, epoch, direction)
        self._epoch = epoch
        self._number = 0

    def seal(self, content: bytes) -> bytes:
        """Encrypt the next frame."""
        self._number += 1
        header = _HEADER.pack(self._epoch, self._number)
        return header + self._cipher.encrypt(_nonce(self._number), content, self._context + header)


class Opener:
    """The receiving end of one direction of an epoch: it decrypts frames, and accepts each number once."""

    def __init__(self, key: bytes, execution: str, epoch: int, direction: Direction, *, complete: bool) -> None:
        """Prepare an opener.

        Args:
            key: key of the direction.
            execution: id of the execution.
            epoch: number of the epoch.
            direction: direction of the frames.
            complete: True if no frame may be missing; False if later frames replace earlier ones, as over pub/sub.
        """
        self._cipher = AESGCM(key)
        self._context = _context(execution, epoch, direction)
        self._epoch = epoch
        self._number = 0
        self._complete = complete

    def open(self, raw: bytes) -> bytes:
        """Decrypt the next frame and return its content.

        Raises:
            InvalidFrame: the frame belongs to another epoch, was altered, repeated or reordered, or one is missing.
        """
        epoch = epoch_of(raw)
        number = int(_HEADER.unpack_from(raw)[1])
        if epoch != self._epoch:
            raise InvalidFrame(f"a frame of epoch {epoch} came in epoch {self._epoch}")
        if number <= self._number:
            raise InvalidFrame(f"frame {number} came after frame {self._number}")
        if self._complete and number != self._number + 1:
            raise InvalidFrame(f"frame {number} came after frame {self._number}, so frames are missing")
        header, sealed = raw[: _HEADER.size], raw[_HEADER.size :]
        try:
            content = self._cipher.decrypt(_nonce(number), sealed, self._context + header)
        except InvalidTag:
            raise InvalidFrame(f"frame {number} was altered") from None
        self._number = number
        return content


class EphemeralKey:
    """One side's key pair for one epoch."""

    def __init__(self) -> None:
        """Make a new key."""
        self._private = X25519PrivateKey.generate()

    @property
    def public(self) -> str:
        """Return the public half, for the signed message."""
        raw = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def agree(
        self, peer: str, offer: str, answer: str, execution: str, epoch: int, *, sends: Direction
    ) -> tuple[Sealer, Opener]:
        """Create the two ends of an epoch, after both signatures were verified.

        Args:
            peer: the other side's public half, from its signed message.
            offer: the signed offer, as it was sent.
            answer: the signed answer, as it was sent.
            execution: id of the execution.
            epoch: number of the epoch.
            sends: direction of the frames that this side sends.

        Raises:
            InvalidFrame: the other side's half is not a usable X25519 key.
        """
        try:
            raw = base64.urlsafe_b64decode(peer + "=" * (-len(peer) % 4))
            secret = self._private.exchange(X25519PublicKey.from_public_bytes(raw))
        except (ValueError, binascii.Error) as error:
            raise InvalidFrame(f"the other side's ephemeral key cannot be used: {error}") from None
        salt = hashlib.sha256(hashlib.sha256(offer.encode()).digest() + hashlib.sha256(answer.encode()).digest())
        keys = {way: _key(secret, salt.digest(), execution, epoch, way) for way in Direction}
        sealer = Sealer(keys[sends], execution, epoch, sends)
        receives = sends.opposite
        complete = receives is Direction.TO_AGENT
        return sealer, Opener(keys[receives], execution, epoch, receives, complete=complete)


def _key(secret: bytes, salt: bytes, execution: str, epoch: int, direction: Direction) -> bytes:
    info = _CONTEXT + b"|" + _context(execution, epoch, direction)
    return HKDF(SHA256(), 32, salt, info).derive(secret)


def _context(execution: str, epoch: int, direction: Direction) -> bytes:
    return f"{execution}|{epoch}|{direction.value}|".encode()


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
