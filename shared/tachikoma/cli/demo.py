"""`tachikoma demo`: the whole system, with real work on a real agent, in half a minute."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import typer

from tachikoma.cli.audit import show_events
from tachikoma.client.sync import Client
from tachikoma.dev.stack import Stack
from tachikoma.errors import PermissionDenied, TachikomaError
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import ExecResponse, OutputKind
from tachikoma.vocabulary.states import ExecState

__all__ = ["run_demo"]

AGENT = "agent-1"


class DemoFailed(TachikomaError):
    """The demonstration did not go as it must; this is a bug."""


def _title(text: str) -> None:
    typer.secho(f"\n── {text} " + "─" * max(0, 76 - len(text)), bold=True)


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise DemoFailed(f"the demonstration failed: {what}")


def _told(response: ExecResponse) -> None:
    milliseconds = response.duration.total_seconds() * 1000
    typer.echo(f"   {response.state}, exit code {response.exit_code}, {milliseconds:.1f} ms on the agent")


def run_demo() -> None:
    """Run it.

    Raises:
        TachikomaError: something did not go as it must.
    """
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tachikoma-demo-") as folder:
        typer.echo("Starting Redis (embedded Valkey), an orchestrator and an agent, all over mTLS …")
        with Stack(Path(folder)) as stack:
            typer.echo(f"Ready after {time.monotonic() - begin:.1f} s. You are {stack.user}.")
            with Client(stack.profile()) as client:
                _short(client)
                _failing(client)
                _streaming(client)
                _large(client)
                _refused(stack, client)
                _cancelled(client)
                _title("The audit trail has it all")
                show_events(client.audit(limit=100))
    typer.secho(f"\nAll as it should be, in {time.monotonic() - begin:.0f} s. Nothing is left running.", fg="green")


def _short(client: Client) -> None:
    _title("A short command: uname -a")
    response = client.execute(ExecRequest(agent_id=AGENT, command=("uname", "-a")))
    typer.echo("   " + response.stdout.decode().rstrip())
    _told(response)
    _expect(response.exit_code == 0 and response.stdout.startswith(b"Linux"), "uname said something else")


def _failing(client: Client) -> None:
    _title("A command that fails: its exit code comes back")
    response = client.execute(ExecRequest(agent_id=AGENT, command=("ls", "/does/not/exist")))
    typer.echo("   " + response.stderr.decode().rstrip())
    _told(response)
    _expect(response.state is ExecState.FAILED and response.exit_code == 2, "ls did not fail with 2")


def _streaming(client: Client) -> None:
    _title("A command that takes its time: each line as it is written")
    script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.5; done"
    arrivals: list[float] = []
    for output in client.execute_stream(ExecRequest(agent_id=AGENT, command=("sh", "-c", script))):
        if output.kind is OutputKind.STDOUT and output.time is not None:
            late = time.time() - output.time.timestamp()
            arrivals.append(time.monotonic())
            sys.stdout.write(f"   {output.data.decode().rstrip()}   ({late * 1000:.1f} ms after it was read)\n")
            sys.stdout.flush()
    _expect(len(arrivals) == 5 and arrivals[-1] - arrivals[0] > 1.5, "the lines did not come one by one")


def _large(client: Client) -> None:
    root = "/usr"
    _title(f"Large output: every file under {root}, checked against the file system")
    digest, total, listed = hashlib.sha256(), 0, bytearray()
    result: ExecResponse | None = None
    begin = time.monotonic()
    # Without folders that not everybody may read: the agent's default user is another than who walks them here.
    hidden = ("-type", "d", "!", "-perm", "-o=rx", "-prune")
    request = ExecRequest(agent_id=AGENT, command=("find", root, "-xdev", *hidden, "-o", "-type", "f", "-print0"))
    for output in client.execute_stream(request):
        _expect(output.kind is not OutputKind.GAP, "output was lost")
        if output.kind is OutputKind.STDOUT:
            digest.update(output.data)
            total += len(output.data)
            listed += output.data
        elif output.kind is OutputKind.RESULT:
            result = output.result
    seconds = time.monotonic() - begin
    _expect(result is not None and result.exit_code == 0, "find failed")
    assert result is not None
    names = sorted(bytes(listed).split(b"\0")[:-1])
    typer.echo(f"   {len(names)} files, {total} bytes in {seconds:.1f} s")
    _expect(result.stdout_summary.total_bytes == total, "the byte count differs")
    _expect(result.stdout_summary.sha256 == digest.hexdigest(), "the SHA-256 differs from the agent's")
    typer.echo(f"   SHA-256 of what came: {digest.hexdigest()[:32]}…, as the agent signed it")
    here = sorted(_files(os.fsencode(root)))
    same = hashlib.sha256(b"\0".join(names)).digest() == hashlib.sha256(b"\0".join(here)).digest()
    _expect(same, "the listing differs from the file system")
    typer.echo("   SHA-256 of the sorted names equals that of the file system, walked here")


def _files(root: bytes) -> list[bytes]:
    """Regular files below a folder, on its file system, in folders that everybody may read."""
    device = os.lstat(root).st_dev
    found: list[bytes] = []
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    found.append(entry.path)
                elif entry.is_dir(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_dev == device and status.st_mode & 0o005 == 0o005:
                        pending.append(entry.path)
    return found


def _refused(stack: Stack, client: Client) -> None:
    _title("A command that policy refuses: reboot")
    try:
        client.execute(ExecRequest(agent_id=AGENT, command=("reboot",)))
    except PermissionDenied as error:
        typer.echo(f"   {error}")
        typer.echo(f"   rule: {error.metadata['rule']} of {error.metadata['policy']}")
    else:
        raise DemoFailed("the demonstration failed: policy let reboot through")


def _cancelled(client: Client) -> None:
    _title("A command that is cancelled in the middle: sleep 600")
    request = ExecRequest(agent_id=AGENT, command=("sh", "-c", "echo working; sleep 600"))
    result: ExecResponse | None = None
    for output in client.execute_stream(request):
        if output.kind is OutputKind.STDOUT:
            typer.echo(f"   {output.data.decode().rstrip()}, and cancelled now")
            threading.Thread(target=client.cancel, args=(request.id,)).start()
        elif output.kind is OutputKind.RESULT:
            result = output.result
    _expect(result is not None and result.state is ExecState.CANCELLED, "it was not cancelled")
    assert result is not None
    _told(result)
