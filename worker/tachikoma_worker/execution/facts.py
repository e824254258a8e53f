"""The facts of a command at its start, from its order and the agent's settings."""

from __future__ import annotations

import time

from tachikoma.vocabulary.clock import now_ms
from tachikoma.vocabulary.limits import WhenFull
from tachikoma.vocabulary.request_rules import DEFAULT_TIMEOUT
from tachikoma_worker.confinement.prepare import Prepared
from tachikoma_worker.execution.context import Context
from tachikoma_worker.execution.interactive import session_facts
from tachikoma_worker.output.records import Facts

__all__ = ["facts_of", "spool_bytes"]


def facts_of(context: Context, prepared: Prepared, order_sha256: str) -> Facts:
    """Return the facts of a command that starts now.

    Args:
        context: the agent.
        prepared: the command.
        order_sha256: SHA-256 of its signed order.
    """
    order, settings = prepared.order, context.settings
    grace = order.grant.kill_grace
    return Facts(
        host=context.host,
        order_sha256=order_sha256,
        requested_by=order.sub,
        reply=order.reply,
        executable=prepared.executable.path,
        started_ms=now_ms(),
        began_ns=time.monotonic_ns(),
        timeout=(order.request.timeout or DEFAULT_TIMEOUT).total_seconds(),
        kill_grace=settings.kill_grace.total_seconds() if grace is None else grace,
        memory=prepared.limits.memory,
        log_bytes=min(order.grant.output.limit or settings.log_bytes, settings.log_bytes),
        waits=order.grant.output.when_full is WhenFull.WAIT,
        wait_seconds=order.grant.output.wait_seconds,
        attached=order.attached,
        session=session_facts(order),
        isolation=prepared.enclosure.report(),
    )


def spool_bytes(context: Context, facts: Facts) -> int:
    """Return the most bytes of output that a command's spool may hold."""
    # A command whose output waits for a reader must not run far ahead of it.
    most = context.settings.spool_bytes
    return min(most, facts.log_bytes) if facts.waits or facts.attached else most
