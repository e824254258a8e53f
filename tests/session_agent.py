"""The agent's side of a session's protocol, in a test's own process: real Redis and keys, and no command."""

from __future__ import annotations

import hashlib
import time

from tachikoma.identity.signed_messages import SessionAnswer, SessionOffer
from tachikoma.identity.signing import sign, verify
from tachikoma.identity.svid import Svid
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.sessions.frames import Accepted, Data, End, Frame, decode, encode
from tachikoma.sessions.messages import (
    Answer,
    Notice,
    Offer,
    OfferWanted,
    Sealed,
    decode_entry,
    encode_notice,
)
from tachikoma.sessions.sealing import Direction, EphemeralKey, InvalidFrame, Opener, Sealer, epoch_of


class SessionAgent:
    """Takes the input of one session."""

    def __init__(self, redis: Redis, svid: Svid, exec_id: str) -> None:
        self.redis, self.svid, self.exec_id = redis, svid, exec_id
        self.agent = svid.spiffe_id.path.rpartition("/")[2]
        #: What the command got.
        self.taken = bytearray()
        self.ended = False
        #: Frames other than input, in their order.
        self.frames: list[Frame] = []
        self.offers: list[SessionOffer] = []
        #: Offers that are left without an answer.
        self.deaf = 0
        #: True while input is left unaccepted.
        self.stuck = False
        self._position: str | bytes = "0"
        self._epoch = 0
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None

    async def publish(self, notice: Notice) -> None:
        await self.redis.publish(keys.session(self.agent, self.exec_id), encode_notice(notice))

    async def restart(self) -> None:
        """The worker was killed and starts again: its keys are gone, and the spawner's offset is not."""
        self._sealer = self._opener = None
        await self.publish(OfferWanted())

    async def accept(self) -> None:
        """Report the progress of input."""
        assert self._sealer is not None
        frame = Accepted(len(self.taken), echo=True, canonical=False, ended=self.ended)
        await self.publish(Sealed(self._sealer.seal(encode(frame))))

    async def run(self) -> None:
        """Take input until cancelled."""
        key = keys.input(self.agent, self.exec_id)
        while True:
            for _, entries in await self.redis.xread({key: self._position}, count=64, block=200):
                for entry_id, fields in entries:
                    self._position = entry_id
                    await self._take({bytes(name): bytes(value) for name, value in fields.items()})
                    await self.redis.execute_command("XDEL", key, entry_id)

    async def _take(self, fields: dict[bytes, bytes]) -> None:
        entry = decode_entry(fields)
        if isinstance(entry, Offer):
            await self._answer(entry.token)
            return
        assert isinstance(entry, Sealed)
        if self._opener is None or epoch_of(entry.raw) != self._epoch:
            return
        try:
            frame = decode(self._opener.open(entry.raw))
        except InvalidFrame:
            await self.restart()
            return
        if isinstance(frame, Data):
            assert frame.offset <= len(self.taken), "a gap in the input"
            self.taken += frame.data[len(self.taken) - frame.offset :]
            if not self.stuck:
                await self.accept()
        elif isinstance(frame, End):
            assert frame.offset == len(self.taken), "an end before the last byte"
            self.ended = True
            await self.accept()
        else:
            self.frames.append(frame)

    async def _answer(self, token: str) -> None:
        offer = verify(token, SessionOffer, self.svid.bundle, None)
        if self.deaf:
            self.deaf -= 1
            return
        if offer.epoch <= self._epoch:
            return
        self.offers.append(offer)
        key = EphemeralKey()
        answer = sign(
            self.svid,
            SessionAnswer(
                iss=str(self.svid.spiffe_id), iat=int(time.time()), aud=offer.iss, jti=self.exec_id, epoch=offer.epoch,
                offer_sha256=hashlib.sha256(token.encode()).hexdigest(), key=key.public, accepted=len(self.taken),
                ended=self.ended,
            ),
        )  # fmt: skip
        self._sealer, self._opener = key.agree(
            offer.key, token, answer, self.exec_id, offer.epoch, sends=Direction.TO_ORCHESTRATOR
        )
        self._epoch = offer.epoch
        await self.publish(Answer(answer))
