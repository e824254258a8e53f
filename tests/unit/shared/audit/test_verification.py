"""The verification finds every change of an audit log, and nothing else."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit_chain import chain, event, events, verified
from tachikoma.audit.chain import CHECKPOINT_EVENTS, FIRST_PREV, line_digest
from tachikoma.audit.verification import MAX_FINDINGS, Report
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.signed_messages import AuditCheckpoint
from tachikoma.identity.signing import sign


@pytest.fixture(scope="session")
def genuine(identity: FileSvidSource) -> list[bytes]:
    return chain(identity, events(1, 30), every=10)


def tampered(path: Path, lines: list[bytes], identity: FileSvidSource, *heads: str) -> Report:
    path.write_bytes(b"".join(lines))
    return verified(path, identity, *heads)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_every_change_is_found(
    data: st.DataObject, tmp_path: Path, genuine: list[bytes], identity: FileSvidSource
) -> None:
    """Any one line edited, deleted, inserted, doubled or moved, with a head kept elsewhere."""
    path, lines = tmp_path / "audit.jsonl", list(genuine)
    head = json.loads(genuine[-1])["checkpoint"]
    assert tampered(path, lines, identity, head).findings == []
    place = data.draw(st.integers(0, len(lines) - 1))
    kind = data.draw(st.sampled_from(["edit", "delete", "insert", "double", "move", "cut"]))
    if kind == "edit":
        content = bytearray(lines[place])
        at = data.draw(st.integers(0, len(content) - 2))
        content[at] ^= data.draw(st.integers(1, 255))
        lines[place] = bytes(content)
    elif kind == "delete":
        del lines[place]
    elif kind == "insert":
        lines.insert(place, lines[data.draw(st.integers(0, len(lines) - 1))])
    elif kind == "double":
        lines.insert(place, lines[place])
    elif kind == "move":
        other = data.draw(st.integers(0, len(lines) - 1).filter(lambda it: it != place))
        lines.insert(other, lines.pop(place))
    else:
        del lines[place:]
    if lines == genuine or lines == genuine[-len(lines) :] or lines == genuine[:-1]:
        # Without its first lines it is as after archiving; the last line is the head itself, which nobody vouches for.
        return
    if not lines:
        return
    assert tampered(path, lines, identity, head).findings != [], kind


def test_a_chain_made_anew_from_a_change_on_is_found_by_its_checkpoints(
    tmp_path: Path, genuine: list[bytes], identity: FileSvidSource, stranger: FileSvidSource
) -> None:
    path = tmp_path / "audit.jsonl"
    # Whoever owns the host writes it all again, with something else in it, and keeps the checkpoints there were.
    forged: list[bytes] = []
    head = FIRST_PREV
    for content in map(json.loads, genuine):
        if content.get("event", {}).get("seq") == 5:
            content["event"]["requestedBy"] = "somebody else"
        line = json.dumps({**content, "prev": head}, separators=(",", ":")).encode()
        head = line_digest(line)
        forged.append(line + b"\n")
    found = tampered(path, forged, identity).findings
    assert len(found) == 3
    assert all("signs another chain" in str(finding) for finding in found)
    # Signing them with another key does not help.
    found = tampered(path, chain(stranger, events(1, 30), every=10), identity).findings
    assert len(found) == 3
    assert all("not signed by a trusted identity" in str(finding) for finding in found)
    # Nor does leaving them out, where a head was kept elsewhere, or where there are too many without one.
    bare = [line for line in forged if b'"checkpoint"' not in line]
    head_token = json.loads(genuine[-1])["checkpoint"]
    assert tampered(path, bare, identity, head_token).findings != []


def test_events_without_checkpoints_are_found(tmp_path: Path, identity: FileSvidSource) -> None:
    lines = chain(identity, events(1, CHECKPOINT_EVENTS + 1))[:-1]
    assert tampered(tmp_path / "audit.jsonl", lines[:-1], identity).findings == []
    [finding] = tampered(tmp_path / "audit.jsonl", lines, identity).findings
    assert f"the last {CHECKPOINT_EVENTS + 1} events have no checkpoint" in str(finding)


def test_a_cut_end_is_found_with_a_head_that_was_kept_elsewhere(
    tmp_path: Path, genuine: list[bytes], identity: FileSvidSource
) -> None:
    path = tmp_path / "audit.jsonl"
    head = json.loads(genuine[-1])["checkpoint"]
    assert tampered(path, genuine[:-6], identity).findings == []
    [finding] = tampered(path, genuine[:-6], identity, head).findings
    assert "the end of the chain was removed" in str(finding)
    # A head of another is no help to anybody.
    [finding] = tampered(path, genuine, identity, head[:-4] + "AAAA").findings
    assert "the head given" in str(finding)


def test_what_redis_no_longer_had_is_told_and_is_no_change_of_the_file(
    tmp_path: Path, identity: FileSvidSource
) -> None:
    again = [event(seq).model_copy(update={"cursor": f"1869860800000-{seq}"}) for seq in (4, 5)]
    lines = chain(identity, [*events(1, 3), *events(7, 9), *again])
    report = tampered(tmp_path / "audit.jsonl", lines, identity)
    assert report.findings == []
    assert report.gaps == [
        "events 4 to 6 were gone from Redis before they were written here",
        "after event 9 Redis returned to an older state and counts from 4",
    ]


def test_an_event_that_is_there_twice_is_found(tmp_path: Path, identity: FileSvidSource) -> None:
    report = tampered(tmp_path / "audit.jsonl", chain(identity, [event(1), event(2), event(2)]), identity)
    assert any("belongs before" in str(finding) for finding in report.findings)


NONSENSE = st.binary(max_size=80) | st.sampled_from([b"{}", b'{"line":1,"prev":"","event":{}}', b"null"])


@given(lines=st.lists(NONSENSE, max_size=6))
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_verifying_nonsense_finds_it_and_nothing_else_happens(
    lines: list[bytes], tmp_path: Path, identity: FileSvidSource
) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = verified(path, identity)
    assert bool(report.findings) == bool(path.read_bytes())


@pytest.mark.parametrize("cursor", ["", "x", "1", "1-", "-1", "1-1-1", "9" * 5000, "1-" + "9" * 21, "²-1", "1-1\n"])
def test_an_event_without_a_place_is_found(tmp_path: Path, identity: FileSvidSource, cursor: str) -> None:
    altered = event(2).model_copy(update={"cursor": cursor})
    report = tampered(tmp_path / "audit.jsonl", chain(identity, [event(1), altered, event(3)]), identity)
    assert ["no place in a stream" in str(finding) for finding in report.findings] == [True]


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, identity: FileSvidSource) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"x" * 20_000_000)
    assert len(verified(path, identity).findings) <= 101


def test_a_flood_of_what_is_no_event_is_told_in_bounds(tmp_path: Path, identity: FileSvidSource) -> None:
    altered = [event(number).model_copy(update={"seq": 0, "event": "trail_altered"}) for number in range(1, 1501)]
    report = tampered(tmp_path / "audit.jsonl", chain(identity, altered, every=1000), identity)
    assert (report.findings, report.checkpoints, report.unreadable) == ([], 2, 1500)
    assert len(report.gaps) == 101
    assert report.gaps[-1] == "in all, 1500 entries of the trail in Redis could not be read"


def test_a_checkpoint_signs_the_line_before_it(tmp_path: Path, genuine: list[bytes], identity: FileSvidSource) -> None:
    forged = json.loads(genuine[-1])
    svid = identity.current()
    now = int(datetime.now(UTC).timestamp())
    wrong = AuditCheckpoint(iss=str(svid.spiffe_id), iat=now, line=2, head="0" * 64, seq=1)
    forged["checkpoint"] = sign(svid, wrong)
    lines = [*genuine[:-1], json.dumps(forged).encode() + b"\n"]
    found = tampered(tmp_path / "audit.jsonl", lines, identity).findings
    assert any("signs another chain" in str(finding) for finding in found)


def test_a_verification_ends_after_many_findings(
    tmp_path: Path, genuine: list[bytes], identity: FileSvidSource
) -> None:
    report = tampered(tmp_path / "audit.jsonl", [b"nonsense\n"] * 500 + genuine, identity)
    assert len(report.findings) == MAX_FINDINGS + 1
    assert "more findings may follow" in str(report.findings[-1])
