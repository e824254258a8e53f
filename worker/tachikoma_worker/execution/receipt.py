"""The receipt: the agent's signed statement about the result of an execution, and its delivery as the Celery result.

A receipt is always delivered. A receipt that cannot be made or signed as it is becomes a shorter one that says LOST and
why; Redis is asked again until it is available.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import structlog
from redis.exceptions import RedisError, ResponseError

from tachikoma.config import stages
from tachikoma.config.retry import Backoff
from tachikoma.config.stages import Stage
from tachikoma.identity.signed_messages import OutputDigest, Receipt
from tachikoma.identity.signing import InvalidSignature, sign, verify
from tachikoma.identity.svid import Svid
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.streams.frames import STDERR, STDOUT
from tachikoma.vocabulary.clock import now_ms
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker.execution.context import Context
from tachikoma_worker.execution.verdict import describe
from tachikoma_worker.output.excerpt import Excerpt
from tachikoma_worker.output.output_log import OutputLog
from tachikoma_worker.output.records import Ending

__all__ = ["EarlierReceipt", "Output", "Report", "deliver", "make_report"]

log = structlog.get_logger(__name__)

#: First and longest delay between attempts to deliver.
RETRY_SECONDS = (0.05, 2.0)
#: Attempts in which the agent itself may fail before it reports LOST instead of the ending.
FAITHFUL_ATTEMPTS = 3


class EarlierReceipt(StrEnum):
    """The possibility that Redis already contains a receipt of the same execution."""

    #: This worker started the execution and has not tried to deliver yet.
    IMPOSSIBLE = "impossible"
    #: An earlier worker, or an earlier attempt whose answer was lost, may have stored one. It is then retained and
    #: published again: the ledger must accept only the receipt that belongs to the stored output.
    POSSIBLE = "possible"


@dataclass(frozen=True, slots=True)
class Output:
    """The output of an execution as its receipt describes it."""

    #: Number of the last chunk.
    chunks: int
    stdout_digest: OutputDigest
    stderr_digest: OutputDigest
    #: The retained bytes of each stream.
    stdout: bytes = b""
    stderr: bytes = b""

    @classmethod
    def of(cls, output: OutputLog | None) -> Output:
        """Return the output in a log, or no output for a command that never started."""
        excerpts = output.excerpts if output else {STDOUT: Excerpt(0), STDERR: Excerpt(0)}
        out, err = excerpts[STDOUT], excerpts[STDERR]
        return cls(output.seq if output else 0, out.digest(), err.digest(), out.content(), err.content())

    @classmethod
    def unknown(cls) -> Output:
        """Return the output of a command about which nothing is known any more."""
        nothing = OutputDigest(total_bytes=0, sha256="", truncated=True, excerpt_sha256=hashlib.sha256().hexdigest())
        return cls(0, nothing, nothing)


@dataclass(frozen=True, slots=True)
class Report:
    """An unsigned receipt, and the output that is delivered with it."""

    receipt: Receipt
    stdout: bytes = b""
    stderr: bytes = b""


def make_report(context: Context, exec_id: str, order_sha256: str, ending: Ending, output: Output) -> Report:
    """Return the report of an ending.

    Args:
        context: the agent.
        exec_id: the execution.
        order_sha256: SHA-256 of its signed order.
        ending: its final state.
        output: its output.
    """
    receipt = Receipt(
        iss=str(context.identity.current().spiffe_id),
        iat=int(time.time()),
        jti=exec_id,
        order_sha256=order_sha256,
        state=ending.state,
        exit_code=ending.exit_code,
        signal=ending.signal,
        error=ending.error,
        executable=ending.executable,
        started_ms=ending.started_ms,
        ended_ms=now_ms(),
        duration_us=ending.duration_us,
        chunks=output.chunks,
        stdout=output.stdout_digest,
        stderr=output.stderr_digest,
        usage=ending.usage,
        kill=ending.kill,
        isolation=ending.isolation,
    )
    return Report(receipt, output.stdout, output.stderr)


async def deliver(
    context: Context, exec_id: str, order_sha256: str, ending: Ending, output: Output, earlier: EarlierReceipt, *,
    reply: int | None = None,
) -> None:  # fmt: skip
    """Sign an ending and store it as the Celery result, in Celery's own encoding.

    Repeats until it has succeeded: while Redis is unavailable, and with an ending that says less if the agent itself
    fails in it. No receipt is ever overwritten, not even by an attempt that arrives late.

    Args:
        context, exec_id, order_sha256, ending, output: as `make_report` takes them.
        earlier: whether a receipt may be stored already.
        reply: the lane of the orchestrator that waits; None if it is not known, and the stored result is found later.
    """
    result: _SignedResult | None = None
    failures, backoff = 0, Backoff(*RETRY_SECONDS)
    while True:
        store = _store_first if earlier is EarlierReceipt.IMPOSSIBLE else _store_unless_delivered
        # Whatever happens in this attempt, it may have arrived.
        earlier = EarlierReceipt.POSSIBLE
        try:
            if result is None:
                result = _SignedResult(context, make_report(context, exec_id, order_sha256, ending, output), reply)
            stages.passed(Stage.RECEIPT)
            if await store(context, result):
                break
        except (RedisError, OSError) as error:
            log.warning("receipt.waiting", id=exec_id, error=str(error))
            await backoff.wait()
        except Exception as error:
            log.exception("receipt.failed", id=exec_id)
            result, failures = None, failures + 1
            if failures == FAITHFUL_ATTEMPTS:
                ending, output = _shortened(ending, error), Output.unknown()
            await backoff.wait()
    stages.passed(Stage.DELIVER)
    context.journal.finish(exec_id, order_sha256, result.signed_text)


def _shortened(ending: Ending, error: Exception) -> Ending:
    """Return a shorter ending, which is reported if the agent always fails to report the complete one."""
    return Ending(
        state=ExecState.LOST,
        error=f"the agent failed to report {ending.state}: {describe(error)}",
        started_ms=ending.started_ms,
    )


class _SignedResult:
    """A report as the value of a Celery result, signed by the agent's current identity.

    Celery's status is SUCCESS for every ending: the task delivered a result, and `AsyncResult.get` returns it instead
    of raising (docs/decisions/0004).
    """

    def __init__(self, context: Context, report: Report, reply: int | None) -> None:
        self._context = context
        self.receipt = report.receipt
        self.reply = reply
        self._signer: Svid | None = None
        #: The JSON text as it was signed last; empty before that.
        self.signed_text = ""
        self._meta: dict[str, Any] = {
            "status": "SUCCESS",
            "result": {
                "id": self.receipt.jti,
                "agentId": context.agent,
                "state": self.receipt.state,
                "exitCode": self.receipt.exit_code,
                "error": self.receipt.error,
                "stdout": base64.b64encode(report.stdout).decode(),
                "stderr": base64.b64encode(report.stderr).decode(),
            },
            "traceback": None,
            "children": [],
            "date_done": datetime.now(UTC).isoformat(),
            "task_id": keys.task_id(context.agent, self.receipt.jti),
        }

    def text(self) -> str:
        """Return the JSON text. It is signed again if the identity has changed since, as while Redis is unavailable."""
        svid = self._context.identity.current()
        if svid is not self._signer:
            self._meta["result"]["receipt"] = sign(svid, self.receipt.model_copy(update={"iat": int(time.time())}))
            self._signer, self.signed_text = svid, json.dumps(self._meta)
        return self.signed_text


async def _store_first(context: Context, result: _SignedResult) -> bool:
    """Store and publish the first result of an execution, in one round trip.

    Returns:
        False if a result is stored already.
    """
    text = result.text()
    async with context.redis.pipeline(transaction=False) as pipe:
        pipe.set(_key(context, result), text, ex=_retention_seconds(context), nx=True)
        _publish(pipe, context, result, text)
        answers = await pipe.execute()
    return bool(answers[0])


async def _store_unless_delivered(context: Context, result: _SignedResult) -> bool:
    """Publish the receipt that is stored already, or store and publish this one. Returns True."""
    key, text, seconds = _key(context, result), result.text(), _retention_seconds(context)
    stored = await _set_and_return_stored(lambda: context.redis.set(key, text, ex=seconds, nx=True, get=True))
    if stored is not None and not _is_same_receipt(context, stored, result.receipt):
        # A value that this agent did not sign is no receipt and is replaced.
        stored = None
        await context.redis.set(key, text, ex=seconds)
    async with context.redis.pipeline(transaction=False) as pipe:
        _publish(pipe, context, result, stored or text)
        await pipe.execute()
    return True


async def _set_and_return_stored(store: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
    """Return the value that was stored before; an empty one if it has another type than a string."""
    try:
        return await store()
    except ResponseError as error:
        if not wrong_type(error):
            raise
        return b""


def _publish(pipe: Any, context: Context, result: _SignedResult, text: str | bytes) -> None:
    """Queue the commands that publish a result and let the output expire with it.

    It is published for the orchestrator that sent the order, and on the channel where Celery's `AsyncResult` listens.
    """
    exec_id = result.receipt.jti
    if result.receipt.chunks or result.receipt.stdout.truncated:
        # Not for a command without output, which has no log. How much a truncated one has may not be known.
        pipe.expire(keys.output(context.agent, exec_id), _retention_seconds(context))
    if result.reply is not None:
        pipe.publish(keys.report(context.agent, result.reply, exec_id), text)
    pipe.publish(_key(context, result), text)


def _key(context: Context, result: _SignedResult) -> str:
    return keys.result(context.agent, result.receipt.jti)


def _retention_seconds(context: Context) -> int:
    return round(context.settings.output_retention.total_seconds())


def _is_same_receipt(context: Context, raw: bytes, receipt: Receipt) -> bool:
    """Return whether a Celery result contains a receipt that this agent signed for the same order."""
    svid = context.identity.current()
    try:
        token = json.loads(raw)["result"]["receipt"]
        stored = verify(token, Receipt, svid.bundle, svid.spiffe_id, kept=True)
    except (InvalidSignature, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    return (stored.jti, stored.order_sha256) == (receipt.jti, receipt.order_sha256)
