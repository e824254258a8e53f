"""Files of administrators: policies, schedules, patterns and times."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import strategies as st
from rounds import fuzz, mutated, mutated_json

from audit_chain import event
from authority import Authority
from tachikoma.audit.chain import ChainEnd, read_end, read_events
from tachikoma.audit.verification import verify_files
from tachikoma.config.settings import SETTINGS_VARIABLE, read_settings
from tachikoma.errors import ConfigurationError, InvalidRequest
from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.spiffe import service_id
from tachikoma.policy.decide import PolicySet
from tachikoma.policy.effort import Effort, TooMuchWork
from tachikoma.policy.file import PolicyFile
from tachikoma.policy.patterns import AgentSelector, Pattern, PatternError
from tachikoma.policy.watch import PolicyWatch
from tachikoma.schedules.file import ScheduleSet
from tachikoma.schedules.timing import parse_timing
from tachikoma.schedules.watch import ScheduleWatch
from tachikoma.sessions.asciicast import CastEvent, CastHeader, encode_event, read_cast
from tachikoma.vocabulary.audit import AuditedRequest
from tachikoma.vocabulary.durations import format_duration, parse_duration
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.commands.redis_backup.manifest import MANIFEST, Content, Manifest, read_manifest
from tachikoma_orchestrator.processes.settings import OrchestratorSettings
from tachikoma_orchestrator.recordings.finishing import finish
from tachikoma_orchestrator.recordings.folder import RecordingFolder
from tachikoma_orchestrator.recordings.parts import Event, Origin, Output, encode

ALICE = "spiffe://tachikoma.local/user/alice"
POLICY = {
    "operators": [ALICE],
    "policies": [
        {
            "name": "web", "subjects": ["spiffe://tachikoma.local/user/*"], "agents": ["web-*", "role=db"],
            "allowedCommands": ["/usr/bin/systemctl {status,restart} nginx.service", "/usr/bin/printf ..."],
            "deniedCommands": ["reboot", "cat /etc/**"], "allowedUsers": ["www-*"], "allowedWorkDirs": ["/srv/**"],
            "allowedEnvironment": ["APP_*"], "allowedNetworks": ["10.0.0.0/8"], "maxTimeout": "5m",
            "limits": {"pids": 50, "memory": "1GiB"}, "requireApproval": True, "approvers": [ALICE],
            "rateLimit": {"concurrentLimit": 5, "queueSize": 4, "requestsPerMinute": 100, "queueTimeout": "8s"},
        }
    ],
}  # fmt: skip
SCHEDULES = {
    "schedules": [
        {"name": "often", "every": "500ms", "agentId": "web-1", "request": {"command": ["/usr/bin/true"]}},
        {
            "name": "nightly", "cron": "30 2 * * mon-fri", "timezone": "Europe/Berlin", "agentId": "web-1",
            "request": {"command": ["/usr/bin/printf", "x"], "timeout": "5m"}, "missed": "run-once",
            "overlap": "skip", "lateness": "1m",
        },
    ]
}  # fmt: skip
REQUEST = ExecRequest(agent_id="web-1", command=("/usr/bin/printf", "x", "../etc/passwd"), timeout=5)
PATTERNS = ["/usr/bin/*", "/srv/**", "{a,b}[c-e]?", "web-*", "spiffe://tachikoma.local/user/*"]
TIMINGS = ["every 500", "cron Europe/Berlin 30 2 * * mon-fri", "cron UTC */5 0-6 1,15 jan *"]
DURATIONS = ["5m", "1h30m", "500ms", "7d"]


def _texts(valid: object) -> st.SearchStrategy[str]:
    """Texts of files: a valid value with wrong parts, or a valid text with wrong characters; JSON is YAML."""
    return st.one_of(
        mutated_json(valid).map(lambda value: json.dumps(value, ensure_ascii=False)),
        mutated([json.dumps(valid), json.dumps(valid, indent=1).replace('"', "")]),
    )


def _decide(text: str) -> None:
    try:
        chosen = PolicySet.parse(text, "policy.yaml")
    except ConfigurationError:
        return
    chosen.explain(REQUEST, ALICE, ("/usr/bin",), {"role": "db"}, "10.1.2.3")
    chosen.secrets(REQUEST.command, ("/usr/bin",))
    chosen.is_operator(ALICE)
    list(chosen.warnings())


def test_the_samples_are_valid() -> None:
    assert PolicySet.parse(json.dumps(POLICY), "p").policies
    assert ScheduleSet.parse(json.dumps(SCHEDULES), "s").schedules.keys() == {"often", "nightly"}
    assert all(map(parse_timing, TIMINGS))
    assert set(POLICY) <= {field.alias or name for name, field in PolicyFile.model_fields.items()}


def test_a_policy_is_read_or_its_mistakes_are_named() -> None:
    fuzz(_decide, _texts(POLICY))


def test_a_wrong_file_of_policies_leaves_the_previous_ones_active(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(json.dumps(POLICY))
    watch = PolicyWatch(file)

    def change(text: str) -> None:
        before = watch.current
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        watch.reload()
        assert not watch.error or watch.current is before

    fuzz(change, _texts(POLICY))


def test_a_wrong_file_of_schedules_leaves_the_previous_ones_active(tmp_path: Path) -> None:
    file = tmp_path / "schedules.yaml"
    file.write_text(json.dumps(SCHEDULES))
    watch = ScheduleWatch(file)

    def change(text: str) -> None:
        before = watch.current
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        watch.reload()
        assert not watch.error or watch.current is before
        for schedule in watch.current.schedules.values():
            list(islice(schedule.timing.after(1_800_000_000_000), 3))
            schedule.exec_request("shown")

    fuzz(change, _texts(SCHEDULES))


def test_a_pattern_is_refused_or_matches_with_bounded_work() -> None:
    def match(pattern: str, text: str) -> None:
        for kind in (Pattern, AgentSelector):
            try:
                made = kind(pattern)
            except PatternError:
                continue
            try:
                if isinstance(made, Pattern):
                    made.matches(text, Effort())
                    made.anchor(text, Effort())
                else:
                    made.matches(text, {"role": text}, Effort())
            except TooMuchWork:
                continue

    texts = mutated(["/usr/bin/true", "a" * 2000, "web-1", "b" * 50 + "c"])
    fuzz(match, mutated(PATTERNS, ["*" * 40, "{a,b}" * 40, "[" + "a-z" * 90 + "]"]), texts)


def test_a_timing_is_refused_or_finds_its_times() -> None:
    def find(text: str, at_ms: int) -> None:
        try:
            timing = parse_timing(text)
        except ValueError:
            return
        assert timing.text
        found, total = timing.between(at_ms - 10_000, at_ms, 100)
        assert len(found) <= min(total, 100)
        assert all(at_ms - 10_000 < due <= at_ms for due in found)

    fuzz(find, mutated(TIMINGS), st.integers(0, 253_402_300_799_000))


def test_a_duration_is_refused_or_written_as_it_was_read() -> None:
    def read(text: str) -> None:
        try:
            duration = parse_duration(text)
        except (ValueError, InvalidRequest):
            return
        assert isinstance(duration, timedelta)
        assert parse_duration(format_duration(duration)) == duration

    fuzz(read, mutated(DURATIONS))


# --- files of parts ---------------------------------------------------------------------------------------------------


def test_a_settings_file_is_read_or_its_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    monkeypatch.setenv(SETTINGS_VARIABLE, str(file))
    valid = [
        'policy = "/etc/policy.yaml"\nlisten = "127.0.0.1:8534"\nsvid_lifetime = "24h"\nrequest_bytes = 1000\n',
        'policy = "p"\ntrusted_proxies = ["10.0.0.0/8"]\n[rate_limit]\nqueueSize = 5\nqueueTimeout = "2s"\n',
    ]

    def read(text: str) -> None:
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        with suppress(ConfigurationError):
            read_settings(OrchestratorSettings, "orchestrator")

    fuzz(read, mutated(valid, ["[[a]]", "1979-05-27T07:32:00Z", "0x" + "f" * 300, '"""', "policy", "=", "\\u0000"]))


def test_an_audit_log_is_continued_or_refused_and_verified_with_findings(tmp_path: Path) -> None:
    path, authority = tmp_path / "audit.jsonl", Authority()
    bundle, writer = TrustBundle("tachikoma.local", [authority.certificate]), service_id("tachikoma.local", "x")
    first, end = ChainEnd().append("chain", {"writer": "x"})
    second, end = end.append_event(event(1))
    third, _ = end.append_checkpoint("no token")

    def read(raw: bytes) -> None:
        path.write_bytes(raw)
        with suppress(ValueError):
            read_end([path])
        assert verify_files(path, bundle, writer).lines <= raw.count(b"\n") + 1
        with suppress(ConfigurationError):
            list(read_events(path))

    lines = st.one_of(
        mutated([second, third]),
        mutated_json(json.loads(second)).map(lambda value: json.dumps(value).encode()),
    )
    fuzz(read, st.lists(lines, max_size=3).map(lambda found: b"\n".join([first, *found, b""])))


def test_a_manifest_of_a_backup_is_read_or_refused(tmp_path: Path) -> None:
    valid = Manifest(
        made_at=datetime.now(UTC), server="x", replid="ab", offset=1, keys=1, audit_seq=1,
        files={"redis.rdb": Content(size=1, sha256="ab")},
    ).model_dump_json()  # fmt: skip

    def read(text: str) -> None:
        (tmp_path / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
        with suppress(ConfigurationError):
            read_manifest(tmp_path)

    fuzz(read, _texts(json.loads(valid)))


# --- recordings -------------------------------------------------------------------------------------------------------


def test_a_recording_is_read_or_its_mistake_is_named() -> None:
    events = [CastEvent(5, "o", "x"), CastEvent(9, "r", "80x24"), CastEvent(10, "x", "0")]

    def read(version: int, raw: bytes) -> None:
        try:
            header, found = read_cast(raw.splitlines(keepends=True))
            times = [item.at_us for item in found]
        except ValueError:
            return
        assert times == sorted(times)
        assert read_cast([header.encode(version).encode(errors="replace")])

    header = CastHeader(80, 24, timestamp=5, term="xterm", command="bash")
    valid = ["\n".join([header.encode(version), *map(encode_event, events), ""]).encode() for version in (2, 3)]
    words = [b"1e307", b"-1e307", b"Infinity", b"NaN", b"9" * 400]
    fuzz(read, st.sampled_from([2, 3]), mutated(valid, words))


def test_the_parts_of_a_recording_become_one_whatever_their_lines_are(tmp_path: Path) -> None:
    svid, store = Authority().svid("spiffe://tachikoma.local/service/orchestrator"), RecordingFolder(tmp_path)
    origin = Origin("web-1", ALICE, "web@0123", AuditedRequest(command=("bash",)), True, 5_000_000)
    lines = [
        Output(1, 0, 5_000_010, False, b"text"), Event(0, 5_000_001, "r", "100x40"), Event(4, 5_000_011, "m", "x"),
        Event(4, 5_000_012, "i", "YWI="), Output(2, 4, 5_000_020, True, b"\xff"),
    ]  # fmt: skip

    def made(raw: list[bytes]) -> None:
        for name in ("output-1", "events-1"):
            part = store.add_part("job-7", name)
            part.write(encode(origin) + b"".join(raw))
            part.close()
        seal = finish(store, "job-7", None, svid)
        assert seal is not None
        assert seal.size > 0
        assert store.unfinished() == []

    changed = [
        mutated_json(json.loads(encode(line))).map(lambda value: json.dumps(value).encode() + b"\n") for line in lines
    ]
    fuzz(made, st.lists(st.one_of(*changed, mutated([encode(line) for line in lines])), max_size=4))
