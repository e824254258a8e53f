"""Identities that end while something depends on them, addresses behind a proxy, and `tachikoma identity`."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from authority import Authority
from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecResponse, ExecState, Unauthenticated, Unavailable
from tachikoma.cli.commands import identity as command
from tachikoma.client import wire
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.dev.stack import SERVER_NAME, TRUST_DOMAIN, Stack
from tachikoma.errors import ConfigurationError
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionStub
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE
from tachikoma.identity.spiffe import service_id, user_id

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from support import AGENT, POLICY, make_cli, plain_channel, request, wait_until

#: Lifetimes of certificates that end during a test. The longer ones are for a machine on which a shorter one ended
#: before a process had its turn.
LIFETIMES = tuple(timedelta(seconds=seconds) for seconds in (5, 20, 60))
INSIDE, OUTSIDE = "198.51.100.9", "203.0.113.5"
GUARDED = f"""\
  - name: inside
    subjects: ["spiffe://{TRUST_DOMAIN}/service/inside"]
    agents: ["**"]
    allowedCommands: ["/usr/bin/true"]
    allowedNetworks: ["198.51.100.0/24"]
  - name: two-keys
    subjects: ["spiffe://{TRUST_DOMAIN}/service/asks"]
    agents: ["**"]
    allowedCommands: ["/usr/bin/true"]
    requireApproval: true
    approvers: ["spiffe://{TRUST_DOMAIN}/user/boss"]
"""


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that takes this host for a proxy."""
    data = tmp_path_factory.mktemp("proxied")
    stack = Stack(data, environment={"TACHIKOMA_TRUSTED_PROXIES": '["127.0.0.0/8"]'})
    (data / "policy.yaml").write_text(POLICY.format(user=stack.user) + GUARDED)
    with stack:
        yield stack


@pytest.fixture
def client(proxied: Stack) -> Iterator[Client]:
    with Client(proxied.profile()) as connected:
        yield connected


def issue(stack: Stack, name: str, folder: Path, lifetime: timedelta) -> None:
    DevelopmentCA(stack.data / "ca", TRUST_DOMAIN).issue(user_id(TRUST_DOMAIN, name), folder, lifetime=lifetime)


def log_of(stack: Stack, part: str, event: str) -> list[str]:
    lines = (stack.data / "logs" / f"{part}.log").read_text().splitlines()
    return [line for line in lines if f'"{event}"' in line]


# --- addresses --------------------------------------------------------------------------------------------------------


def _call(stack: Stack, wanted: Any, *forwarded: str) -> grpc.StatusCode:
    folder = stack.issue(service_id(TRUST_DOMAIN, "inside")).identity
    metadata = tuple(("x-forwarded-for", value) for value in forwarded)
    with plain_channel(stack, folder) as channel:
        try:
            RemoteExecutionStub(channel).Execute(wire.request_to_pb(wanted), timeout=30, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("forwarded", "address", "allowed"),
    [
        ([INSIDE], INSIDE, True),
        ([f"{OUTSIDE}, {INSIDE}"], INSIDE, True),
        ([f"{INSIDE}, 127.0.0.9"], INSIDE, True),
        ([OUTSIDE], OUTSIDE, False),
        ([f"{INSIDE}, {OUTSIDE}"], OUTSIDE, False),
        ([INSIDE, OUTSIDE], OUTSIDE, False),
        (["nonsense"], "", False),
        ([], "", False),
    ],
)
def test_behind_a_proxy_the_forwarded_address_decides_and_is_on_the_record(
    proxied: Stack, client: Client, forwarded: list[str], address: str, allowed: bool
) -> None:
    wanted = request("true")
    assert _call(proxied, wanted, *forwarded) is (grpc.StatusCode.OK if allowed else grpc.StatusCode.PERMISSION_DENIED)
    event = client.audit(exec_id=wanted.id)[0]
    assert (event.client_ip, event.authorized) == (address, allowed)
    assert event.policy_applied.startswith("inside@")
    assert allowed or event.rule == "allowedNetworks"


# --- certificates that end --------------------------------------------------------------------------------------------


def _in_thread(client: Client, wanted: Any) -> tuple[threading.Thread, list[ExecResponse | Exception]]:
    outcome: list[ExecResponse | Exception] = []

    def run() -> None:
        try:
            outcome.append(client.execute(wanted))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def _started(client: Client, exec_id: str) -> bool:
    return any(item.id == exec_id and item.state is ExecState.STARTED for item in client.list_page(AGENT)[0])


def _ends_with_its_certificate(stack: Stack, client: Client, folder: Path, lifetime: timedelta, renewed: bool) -> bool:
    """Let a call outlive its certificate.

    Returns:
        False if the certificate ended before the call was accepted or it was renewed: the machine was too slow.
    """
    folder.mkdir()
    identity, done = folder / "identity", folder / "done"
    issue(stack, "short", identity, lifetime)
    wanted = request("/bin/sh", "-c", f"while [ ! -e {done} ]; do sleep 0.1; done; echo one >> {done}")
    ended = len(log_of(stack, "orchestrator", "call.ended"))
    try:
        short = Client(replace(stack.profile(), identity=identity))
    except Unauthenticated:
        return False
    with short:
        thread, outcome = _in_thread(short, wanted)
        # It is no execution before it was admitted, which nobody is told of.
        wait_until(lambda: outcome or _started(client, wanted.id), "it runs")
        if renewed:
            issue(stack, "short", identity, timedelta(hours=1))
        wait_until(lambda: outcome or len(log_of(stack, "orchestrator", "call.ended")) > ended, "the call is ended")
        if renewed:
            done.touch()
        thread.join(PATIENCE_SECONDS + lifetime.total_seconds())
    (response,) = outcome
    if renewed and isinstance(response, ExecResponse):
        assert (response.state, done.read_text()) == (ExecState.SUCCEEDED, "one\n")
        return True
    assert isinstance(response, Unauthenticated), response
    if not _started(client, wanted.id):
        return False
    # The execution goes on without its requester.
    client.cancel(wanted.id)
    return not renewed


@pytest.mark.parametrize("renewed", [True, False], ids=["renewed", "not renewed"])
def test_a_call_ends_with_its_certificate_and_goes_on_with_the_next(
    proxied: Stack, client: Client, tmp_path: Path, renewed: bool
) -> None:
    assert any(
        _ends_with_its_certificate(proxied, client, tmp_path / f"{lifetime.seconds}", lifetime, renewed)
        for lifetime in LIFETIMES
    )


def test_what_waits_outlives_the_certificate_it_was_signed_with_but_an_order_does_not(
    proxied: Stack, client: Client
) -> None:
    folder, orchestrator = proxied.identity("orchestrator"), service_id(TRUST_DOMAIN, "orchestrator")
    ca = DevelopmentCA(proxied.data / "ca", TRUST_DOMAIN)

    def renew(lifetime: timedelta) -> None:
        before = len(log_of(proxied, "orchestrator", "svid.changed"))
        ca.issue(orchestrator, folder, dns_names=(SERVER_NAME,), lifetime=lifetime)

        def taken() -> bool:
            # It looks when it is asked for something.
            with suppress(Unavailable, Unauthenticated):
                client.agents()
            return len(log_of(proxied, "orchestrator", "svid.changed")) > before

        wait_until(taken, "the new certificate is used")

    for lifetime in LIFETIMES:
        renew(lifetime)
        end = datetime.now(UTC) + lifetime
        with suppress(Unavailable, Unauthenticated):
            order = client.submit(request("true"))
            with Client(proxied.issue(service_id(TRUST_DOMAIN, "asks"))) as asks:
                parked = asks.submit(request("/usr/bin/true"))
            break
        assert datetime.now(UTC) > end
    else:
        pytest.fail(f"a certificate of {lifetime} ended before it was used")
    # No order lives longer than the certificate that vouches for it.
    assert order.deadline is not None
    assert order.deadline <= end + timedelta(seconds=1)
    renew(timedelta(hours=1))
    wait_until(lambda: datetime.now(UTC) > end, "the first certificate has ended")
    with Client(proxied.issue(user_id(TRUST_DOMAIN, "boss"))) as boss:
        boss.approve(parked.id, boss.approval(parked.id).digest, "as agreed")
    wait_until(lambda: client.status(parked.id).state is ExecState.SUCCEEDED, "it runs")


# --- the command ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """How the command ended."""

    exit_code: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def identity(proxied: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in this process."""
    monkeypatch.setenv("TACHIKOMA_PROFILE", str(make_cli(proxied, tmp_path).profile))

    def run(*arguments: str) -> Done:
        done = CliRunner().invoke(command.identity, list(arguments))
        if isinstance(done.exception, ConfigurationError):
            # As `tachikoma` tells it.
            return Done(1, done.stdout, str(done.exception))
        return Done(done.exit_code, done.stdout, done.stderr)

    return run


def test_identity_show_says_who_one_is_and_until_when(proxied: Stack, tmp_path: Path, identity: Run) -> None:
    done = identity("show")
    assert done.exit_code == 0, done.stderr
    said = done.stdout
    assert f"you are  {proxied.user}\nsource   {proxied.identity('user')}\nchain    " in said
    assert f"trusts   {TRUST_DOMAIN}: root " in said
    shown = json.loads(identity("show", "-o", "json").stdout)
    assert (shown["spiffeId"], shown["usable"], list(shown["bundles"])) == (str(proxied.user), True, [TRUST_DOMAIN])

    issue(proxied, "late", tmp_path / "late", timedelta(seconds=-60))
    done = identity("show", "--identity", str(tmp_path / "late"))
    assert done.exit_code == 1
    assert "EXPIRED" in done.stdout
    assert "cannot be used: the certificate of" in done.stderr
    done = identity("show", "--identity", str(tmp_path / "nowhere"))
    assert (done.exit_code, "nowhere" in done.stderr) == (1, True)


def test_identity_check_names_whom_a_planned_bundle_would_shut_out(
    proxied: Stack, tmp_path: Path, identity: Run
) -> None:
    done = identity("check")
    assert (done.exit_code, done.stderr) == (0, "")
    new = Authority()
    both, only = tmp_path / "both.pem", tmp_path / "only.pem"
    both.write_bytes((proxied.identity("user") / BUNDLE_FILE).read_bytes() + new.pem)
    only.write_bytes(new.pem)

    done = identity("check", "--bundle", str(both))
    assert done.exit_code == 0
    assert f"{AGENT} does not trust root " in done.stderr

    done = identity("check", "--bundle", str(only), "-o", "json")
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    (agent,) = said["agents"]
    assert (agent["id"], agent["online"]) == (AGENT, True)
    assert "which is not in the bundle" in agent["problem"]
    assert "not trusted" in said["you"]["problem"]

    only.write_bytes((proxied.identity("user") / CERTIFICATE_FILE).read_bytes()[:100])
    done = identity("check", "--bundle", str(only))
    assert (done.exit_code, "cannot read the bundle" in done.stderr) == (1, True)
