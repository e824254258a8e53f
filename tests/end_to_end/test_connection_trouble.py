"""Why no call arrives, on a real orchestrator: each side's certificate, and what the command line says about it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support import AGENT, Cli, make_cli, prepare, wait_until

from authority import Authority
from patience import PATIENCE_SECONDS
from tachikoma.client.diagnosis import CLOSED, Trouble, diagnose
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.dev.identities import own_user
from tachikoma.dev.stack import SERVER_NAME, TRUST_DOMAIN, Stack
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tachikoma.identity.spiffe import service_id, user_id

PAGE = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text(encoding="utf-8")
USER = user_id(TRUST_DOMAIN, own_user())
EXPIRED = "its certificate has expired; renew the orchestrator's certificate, or check the clock of this host"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    """A stack of this module's own: one test lets the orchestrator's certificate expire."""
    with Stack(prepare(tmp_path_factory.mktemp("trouble")), redis_server=redis_server) as running:
        yield running


@pytest.fixture(scope="module")
def authority(stack: Stack) -> DevelopmentCA:
    """The authority that both sides trust."""
    return DevelopmentCA(stack.data / "ca", TRUST_DOMAIN)


def cli_with(stack: Stack, folder: Path, **values: Any) -> Cli:
    """The command line with a profile of its own, below a folder."""
    path = folder / "profile.json"
    replace(stack.profile(), **values).save(path)
    return Cli(path)


def failure(cli: Cli, *arguments: str, code: int = 1) -> list[str]:
    """The lines of a command that fails; each begins with the program's name, and none is the transport's own."""
    # Not forked from a process that has loaded gRPC: the program silences gRPC before it loads it.
    done = subprocess.run(
        [sys.executable, "-m", "tachikoma", *arguments], stdin=subprocess.DEVNULL, capture_output=True,
        env=cli.environment(), timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, b""), done.stderr
    lines = done.stderr.decode().splitlines()
    assert [line for line in lines if not line.startswith("tachikoma: ")] == []
    return [line.removeprefix("tachikoma: ") for line in lines]


def names_cause(stack: Stack, cli: Cli, cause: str) -> None:
    """Wait until a command ends with a cause. An orchestrator that is too busy for an answer gets another call."""
    expected = f"cannot reach the orchestrator at {stack.address}: {cause}"
    wait_until(lambda: failure(cli, "agents")[-1] == expected, f"the message is: {expected}")


def documented(text: str) -> bool:
    """Whether the page of troubleshooting has a message; it writes … for a value."""
    known = re.findall(r"^(?:### |\| )`(.+?)`", PAGE, re.MULTILINE)
    patterns = (".+".join(map(re.escape, message.split("…"))) for message in known)
    return any(re.match(pattern, text) for pattern in patterns)


def test_nothing_listens(stack: Stack, tmp_path: Path) -> None:
    cause = "nothing accepts connections there; is the orchestrator running?"
    # Taken, so that no other process listens there; but nothing accepts connections.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        cli = cli_with(stack, tmp_path, address=address)
        lines = failure(cli, "agents")
        assert lines == [
            f"waiting for the orchestrator at {address}: {cause}",
            f"cannot reach the orchestrator at {address}: {cause}",
        ]
        # The id is named at once, since a request may have arrived when its connection breaks.
        assert failure(cli, "exec", "--id", "named", AGENT, "true", code=125) == [
            f"waiting for the orchestrator at {address} for named: {cause}",
            f"cannot reach the orchestrator at {address}: {cause}",
            "the command did not run",
        ]
    assert documented(lines[-1])
    assert documented(cause)


def test_the_clients_bundle_lacks_the_authority_of_the_orchestrator(stack: Stack, tmp_path: Path) -> None:
    Authority(TRUST_DOMAIN).write(tmp_path / "user", str(USER))
    cause = "its certificate is signed by an authority that your bundle does not contain; renew your bundle"
    cli = cli_with(stack, tmp_path, identity=tmp_path / "user")
    names_cause(stack, cli, cause)
    assert documented(cause)


def test_the_orchestrator_does_not_trust_the_authority_of_the_client(stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "user"
    Authority(TRUST_DOMAIN).write(folder, str(USER))
    with (folder / BUNDLE_FILE).open("ab") as bundle:
        bundle.write((stack.identity("user") / BUNDLE_FILE).read_bytes())
    names_cause(stack, cli_with(stack, tmp_path, identity=folder), CLOSED)
    assert documented(CLOSED)


def test_the_orchestrators_certificate_is_for_another_name(stack: Stack, tmp_path: Path) -> None:
    cause = (
        "its certificate is not for 'db.example.org'; check `serverName` in the client profile, "
        "or you reached another service"
    )
    cli = cli_with(stack, tmp_path, server_name="db.example.org")
    names_cause(stack, cli, cause)
    # For programs it is JSON.
    error = json.loads(cli.run("agents", "-o", "json").stderr.splitlines()[-1])["error"]
    assert error["code"] == "UNAVAILABLE"
    assert error["message"].startswith(f"cannot reach the orchestrator at {stack.address}: ")
    assert documented(cause)


def test_the_clients_certificate_has_expired(stack: Stack, authority: DevelopmentCA, tmp_path: Path) -> None:
    folder, hour = tmp_path / "user", timedelta(hours=1)
    authority.issue(USER, folder, lifetime=hour, not_before=datetime.now(UTC) - 2 * hour)
    [line] = failure(cli_with(stack, tmp_path, identity=folder), "agents")
    assert line.startswith(f"your identity in {folder} cannot be used: ")
    assert line.endswith(" UTC, not now")
    assert documented(line)
    # A client whose clock is wrong shows it all the same.
    files = [(folder / name).read_bytes() for name in (BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE)]
    closed = Trouble(CLOSED, refused=True)
    wait_until(lambda: diagnose(stack.address, SERVER_NAME, *files) == closed, "the orchestrator refuses it")


def test_the_clients_identity_is_that_of_an_agent(stack: Stack, tmp_path: Path) -> None:
    [line] = failure(cli_with(stack, tmp_path, identity=stack.identity(AGENT)), "agents")
    assert line.endswith(f"spiffe://{TRUST_DOMAIN}/agent/{AGENT} is an agent; agents do not call this service")
    assert documented(line)


def test_exec_names_what_it_waits_for_while_it_reconnects(stack: Stack, tmp_path: Path) -> None:
    script = f"echo begun; until [ -e {tmp_path}/go ]; do sleep 0.1; done; echo ended"
    with make_cli(stack).start("exec", "--id", "cut", AGENT, "sh", "-c", script) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == b"begun\n"
            stack.orchestrator.kill()
            waiting = f"tachikoma: waiting for the orchestrator at {stack.address} for cut: "
            line = process.stderr.readline().decode()
            assert line == f"{waiting}nothing accepts connections there; is the orchestrator running?\n"
            stack.start_orchestrator()
            (tmp_path / "go").touch()
            out, err = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, b"ended\n")
    # A server that is starting may be seen in between.
    assert all(line.startswith(waiting) for line in err.decode().splitlines())


def test_the_orchestrators_certificate_has_expired(stack: Stack, authority: DevelopmentCA) -> None:
    cli = make_cli(stack)
    assert cli.run("agents").returncode == 0
    try:
        wait_until(lambda: _expires(stack, authority), "the orchestrator shows an expired certificate")
        names_cause(stack, cli, EXPIRED)
        assert documented(EXPIRED)
    finally:
        stack.issue_identities()
    # It needs no restart.
    wait_until(lambda: cli.run("agents").returncode == 0, "the orchestrator shows its new certificate")


def _expires(stack: Stack, authority: DevelopmentCA) -> bool:
    """Issue a certificate for some seconds to the orchestrator, and wait for its end.

    Returns:
        False if the orchestrator was too slow to load it.
    """
    life = timedelta(seconds=3)
    identity = service_id(TRUST_DOMAIN, "orchestrator")
    authority.issue(identity, stack.identity("orchestrator"), dns_names=(SERVER_NAME,), lifetime=life)
    too_late = datetime.now(UTC) + 2 * life
    mine = [(stack.identity("user") / name).read_bytes() for name in (BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE)]

    def expired() -> bool:
        return diagnose(stack.address, SERVER_NAME, *mine) == Trouble(EXPIRED, lasting=True)

    wait_until(lambda: expired() or datetime.now(UTC) > too_late, "its end, or the next attempt")
    return expired()


@pytest.mark.parametrize("server", ["nobody", "silent", "real"])
def test_completion_is_silent_when_the_orchestrator_is_away(stack: Stack, tmp_path: Path, server: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        if server == "nobody":
            listener.close()
        cli = cli_with(stack, tmp_path, **({} if server == "real" else {"address": address}))
        words = {"_TACHIKOMA_COMPLETE": "complete_bash", "COMP_WORDS": "tachikoma exec ag", "COMP_CWORD": "2"}
        done = subprocess.run(
            [Path(sys.executable).with_name("tachikoma")], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            env={**cli.environment(), **words}, timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == ([AGENT] if server == "real" else [], "")
