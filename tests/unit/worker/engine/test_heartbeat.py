"""What an agent says of itself and of its host."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from authority import Authority
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tachikoma.identity.spiffe import agent_id
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.clock import from_ms
from tachikoma_worker.cgroups.hierarchy import NoHierarchy
from tachikoma_worker.confinement.isolation.abilities import Abilities
from tachikoma_worker.engine.heartbeat import Run, describe, describe_trust, host_warnings, logged_warnings
from tachikoma_worker.settings import WorkerSettings

ID = str(agent_id("tachikoma.local", "web-1"))


def test_a_heartbeat_describes_this_run_and_this_moment(tmp_path: Path, authority: Authority) -> None:
    settings = WorkerSettings(
        agent_id="web-1", redis_url="unix:///x", identity=tmp_path, data=tmp_path, labels={"env": "dev"}, slots=5
    )
    run = Run(boot="b", run="r", warnings=("w",), isolation=("shared",))
    beat = describe(settings, run, authority.svid(ID), running=3, held=["job-7"])
    assert (beat.boot, beat.run, beat.warnings, beat.labels) == ("b", "r", ("w",), {"env": "dev"})
    assert beat.isolation == ("shared",)
    assert (beat.running, beat.slots, beat.hostname) == (3, 5, os.uname().nodename)
    assert beat.executions == ("job-7",)
    assert 0 <= beat.memory_used <= 1
    assert 0 <= beat.disk_used <= 1


def test_trust_names_identity_root_and_bundle(authority: Authority) -> None:
    svid = authority.svid(ID)
    trust = describe_trust(svid)
    assert trust.spiffe_id == ID
    assert trust.bundle == (trust.root,)
    assert abs(from_ms(trust.expires_ms) - svid.not_after) < timedelta(milliseconds=1)


def test_a_certificate_without_a_root_in_the_bundle_is_described_all_the_same(
    authority: Authority, stranger: Authority
) -> None:
    own = authority.files(ID)
    svid = Svid.load(own[CERTIFICATE_FILE], own[KEY_FILE], stranger.files(ID)[BUNDLE_FILE])
    assert describe_trust(svid).root == ""


def test_a_spawner_that_is_not_root_is_a_warning() -> None:
    cgroups = NoHierarchy("a test")
    assert host_warnings(cgroups, 0) == cgroups.warnings
    first, second, third = host_warnings(cgroups, 123_456)
    assert first == cgroups.warnings[0]
    assert second == "commands run as 123456 only, with its rights: the spawner is not root"
    assert third.startswith("programs that belong to 123456 are executed")


def test_what_a_host_cannot_isolate_is_a_warning_too() -> None:
    cgroups = NoHierarchy("a test")
    found = logged_warnings(cgroups, 0, Abilities.none("no rights"))
    assert found[: len(cgroups.warnings)] == cgroups.warnings
    assert found[len(cgroups.warnings) :] == tuple(Abilities.none("no rights").warnings())
