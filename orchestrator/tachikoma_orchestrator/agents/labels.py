"""The labels that operators bound to agents, as one orchestrator knows them.

Policies, targets and commands use these labels only. What an agent reports about itself is shown, and grants nothing
(`docs/decisions/0043-labels.md`).

The labels of an agent are a message that an orchestrator signed, so write access to Redis is not enough to bind some.
This copy is at most about a second old, and never goes back to an earlier change.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog
from pydantic import TypeAdapter, ValidationError

from tachikoma.errors import AgentUnknown, InvalidRequest, Unavailable
from tachikoma.identity.signed_messages import AgentLabels
from tachikoma.identity.signing import InvalidSignature, sign, verify
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.clock import now_ms
from tachikoma.vocabulary.identifiers import is_identifier
from tachikoma.vocabulary.labels import BoundLabels, LabelChange
from tachikoma.vocabulary.model import describe_validation_error
from tachikoma_orchestrator.agents.refreshed_copy import RefreshedCopy
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.store.scripts import Call, Runner, Script

__all__ = ["ATTEMPTS", "Labels", "checked", "label_words"]

log = structlog.get_logger(__name__)

#: Entries that are read and verified at once. Other calls go on in between.
CHUNK = 100
#: Age from which on labels are signed again, in seconds: their signer may be removed from the trust bundle some day.
SIGN_AGAIN_SECONDS = 12 * 3600
#: Attempts to store a change, if other operators change the labels of the same agent.
ATTEMPTS = 5
#: Longest text of a change in an audit event, in characters.
MAX_REASON = 1000

_LABELS: TypeAdapter[dict[str, str]] = TypeAdapter(BoundLabels)
_NONE: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class _Known:
    """The labels of one agent."""

    claims: AgentLabels
    #: As Redis contained them.
    raw: str


class Labels(RefreshedCopy):
    """One orchestrator's copy of the bound labels in Redis."""

    subject = "labels"

    def __init__(self, redis: Redis, identity: SvidSource) -> None:
        """Prepare an empty copy of the labels.

        Args:
            redis: the connections.
            identity: the orchestrator's own, which signs labels.
        """
        self._redis = redis
        self._identity = identity
        self._runner = Runner(redis)
        self._label = Script("label")
        self._known: dict[str, _Known] = {}
        #: Entries that were refused, by agent, so that each is reported once.
        self._refused: dict[str, str] = {}
        #: Number of the latest change that was read.
        self._place = 0.0

    # --- the copy -----------------------------------------------------------------------------------------------------

    def of(self, agent: str) -> Mapping[str, str]:
        """Return the labels that operators bound to an agent."""
        known = self._known.get(agent)
        return _NONE if known is None else known.claims.labels

    def agents(self) -> list[str]:
        """Return the agents that were ever given labels."""
        return list(self._known)

    async def update(self) -> None:
        """Refresh the copy, and sign old entries again. Raises redis errors."""
        await self.refresh()
        await self._sign_again()

    async def refresh(self) -> None:
        """Read the labels that changed. Raises redis errors."""
        found = await self._redis.zrevrangebyscore(keys.LABELS_CHANGES, "+inf", self._place, withscores=True)
        names = [name for name, _ in found]
        for first in range(0, len(names), CHUNK):
            await self._read(names[first : first + CHUNK])
            await asyncio.sleep(0)
        self._place = max((score for _, score in found), default=self._place)

    async def _read(self, names: Sequence[bytes]) -> None:
        for name, raw in zip(names, await self._redis.hmget(keys.LABELS, names), strict=True):
            if raw is not None:
                self._take(name.decode(errors="replace"), raw.decode("ascii", "replace"))

    def _take(self, agent: str, raw: str) -> None:
        """Use an entry if an orchestrator signed it and it is not older than the known one."""
        known = self._known.get(agent)
        if (known is not None and known.raw == raw) or self._refused.get(agent) == raw:
            return
        svid = self._identity.current()
        try:
            claims = verify(raw, AgentLabels, svid.bundle, svid.spiffe_id, kept=True)
            if claims.agent != agent:
                raise InvalidSignature(f"is of {claims.agent}")
        except InvalidSignature as error:
            self._refused[agent] = raw
            log.error("labels.refused", agent=agent[:64], reason=f"an entry {error}"[:300])
            return
        if known is not None and claims.at_ms < known.claims.at_ms:
            log.error("labels.refused", agent=agent, reason="an entry is older than the labels that are known")
            return
        self._known[agent] = _Known(claims, raw)

    # --- changes ------------------------------------------------------------------------------------------------------

    async def change(self, agent: str, change: LabelChange, by: Peer) -> None:
        """Change the labels of an agent. Safe to repeat.

        Raises:
            InvalidRequest: the labels are not valid.
            AgentUnknown: there is no such agent.
            Unavailable: other changes were always quicker, or the replicas did not confirm this one.
        """
        if not is_identifier(agent):
            raise _unknown(agent)
        if not change.bind and not change.remove:
            raise InvalidRequest("name at least one label to bind or to remove")
        for _ in range(ATTEMPTS):
            stored = await self.stored(agent)
            labels = change.applied_to(self.of(agent))
            call = self._call(self.signed(agent, labels, by), stored, agent=agent, by=str(by), reason=change.words())
            outcome = await self._runner.run(call, confirmed=True)
            if outcome == b"UNKNOWN":
                raise _unknown(agent)
            if outcome == b"DONE":
                await self.stored(agent)
                log.info("agent.labelled", agent=agent, by=str(by), change=change.words())
                return
        raise Unavailable(f"the labels of {agent} change all the time; try again", metadata={"dependency": "redis"})

    def signed(self, agent: str, labels: Mapping[str, str], by: Peer | str) -> str:
        """Return labels in their signed form, as the latest change of an agent's.

        Raises:
            InvalidRequest: the labels are not valid.
        """
        known = self._known.get(agent)
        at_ms = now_ms() if known is None else max(now_ms(), known.claims.at_ms + 1)
        return self._sign(agent, checked(labels), str(by), at_ms)

    def _sign(self, agent: str, labels: dict[str, str], by: str, at_ms: int) -> str:
        svid = self._identity.current()
        claims = AgentLabels(
            iss=str(svid.spiffe_id), iat=int(time.time()), agent=agent, labels=labels, at_ms=at_ms, by=by
        )
        return sign(svid, claims)

    async def stored(self, agent: str) -> str:
        """Return the entry of an agent in Redis as it is, and use it if it is valid."""
        raw = await self._redis.hget(keys.LABELS, agent)
        if raw is None:
            return ""
        text = raw.decode("ascii", "replace")
        self._take(agent, text)
        return text

    def _call(self, signed: str, stored: str, *, agent: str, by: str = "", reason: str = "") -> Call:
        return self._label(
            keys=[keys.LABELS, keys.LABELS_CHANGES, keys.AUDIT, keys.AGENTS, keys.JOINED, keys.enrolment(agent)],
            args={"agent": agent, "by": by, "reason": reason[:MAX_REASON]},
            payloads=[signed, stored],
        )

    async def _sign_again(self) -> None:
        """Sign old entries again, some at a time."""
        oldest = time.time() - SIGN_AGAIN_SECONDS
        old = [agent for agent, known in self._known.items() if known.claims.iat < oldest]
        for agent in old[:CHUNK]:
            known = self._known[agent]
            claims = known.claims
            fresh = self._sign(agent, claims.labels, claims.by, claims.at_ms)
            await self._runner.run(self._call(fresh, known.raw, agent=agent))
            await self.stored(agent)

    async def write_again(self, redis: Redis) -> None:
        """Write the labels again that Redis lost. Raises redis errors.

        Args:
            redis: connections that need not wait for the new life of Redis.
        """
        runner = Runner(redis)
        self._place = 0.0
        for agent in list(self._known):
            raw = await redis.hget(keys.LABELS, agent)
            stored = "" if raw is None else raw.decode("ascii", "replace")
            if stored:
                self._take(agent, stored)
            if stored != self._known[agent].raw:
                log.warning("labels.written_again", agent=agent)
                await runner.run(self._call(self._known[agent].raw, stored, agent=agent))


def checked(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels if they may be bound. Raises InvalidRequest if not."""
    try:
        return _LABELS.validate_python(dict(labels))
    except ValidationError as error:
        raise InvalidRequest(f"labels: {describe_validation_error(error)}") from None


def label_words(labels: Mapping[str, str]) -> str:
    """Return labels as people write them, at most `MAX_REASON` characters."""
    return " ".join(f"{name}={value}" for name, value in labels.items())[:MAX_REASON]


def _unknown(agent: str) -> AgentUnknown:
    return AgentUnknown(f"there is no agent {agent[:80]!r}", metadata={"agent": agent[:80]})
