"""Files of administrators: policies, schedules, patterns and times."""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import islice
from pathlib import Path

from hypothesis import strategies as st
from rounds import fuzz, mutated, mutated_json

from tachikoma.errors import ConfigurationError, InvalidRequest
from tachikoma.policy.decide import PolicySet
from tachikoma.policy.effort import Effort, TooMuchWork
from tachikoma.policy.file import PolicyFile
from tachikoma.policy.patterns import AgentSelector, Pattern, PatternError
from tachikoma.policy.watch import PolicyWatch
from tachikoma.schedules.file import ScheduleSet
from tachikoma.schedules.timing import parse_timing
from tachikoma.schedules.watch import ScheduleWatch
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.types import format_duration, parse_duration

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
