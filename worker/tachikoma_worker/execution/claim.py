"""The claim: the step that lets exactly one delivery of an order start its command, in the journal and in Redis."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import structlog
from redis.exceptions import RedisError

from tachikoma.config import stages
from tachikoma.config.retry import Backoff
from tachikoma.config.stages import Stage
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma_worker.execution.cancel import as_token
from tachikoma_worker.execution.context import Context
from tachikoma_worker.execution.journal import JournalError

__all__ = ["Claim", "ClaimOutcome", "claim", "prevent_start"]

log = structlog.get_logger(__name__)

#: Lifetime of a claim. It exceeds the life of every order, which is its queue timeout and the clock skew.
CLAIM_SECONDS = 15 * 24 * 3600
#: First and longest delay between attempts while Redis is unavailable.
RETRY_SECONDS = (0.05, 2.0)
#: Value of a claim that lets no delivery start.
REJECTED = "rejected"


class ClaimOutcome(StrEnum):
    """Result of a claim."""

    #: This delivery may start the command, and no other delivery ever may.
    GRANTED = "granted"
    #: An earlier delivery to this agent was granted.
    REPEATED = "repeated"
    #: The agent claimed the execution for another order of the same id, whose record the ledger lost.
    OTHER_ORDER = "other order"
    #: The orchestrator fenced the execution, or another journal claimed it.
    HELD_ELSEWHERE = "held elsewhere"


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim and the cancel that was found beside it."""

    outcome: ClaimOutcome
    #: Token of a cancel, not yet verified; None if there is none.
    cancel: str | None = None


@dataclass(frozen=True, slots=True)
class _RedisClaim:
    granted: bool
    cancel: str | None


async def claim(context: Context, exec_id: str, order_sha256: str, order: str) -> Claim:
    """Claim an execution for this delivery.

    The journal comes first. A worker that is killed between the two steps then reports the execution as lost. In the
    other order the next worker would not know of the execution.

    The row reaches the disk while Redis takes the claim. A power cut in between may leave a claim without a row: the
    command did not start, its agent does not hold it, and the reaper reports it as LOST (docs/decisions/0053).

    Args:
        context: the agent.
        exec_id: the execution.
        order_sha256: SHA-256 of its signed order.
        order: the signed order itself.

    Raises:
        JournalError: the claim cannot be stored safely on disk, so the command must not start.
    """
    journal_error: JournalError | None = None
    first = False
    row = context.journal.claim(exec_id, order_sha256, order)
    try:
        first = await row.written
    except JournalError as error:
        journal_error = error
    stages.passed(Stage.JOURNAL)
    in_redis = await _claim_in_redis(context, exec_id)
    if not in_redis.granted:
        log.info("order.not_ours", id=exec_id)
        if first:
            # Neither a later run of the worker nor a later life of Redis has anything to hear about it.
            context.journal.withdraw(exec_id, order_sha256)
        return Claim(ClaimOutcome.HELD_ELSEWHERE)
    if journal_error is not None:
        raise journal_error
    await row
    return (
        Claim(ClaimOutcome.GRANTED, in_redis.cancel) if first else await _claimed_before(context, exec_id, order_sha256)
    )


async def _claimed_before(context: Context, exec_id: str, order_sha256: str) -> Claim:
    """Return the claim of an order whose execution is in the journal already."""
    if not await context.journal.is_claimed_for(exec_id, order_sha256):
        log.warning("order.of_claimed_id", id=exec_id)
        return Claim(ClaimOutcome.OTHER_ORDER)
    log.info("order.repeated", id=exec_id)
    return Claim(ClaimOutcome.REPEATED)


async def prevent_start(context: Context, exec_id: str) -> None:
    """Change the claim so that no copy of the order starts later. Does nothing if Redis is unavailable.

    Called when the journal, which would prevent it as well, cannot be relied on.
    """
    try:
        await context.redis.set(keys.claim(context.agent, exec_id), REJECTED, ex=CLAIM_SECONDS)
    except (RedisError, OSError) as error:
        log.warning("claim.not_rejected", id=exec_id, error=str(error))


async def _claim_in_redis(context: Context, exec_id: str) -> _RedisClaim:
    """Set the claim in Redis if it is not set, and return whether this agent's journal holds it."""
    backoff = Backoff(*RETRY_SECONDS)
    while True:
        try:
            holder, cancel = await _set_and_read(context, exec_id)
        except (RedisError, OSError) as error:
            # It is unknown whether the claim was set; repeating it is safe.
            log.warning("claim.waiting", id=exec_id, error=str(error))
            await backoff.wait()
            continue
        if isinstance(holder, Exception):
            # Neither agent nor orchestrator stores such a value, and it would never expire.
            log.warning("claim.unreadable", id=exec_id, error=str(holder))
            return _RedisClaim(False, None)
        return _RedisClaim(holder == context.journal.boot.encode(), as_token(cancel))


async def _set_and_read(context: Context, exec_id: str) -> tuple[bytes | Exception | None, bytes | None]:
    """Set the claim if it is not set. Return its holder, and the stored cancel.

    Returns:
        As holder an exception if the claim has another type than a string; a cancel of another type counts as none.

    Raises:
        RedisError, OSError: Redis is unavailable, or refuses a command.
        JournalError: a new life of Redis cannot be remembered.
    """
    key, boot = keys.claim(context.agent, exec_id), context.journal.boot.encode()
    async with context.redis.pipeline(transaction=False) as pipe:
        pipe.set(key, boot, nx=True, get=True, ex=CLAIM_SECONDS)
        # A life may have begun on this connection, if Redis lost keys without a restart. Another type counts as none.
        pipe.mget(keys.cancel(context.agent, exec_id), keys.LIFE)
        holder, found = await pipe.execute(raise_on_error=False)
    for answer in (holder, found):
        if isinstance(answer, Exception) and not wrong_type(answer):
            raise answer
    cancel, life = found
    if life is not None:
        await context.lives.learn(life.decode("ascii", "replace"))
    return boot if holder is None else holder, cancel
