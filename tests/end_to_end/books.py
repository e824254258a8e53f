"""Compares the books of a stack: ledger, audit trail and audit log must tell the same, whatever a test did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from contextlib import suppress
from itertools import pairwise

from redis import Redis
from redis.exceptions import RedisError
from support import wait_until

from tachikoma.audit.chain import read_events
from tachikoma.audit.verification import verify_files
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.errors import ConfigurationError
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.spiffe import service_id
from tachikoma.redis import keys
from tachikoma.vocabulary.audit import AuditCode, ExecAuditLog
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.audit.entries import parse

__all__ = ["compare_books", "discrepancies"]

#: Everything at one moment: records, and the trail.
_SNAPSHOT = """
local records = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  if redis.call('TYPE', key).ok == 'hash' then
    records[#records + 1] = {key, redis.call('HGETALL', key)}
  end
end
return {records, redis.call('XRANGE', KEYS[1], '-', '+')}
"""
#: The event of each state that an execution comes into.
_EVENTS = {
    ExecState.PENDING_APPROVAL: AuditCode.APPROVAL_REQUESTED,
    ExecState.STARTED: AuditCode.STARTED,
    **{state: AuditCode(state.lower()) for state in ExecState if state.terminal},
}
_MOVES = {*_EVENTS.values(), AuditCode.ADMITTED, AuditCode.APPROVED}
#: May stand between them; each at most so often.
_BESIDE = {AuditCode.DISPATCHED: 1, AuditCode.LATE_RECEIPT: 1}
#: Events of a request that never became an execution, or was not this one; and of what somebody put where it does not
#: belong.
_REFUSALS = {
    AuditCode.RECEIPT_REFUSED, AuditCode.RECORD_ALTERED,
    AuditCode.DENIED, AuditCode.LIMITED, AuditCode.REFUSED, AuditCode.MALFORMED,
    AuditCode.APPROVAL_REFUSED, AuditCode.CANCEL_REQUESTED,
    AuditCode.SCHEDULE_RUN, AuditCode.SCHEDULE_MISSED,
}  # fmt: skip
_ENDS = {AuditCode(state.lower()) for state in ExecState if state.terminal}


def compare_books(stack: Stack, hurt: Set[str] = frozenset()) -> None:
    """Fail when they do not tell the same. Says nothing of a stack whose Redis is gone.

    Args:
        stack: the stack.
        hurt: executions whose records were lost or altered, so that ledger and trail may differ about them.
    """
    if not (stack.redis.alive and stack.redis_url):
        return
    with Redis.from_url(stack.redis_admin_url) as redis:
        try:
            raw_records, raw_trail = redis.eval(_SNAPSHOT, 1, keys.AUDIT, keys.execution("*"))  # type: ignore[misc]
        except RedisError:
            return
    records = {
        key.decode().removeprefix(keys.execution("")): dict(zip(fields[::2], fields[1::2], strict=True))
        for key, fields in raw_records
    }
    trail = [parse((cursor, dict(zip(fields[::2], fields[1::2], strict=True)))) for cursor, fields in raw_trail]
    # What a test put there is no event, and has no number; one of ours that could not be read would leave a hole.
    trail = [event for event in trail if event.seq]
    found = discrepancies(records, trail, hurt)
    if stack.orchestrator.alive:
        found += _log_discrepancies(stack, trail)
    assert not found, "the books disagree:\n" + "\n".join(found)


def discrepancies(
    records: dict[str, dict[bytes, bytes]], trail: list[ExecAuditLog], hurt: Set[str] = frozenset()
) -> list[str]:
    """What ledger and trail tell differently about all executions but the hurt ones."""
    found = [
        f"event {event.seq} stands behind event {before.seq}"
        for before, event in pairwise(trail)
        if event.seq != before.seq + 1
    ]
    if trail and trail[0].seq != 1:
        # Its beginning is past its retention.
        return found
    by_id: dict[str, list[ExecAuditLog]] = defaultdict(list)
    for event in trail:
        if event.id:
            by_id[event.id].append(event)
    for exec_id, record in records.items():
        if exec_id not in hurt:
            found += _execution(exec_id, record, by_id[exec_id])
    for exec_id, events in by_id.items():
        if exec_id in hurt:
            continue
        codes = [AuditCode(event.event) for event in events]
        if exec_id not in records and not _ENDS & set(codes) and not set(codes) <= _REFUSALS:
            found.append(f"{exec_id}: has events and no record: {', '.join(codes)}")
    return found


def _execution(exec_id: str, record: dict[bytes, bytes], events: list[ExecAuditLog]) -> list[str]:
    states = [ExecState(step.split(" ")[0]) for step in record[b"history"].decode().split(";")]
    expected = []
    for before, state in zip([None, *states], states, strict=False):
        if state is ExecState.QUEUED:
            expected.append(AuditCode.ADMITTED if before is None else AuditCode.APPROVED)
        else:
            expected.append(_EVENTS[state])
    codes = [AuditCode(event.event) for event in events]
    moves = [code for code in codes if code in _MOVES]
    found = []
    if moves != expected:
        found.append(f"{exec_id}: is recorded as {', '.join(states)}, but audited as {', '.join(codes)}")
    if states[-1] != record[b"state"].decode():
        found.append(f"{exec_id}: is {record[b'state'].decode()}, but last became {states[-1]}")
    for code, most in _BESIDE.items():
        if codes.count(code) > most:
            found.append(f"{exec_id}: {codes.count(code)} events {code}")
    if AuditCode.STARTED in codes and AuditCode.DISPATCHED not in codes[: codes.index(AuditCode.STARTED)]:
        found.append(f"{exec_id}: started without having been dispatched: {', '.join(codes)}")
    for event in events:
        if event.event in _REFUSALS:
            continue
        if event.agent_id != record[b"agent"].decode():
            found.append(f"{exec_id}: {event.event} names the agent {event.agent_id}")
        if event.requested_by != record[b"requested_by"].decode():
            found.append(f"{exec_id}: {event.event} names {event.requested_by} as its requester")
        if not event.authorized:
            found.append(f"{exec_id}: {event.event} is not authorised")
    return found


def _log_discrepancies(stack: Stack, trail: list[ExecAuditLog]) -> list[str]:
    """What the audit log tells differently from the trail."""
    path = stack.data / "audit"
    last = trail[-1].seq if trail else 0
    logged: dict[int, ExecAuditLog] = {}

    def caught_up() -> bool:
        # The last line may be half written.
        with suppress(ConfigurationError):
            logged.update({event.seq: event for event in read_events(path)})
        return last in logged or not trail

    wait_until(caught_up, "the audit log has every event")
    found = [f"event {event.seq} is another one in the audit log" for event in trail if logged.get(event.seq) != event]
    bundle = FileSvidSource(stack.identity("user")).current().bundle
    report = verify_files(path, bundle, service_id(TRUST_DOMAIN, "orchestrator"))
    return found + [str(finding) for finding in report.findings]
