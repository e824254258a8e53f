"""People log in with a token, keep their identity by using it, and are revoked; the orchestrator renews its own.

Real processes on one stack. Instead of a clock that runs fast, certificates are issued with most of their life over.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from joining import letting_join
from json_schemas import checked
from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecState, PermissionDenied, Unauthenticated
from tachikoma.client.membership.joining import join
from tachikoma.client.membership.renewal import renew_if_due
from tachikoma.client.profile import Profile
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.authority import CertificateAuthority
from tachikoma.identity.certificates import dns_names
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.join_token import JoinToken
from tachikoma.identity.spiffe import user_id
from tachikoma.identity.svid import Svid
from tachikoma_worker.command import worker

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from support import make_cli, request, wait_until

pytestmark = pytest.mark.long


def aged(stack: Stack, place: Path) -> Svid:
    """Replace an identity by one of which most of its life is over. Return it."""
    ca = CertificateAuthority.load(stack.data / "joining-ca")
    old, life = FileSvidSource(place).current(), timedelta(hours=10)
    ca.issue(
        old.spiffe_id, bundle_pem=old.bundle.pem, lifetime=life, dns_names=tuple(dns_names(old.chain[0])),
        not_before=datetime.now(UTC) - 0.8 * life,
    ).write(place)  # fmt: skip
    return FileSvidSource(place).current()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, debian: Path) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("people")
    made = letting_join(folder, debian)
    policy = folder / "policy.yaml"
    policy.write_text(
        policy.read_text().rstrip() + "\n    allowInteractive: true\n    allowTty: true\n    killGrace: 1s\n"
    )
    with made as running:
        yield running


@pytest.fixture
def operator(stack: Stack) -> Iterator[Client]:
    with Client(stack.profile()) as connected:
        yield connected


class Person:
    """A person with a home of its own, who uses the command line."""

    def __init__(self, home: Path, name: str) -> None:
        self.home, self.name = home, name
        home.mkdir()

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        others = ("TACHIKOMA", "XDG", "SPIFFE")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        environment["HOME"] = str(self.home)
        return subprocess.run(
            [sys.executable, "-m", "tachikoma", *words],
            input=stdin, env=environment, capture_output=True, text=True, check=False, timeout=2 * PATIENCE_SECONDS,
        )  # fmt: skip

    @property
    def identity(self) -> Path:
        return self.home / ".local/share/tachikoma/identities" / TRUST_DOMAIN

    def profile(self) -> Profile:
        return Profile.load(self.home / ".config/tachikoma/profile.json")


@pytest.fixture(scope="module")
def ada(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Person:
    """A person that logged in by the two commands."""
    person = Person(tmp_path_factory.mktemp("homes") / "ada", "ada")
    token = make_cli(stack).run("users", "add", "ada").stdout.decode()
    done = person.run("login", stdin=token)
    assert done.returncode == 0, done.stderr
    assert f"you are {user_id(TRUST_DOMAIN, 'ada')}" in done.stdout
    return person


def test_a_person_logs_in_and_the_next_command_after_half_of_the_life_renews(stack: Stack, ada: Person) -> None:
    first = FileSvidSource(ada.identity).current()
    assert first.spiffe_id == user_id(TRUST_DOMAIN, "ada")
    assert first.not_after - datetime.now(UTC) > timedelta(hours=23)
    # It is not due.
    assert ada.run("agents").returncode == 0
    assert FileSvidSource(ada.identity).current().certificate_pem == first.certificate_pem

    old = aged(stack, ada.identity)
    assert ada.run("agents").returncode == 0
    new = FileSvidSource(ada.identity).current()
    assert new.not_after > old.not_after
    assert new.key_pem != old.key_pem

    aged(stack, ada.identity)
    for renewed in (True, False):
        done = ada.run("identity", "renew", "-o", "json")
        assert checked("identity renew", done.stdout)["renewed"] is renewed


def test_the_commands_about_people_speak_json(stack: Stack, tmp_path: Path) -> None:
    def shown(command: str, *arguments: str) -> Any:
        done = make_cli(stack).run(*command.split(), *arguments, "-o", "json")
        assert done.returncode == 0, done.stderr
        return checked(command, done.stdout)

    token = shown("users add", "zoe")["token"]
    zoe = Person(tmp_path / "zoe", "zoe")
    logged_in = checked("login", zoe.run("login", "-o", "json", stdin=token).stdout)
    assert logged_in["spiffeId"] == str(user_id(TRUST_DOMAIN, "zoe"))
    assert Path(logged_in["identity"]) == zoe.identity
    assert "zoe" in [person["name"] for person in shown("users ls")]
    assert shown("users revoke", "zoe", "-r", "left", "-y")["revoked"] is True


def login(client: Client, name: str, folder: Path) -> Profile:
    """Log in as a person, in this process."""
    token = JoinToken.parse(client.enroll_user(name).token)
    answer = asyncio.run(join(token, folder))
    return Profile(address=answer.address, server_name=answer.server_name, identity=folder)


def test_a_revoked_person_is_refused_and_open_calls_end_until_the_next_login(
    stack: Stack, operator: Client, tmp_path: Path
) -> None:
    eve = login(operator, "eve", tmp_path)
    [listed] = [item for item in operator.users() if item.name == "eve"]
    assert (listed.revoked, listed.enrolled_by) == (False, str(stack.user))
    with Client(eve) as connected:
        assert connected.agents()
        assert operator.revoke_user("eve", "left").revoke_reason == "left"
        with pytest.raises(Unauthenticated, match="user eve was revoked"):
            connected.agents()
    # Its certificate is not renewed either.
    aged(stack, tmp_path)
    with pytest.raises(Unauthenticated, match="user eve was revoked"):
        asyncio.run(renew_if_due(tmp_path))
    with Client(login(operator, "eve", tmp_path)) as connected:
        assert connected.agents()
    codes = {event.event for event in operator.audit(limit=1000)}
    assert {"user_enrolled", "user_joined", "user_revoked", "identity_rejected"} <= codes


def test_the_sessions_of_a_revoked_person_end_and_its_commands_continue(operator: Client, tmp_path: Path) -> None:
    profile = login(operator, "mallory", tmp_path)
    shell = request("sh", "-c", "trap '' HUP; echo begun; sleep 600; :", interactive=True, tty=True)
    left = request("cat", interactive=True)
    with Client(profile) as connected:
        plain = connected.submit(request("sleep", "600"))
        with connected.session(left) as session:
            # Nobody is attached to this one any more.
            next(iter(session))
            session.detach()
        # The session or the call ends first.
        with suppress(Unauthenticated), connected.session(shell) as session:
            for message in session:
                if b"begun" in message.data:
                    operator.revoke_user("mallory", "left")
    for wanted in (shell, left):
        wait_until(lambda exec_id=wanted.id: operator.status(exec_id).state.terminal, "the session has ended")
        ended = operator.status(wanted.id)
        assert (ended.state, ended.cancel_requested_by) == (ExecState.CANCELLED, str(operator.spiffe_id))
        reasons = {
            event.reason for event in operator.audit(exec_id=wanted.id) if event.actor == str(operator.spiffe_id)
        }
        assert f"its requester was revoked by {operator.spiffe_id}: left" in reasons
    assert not operator.status(plain.id).state.terminal
    operator.cancel(plain.id)


def test_only_operators_manage_people(operator: Client, tmp_path: Path) -> None:
    with Client(login(operator, "bob", tmp_path)) as bob:
        for call in (lambda: bob.enroll_user("root"), bob.users, lambda: bob.revoke_user("root", "x")):
            with pytest.raises(PermissionDenied, match="operator"):
                call()


def test_a_token_of_a_person_makes_no_agent(operator: Client, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(operator.enroll_user("bob").token)
    words = ["join", "--token-file", str(tmp_path / "token"), "--identity", str(tmp_path / "agent")]
    done = CliRunner().invoke(worker, words)
    assert "use it with `tachikoma login`" in str(done.exception)


def test_the_orchestrator_renews_an_identity_that_its_own_authority_issued(stack: Stack) -> None:
    place = stack.identity("orchestrator")
    before = dns_names(FileSvidSource(place).current().chain[0])
    stack.orchestrator.stop()
    old = aged(stack, place)
    stack.start_orchestrator()
    new = FileSvidSource(place).current()
    assert new.not_after > old.not_after
    assert dns_names(new.chain[0]) == before
    with Client(stack.profile()) as client:
        assert client.execute(request("true")).state is ExecState.SUCCEEDED
