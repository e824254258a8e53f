"""Entries of the trail that are not events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from audit_chain import BIG
from tachikoma.audit.chain import read_events
from tachikoma.audit.ocsf import to_ocsf
from tachikoma.client import wire
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.audit.sinks.file import FileSink
from tachikoma_orchestrator.audit.sinks.syslog import syslog_message
from tachikoma_orchestrator.audit.trail import AuditTrail

GENUINE = {"seq": "7", "event": "started", "id": "x", "authorized": "1"}


NO_EVENTS: dict[str, dict[Any, Any]] = {
    "no field of ours": {"x": "y"},
    "no number": {name: value for name, value in GENUINE.items() if name != "seq"},
    "no code": {"seq": "7"},
    "a number that is none": GENUINE | {"seq": "seven"},
    "a number of nothing": GENUINE | {"seq": "0"},
    "a number below": GENUINE | {"seq": "-7"},
    "a number too large": GENUINE | {"seq": "9" * 30},
    "a number without end": GENUINE | {"seq": "9" * 5000},
    "a code that is none": GENUINE | {"event": "started\n<134>1 forged"},
    "no text": GENUINE | {"reason": b"\xff\xfe"},
    "no name": GENUINE | {b"\xff": "x"},
    "an exit code too large": GENUINE | {"exit_code": "9" * 10},
    "a time too late": GENUINE | {"start_ms": "9" * 18},
    "a duration too long": GENUINE | {"duration_us": "9" * 18},
    "a duration below": GENUINE | {"duration_us": "-1"},
    "no request": GENUINE | {"request": "[" * 5000},
    "a request without a command": GENUINE | {"request": '{"command":[]}'},
    "a request without end": GENUINE | {"request": '{"command":["x"],"timeout":NaN}'},
    "a request with too much": GENUINE | {"request": '{"command":["x"],"stdinBytes":-1}'},
    "more than a line": GENUINE | {"reason": "\n" * 600_000},
}


@pytest.mark.parametrize("fields", NO_EVENTS.values(), ids=NO_EVENTS)
async def test_what_is_no_event_is_shown_as_that_by_everybody(
    redis: Redis, fields: dict[Any, Any], tmp_path: Path, identity: FileSvidSource
) -> None:
    trail = AuditTrail(redis)
    await trail.append(AuditCode.POLICY_CHANGED, reason="x")
    cursor = (await redis.xadd(keys.AUDIT, fields)).decode()
    await trail.append(AuditCode.POLICY_CHANGED, reason="x")
    found = (await trail.read(after="", limit=10)).events
    assert [(event.event, event.seq) for event in found] == [
        ("policy_changed", 1), ("trail_altered", 0), ("policy_changed", 2)
    ]  # fmt: skip
    assert found == (await trail.read(after="0-0", limit=10)).events
    told = found[1]
    assert (told.cursor, told.id, told.authorized) == (cursor, "", False)
    assert told.reason.startswith("this entry of the trail in Redis is not an event: ")
    assert len(told.reason) < 300
    # As it goes over gRPC, to a SIEM and to syslog, and as it is in a file.
    assert wire.audit_from_pb(wire.audit_to_pb(told)) == told
    assert to_ocsf(told)["status_code"] == "trail_altered"
    assert syslog_message(told, "host").startswith(b"<108>1 ")
    sink = FileSink(tmp_path / "audit.jsonl", identity, rotate_bytes=BIG)
    sink.send(found)
    sink.close()
    assert list(read_events(tmp_path)) == found


async def test_an_event_of_any_time_can_be_told(redis: Redis) -> None:
    """Whoever owns Redis also chooses the place, which says the time; nothing can come behind the last there is."""
    for cursor in ("1-1", f"{2**63}-1", f"{2**64 - 1}-{2**64 - 1}"):
        await redis.xadd(keys.AUDIT, GENUINE, id=cursor)
    events = (await AuditTrail(redis).read(after="", limit=10)).events
    assert [event.event for event in events] == ["started", "trail_altered", "trail_altered"]
    assert [wire.audit_from_pb(wire.audit_to_pb(event)) for event in events] == events
