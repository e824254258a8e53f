"""`tachikoma identity show` and `check`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from authority import Authority
from tachikoma import AgentInfo
from tachikoma.cli.commands.identity import AgentCheck
from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.certificates import key_digest
from tachikoma.vocabulary.agents import AgentTrust

ALICE = "spiffe://tachikoma.local/user/alice"
LATER = datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
def folder(authority: Authority, tmp_path: Path) -> Path:
    authority.write(tmp_path, ALICE)
    return tmp_path


def agent_under(
    authority: Authority, *known: Authority, expires: datetime = LATER, root: str | None = None
) -> AgentInfo:
    """An agent with a certificate of an authority, that trusts some."""
    digest = key_digest(authority.certificate) if root is None else root
    bundle = tuple(key_digest(other.certificate) for other in known or (authority,))
    trust = AgentTrust(spiffe_id="spiffe://tachikoma.local/agent/web-1", expires=expires, root=digest, bundle=bundle)
    return AgentInfo(id="web-1", online=True, trust=trust)


def test_show_names_identity_source_chain_and_roots(run: Any, folder: Path, authority: Authority) -> None:
    done = run("identity", "show", "--identity", str(folder))
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[:2] == [f"you are  {ALICE}", f"source   {folder}"]
    assert [line.split()[0] for line in lines[2:]] == ["chain", "trusts"]
    assert f"root {key_digest(authority.certificate)[:12]} until" in lines[3]
    found = json.loads(run("identity", "show", "--identity", str(folder), "-o", "json").out)
    assert (found["spiffeId"], found["usable"], found["problem"]) == (ALICE, True, "")
    assert [root["key"] for root in found["bundles"]["tachikoma.local"]] == [key_digest(authority.certificate)]


def test_show_fails_for_an_identity_that_cannot_be_used(run: Any, folder: Path, authority: Authority) -> None:
    authority.write(folder, ALICE, end=datetime.now(UTC) - timedelta(seconds=1))
    done = run("identity", "show", "--identity", str(folder))
    assert done.code == 1
    assert "EXPIRED" in done.out
    assert done.err.startswith("tachikoma: this identity cannot be used: ")
    assert json.loads(run("identity", "show", "--identity", str(folder), "-o", "json").out)["usable"] is False


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("good", ""),
        ("silent", "does not report its certificate; upgrade it"),
        ("expired", "its certificate expired at "),
        ("own bundle", "its certificate is not trusted by its own bundle"),
        ("other root", "which is not in the bundle"),
    ],
)
def test_an_agent_is_refused_for_a_reason(authority: Authority, stranger: Authority, case: str, problem: str) -> None:
    agent = {
        "good": agent_under(authority),
        "silent": AgentInfo(id="web-1"),
        "expired": agent_under(authority, expires=datetime.now(UTC) - timedelta(seconds=1)),
        "own bundle": agent_under(authority, root=""),
        "other root": agent_under(stranger, authority),
    }[case]
    found = AgentCheck.of(agent, TrustBundle("tachikoma.local", [authority.certificate]))
    assert problem in found.problem
    assert bool(problem) == bool(found.problem)
    assert found.row()[-1] == (found.problem or "would be accepted")
    assert found.content().problem == found.problem


def test_check_fails_when_somebody_would_be_refused(
    run: Any, client: Any, folder: Path, authority: Authority, stranger: Authority
) -> None:
    client.answers["agents"] = (
        agent_under(authority, authority, stranger),
        AgentInfo(id="gone", revoked=True),
    )
    done = run("identity", "check", "--identity", str(folder))
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == ["WHO", "you", "web-1"]
    planned = folder / "planned.pem"
    planned.write_bytes(stranger.pem)
    done = run("identity", "check", "--identity", str(folder), "--bundle", str(planned))
    assert done.code == 1
    found = json.loads(run("identity", "check", "--identity", str(folder), "--bundle", str(planned), "-o", "json").out)
    assert found["ok"] is False
    assert found["you"]["problem"]
    assert "which is not in the bundle" in found["agents"][0]["problem"]


def test_check_warns_of_agents_that_do_not_trust_a_new_root_yet(
    run: Any, client: Any, folder: Path, authority: Authority, stranger: Authority
) -> None:
    client.answers["agents"] = (agent_under(authority),)
    planned = folder / "planned.pem"
    planned.write_bytes(authority.pem + stranger.pem)
    done = run("identity", "check", "--identity", str(folder), "--bundle", str(planned))
    assert done.code == 0
    root = key_digest(stranger.certificate)[:12]
    assert done.err == f"web-1 does not trust root {root} yet, and refuses orders signed under it\n"


def test_a_renewal_that_is_overdue_is_a_problem(run: Any, client: Any, folder: Path, authority: Authority) -> None:
    client.answers["agents"] = ()
    now = datetime.now(UTC)
    authority.write(folder, ALICE, begin=now - timedelta(hours=9), end=now + timedelta(hours=1))
    done = run("identity", "check", "--identity", str(folder))
    assert done.code == 1
    assert "should have been renewed" in done.out


def test_a_bundle_that_cannot_be_read_is_named(run: Any, folder: Path) -> None:
    error = run("identity", "check", "--identity", str(folder), "--bundle", "no-such-file").error
    assert str(error).startswith("cannot read the bundle no-such-file: ")
