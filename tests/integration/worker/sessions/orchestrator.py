"""An orchestrator in the test's hands: offers, sealed frames and notices, over the real Redis."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from local_agent import AGENT, DOMAIN, REQUESTER, LocalAgent
from patience import PATIENCE_SECONDS
from tachikoma.identity.signed_messages import SessionAnswer, SessionOffer, WorkOrder
from tachikoma.identity.signing import sign, verify
from tachikoma.identity.spiffe import agent_id
from tachikoma.identity.svid import Svid
from tachikoma.redis import keys
from tachikoma.redis.commands import PubSub, Redis
from tachikoma.sessions.frames import MAX_DATA_BYTES, Accepted, Data, Frame, decode, encode
from tachikoma.sessions.messages import Answer, Entry, Notice, Offer, OfferWanted, Sealed, decode_notice, encode_entry
from tachikoma.sessions.sealing import Direction, EphemeralKey, Opener, Sealer
from tachikoma.streams.frames import FIELD
from tachikoma.streams.frames import Frame as OutputFrame


class Orchestrator:
    """One orchestrator with a subscription to a session, and one caller that it serves."""

    def __init__(self, agent: LocalAgent, order: WorkOrder, redis: Redis, subscription: PubSub) -> None:
        self.agent = agent
        self.order = order
        self.token = sign(agent.orchestrator, order)
        self.accepted = Accepted(0)
        self.epoch = 0
        self.answer: SessionAnswer | None = None
        self._redis = redis
        self._subscription = subscription
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None

    @property
    def input_key(self) -> str:
        return keys.input(AGENT, self.order.jti)

    async def add(self, entry: Entry) -> None:
        await self._redis.xadd(self.input_key, encode_entry(entry))

    def offer(self, key: EphemeralKey, signer: Svid | None = None, **values: Any) -> str:
        now = int(time.time())
        fields = {
            "iss": str((signer or self.agent.orchestrator).spiffe_id), "iat": now, "exp": now + 30,
            "aud": str(agent_id(DOMAIN, AGENT)), "sub": REQUESTER, "jti": self.order.jti, "epoch": self.epoch,
            "order_sha256": hashlib.sha256(self.token.encode()).hexdigest(), "key": key.public,
        }  # fmt: skip
        return sign(signer or self.agent.orchestrator, SessionOffer(**{**fields, **values}))

    async def attach(self) -> SessionAnswer:
        """Begin the next epoch."""
        self.epoch += 1
        key = EphemeralKey()
        offer = self.offer(key)
        await self.add(Offer(offer))
        while True:
            notice = await self.notice()
            if not isinstance(notice, Answer):
                continue
            svid = self.agent.context.identity.current()
            answer = verify(notice.token, SessionAnswer, svid.bundle, agent_id(DOMAIN, AGENT))
            if answer.epoch == self.epoch:
                break
        assert answer.offer_sha256 == hashlib.sha256(offer.encode()).hexdigest()
        self._sealer, self._opener = key.agree(
            answer.key, offer, notice.token, self.order.jti, self.epoch, sends=Direction.TO_AGENT
        )
        self.answer = answer
        return answer

    def seal(self, frame: Frame) -> bytes:
        assert self._sealer is not None
        return self._sealer.seal(encode(frame))

    async def send(self, frame: Frame) -> None:
        await self.add(Sealed(self.seal(frame)))

    async def type(self, content: bytes, offset: int | None = None) -> None:
        """Send input from an offset on, or from the accepted one, in frames."""
        begin = self.accepted.offset if offset is None else offset
        for position in range(0, len(content), MAX_DATA_BYTES):
            await self.send(Data(begin + position, content[position : position + MAX_DATA_BYTES]))

    async def notice(self) -> Notice:
        """Return the next notice; a sealed one also counts as progress if its keys are those of the epoch."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                message = await self._subscription.get_message(timeout=PATIENCE_SECONDS)
                if message is not None and message["type"] == "message":
                    break
        notice = decode_notice(message["data"])
        if isinstance(notice, Sealed) and self._opener is not None and notice.raw[:4] == self.epoch.to_bytes(4, "big"):
            frame = decode(self._opener.open(notice.raw))
            assert isinstance(frame, Accepted)
            self.accepted = frame
        return notice

    async def until(self, condition: Callable[[Accepted], bool]) -> Accepted:
        """Wait for a progress report."""
        while not condition(self.accepted):
            await self.notice()
        return self.accepted

    async def until_wanted(self) -> None:
        """Wait until the agent asks for an offer."""
        while not isinstance(await self.notice(), OfferWanted):
            continue

    async def output(self) -> bytes:
        """Return all output so far."""
        entries = await self._redis.xrange(keys.output(AGENT, self.order.jti))
        return b"".join(OutputFrame.decode(fields[FIELD]).data for _, fields in entries)

    async def until_output(self, expected: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while expected not in (output := await self.output()):  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.01)
        return output


@asynccontextmanager
async def orchestrator(
    agent: LocalAgent, redis: Redis, subscriptions: Redis, *command: str, tty: bool = True, **fields: Any
) -> AsyncIterator[Orchestrator]:
    """An orchestrator that subscribes to the session of a command before that starts."""
    order = agent.order(*command, interactive=True, tty=tty, **fields)
    subscription = subscriptions.pubsub()
    await subscription.subscribe(keys.session(AGENT, order.jti))
    message = await subscription.get_message(timeout=PATIENCE_SECONDS)
    assert message is not None
    assert message["type"] == "subscribe"
    try:
        yield Orchestrator(agent, order, redis, subscription)
    finally:
        await subscription.aclose()
