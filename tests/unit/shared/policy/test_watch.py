"""The active policies, through edits of their file."""

from __future__ import annotations

import platform
from datetime import timedelta
from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma.policy.decide import SEARCH_PATH, PolicySet
from tachikoma.policy.watch import PolicyWatch
from tachikoma.vocabulary.requests import ExecRequest

GOOD = """\
operators: ["spiffe://tachikoma.local/user/alice"]
policies:
  - name: web
    subjects: ["spiffe://tachikoma.local/user/*"]
    agents: ["web-*"]
    allowedCommands:
      - "/usr/bin/systemctl {status,restart} nginx.service"
      - /usr/bin/uptime
    maxTimeout: 5m
"""


def allows(policies: PolicySet, program: str) -> bool:
    request = ExecRequest(agent_id="web-1", command=(program,))
    return policies.decide(request, "spiffe://tachikoma.local/user/alice", SEARCH_PATH).allowed


def replace(path: Path, text: str) -> None:
    """Change a file as editors do, which its inode tells even within one tick of the clock."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    return path


def test_a_watch_needs_a_right_file_to_begin_with(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("policies: [")
    with pytest.raises(ConfigurationError, match="not YAML"):
        PolicyWatch(path)


def test_a_file_that_did_not_change_changes_nothing(file: Path) -> None:
    watch = PolicyWatch(file)
    before = watch.current
    assert not watch.reload()
    assert watch.current is before


def test_a_changed_file_is_taken_as_a_whole(file: Path) -> None:
    watch = PolicyWatch(file)
    replace(file, GOOD.replace("/usr/bin/uptime", "/usr/bin/true"))
    assert watch.reload()
    assert not watch.error
    assert allows(watch.current, "/usr/bin/true")
    assert not allows(watch.current, "/usr/bin/uptime")


def test_a_broken_edit_keeps_the_old_policies_and_says_why_until_it_is_mended(file: Path) -> None:
    watch = PolicyWatch(file)
    old = watch.current
    replace(file, GOOD.replace("allowedCommands", "allowedComands"))
    assert watch.reload()
    assert watch.current is old
    assert "policy.yaml:6:5: policies[0].allowedComands: unknown field" in watch.error
    # It is told once, not at every look.
    assert not watch.reload()
    assert watch.error
    replace(file, GOOD.replace("maxTimeout: 5m", "maxTimeout: 6m"))
    assert watch.reload()
    assert not watch.error
    assert watch.current.policies[0].policy.max_timeout == timedelta(minutes=6)


def test_a_file_that_vanishes_keeps_the_old_policies(file: Path) -> None:
    watch = PolicyWatch(file)
    old = watch.current
    file.unlink()
    assert watch.reload()
    assert watch.current is old
    assert "cannot read" in watch.error
    assert not watch.reload()
    replace(file, GOOD)
    assert watch.reload()
    assert not watch.error
    assert watch.current is not old


def test_its_status_names_the_active_policies_and_the_error_of_newer_ones(file: Path) -> None:
    watch = PolicyWatch(file)
    active = watch.status()
    assert (active.digest, active.policies, active.error) == (watch.current.digest, 1, "")
    assert (active.host, active.path) == (platform.node(), str(file))
    replace(file, "policies: [")
    assert watch.reload()
    assert watch.status().error == watch.error != ""
    assert (watch.status().digest, watch.status().since) == (active.digest, active.since)
