"""`tachikoma demo`: the whole system, with real work on a real agent, in half a minute."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tachikoma.cli.commands.audit import show_events
from tachikoma.client.sync import Client
from tachikoma.errors import PermissionDenied, TachikomaError
from tachikoma.vocabulary.clock import milliseconds
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import ExecResponse
from tachikoma.vocabulary.states import ExecState

__all__ = ["add_to"]

if TYPE_CHECKING:
    from tachikoma.dev.stack import Stack

AGENT = "agent-1"

#: Columns of a title's line.
TITLE_COLUMNS = 76

#: The clock of file systems is behind that of processes, by at most a tick of the kernel; more costs nothing.
CLOCK_SECONDS = 1.0


class DemoFailed(TachikomaError):
    """A step of the demonstration gave another result than it must; this is a bug."""


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(demo)


def _title(text: str) -> None:
    typer.secho(f"\n── {text} " + "─" * max(0, TITLE_COLUMNS - len(text)), bold=True)


def _expect(condition: bool, failure: str) -> None:
    if not condition:
        raise DemoFailed(f"the demonstration failed: {failure}")


def _show(response: ExecResponse) -> None:
    took_ms = milliseconds(response.duration)
    typer.echo(f"   {response.state}, exit code {response.exit_code}, {took_ms:.1f} ms on the agent")


def demo() -> None:
    """Start the whole system, run real work on it, show what happened, and stop."""
    # Imported here, so that other commands need not wait for it.
    from tachikoma.dev.stack import Stack

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
                _title("The audit trail of all this")
                show_events(client.audit(limit=100))
    typer.secho(f"\nEverything worked, in {time.monotonic() - begin:.0f} s. Nothing is left running.", fg="green")


def _short(client: Client) -> None:
    _title("A short command: uname -a")
    response = client.execute(ExecRequest(agent_id=AGENT, command=("uname", "-a")))
    typer.echo("   " + response.stdout.decode().rstrip())
    _show(response)
    _expect(response.exit_code == 0 and response.stdout.startswith(b"Linux"), "uname printed something else")


def _failing(client: Client) -> None:
    _title("A command that fails: its exit code comes back")
    response = client.execute(ExecRequest(agent_id=AGENT, command=("ls", "/does/not/exist")))
    typer.echo("   " + response.stderr.decode().rstrip())
    _show(response)
    _expect(response.state is ExecState.FAILED and response.exit_code == 2, "ls did not fail with 2")


def _streaming(client: Client) -> None:
    _title("A slow command: each line arrives as it is written")
    script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.5; done"
    arrivals: list[float] = []
    for output in client.execute_stream(ExecRequest(agent_id=AGENT, command=("sh", "-c", script))):
        if output.kind is OutputKind.STDOUT and output.time is not None:
            delay = datetime.now(UTC) - output.time
            arrivals.append(time.monotonic())
            sys.stdout.write(f"   {output.data.decode().rstrip()}   ({milliseconds(delay):.1f} ms after it was read)\n")
            sys.stdout.flush()
    _expect(len(arrivals) == 5 and arrivals[-1] - arrivals[0] > 1.5, "the lines did not come one by one")


def _large(client: Client) -> None:
    """List many files, and check the bytes against the agent's digest and the names against the file system."""
    root = "/usr"
    _title(f"Large output: every file under {root}, checked against the file system")
    since = time.time() - CLOCK_SECONDS
    before = _files(os.fsencode(root))
    begin = time.monotonic()
    output, result = _collect(client, _find_files(root))
    seconds = time.monotonic() - begin
    _expect(result is not None and result.exit_code == 0, "find failed")
    assert result is not None
    names = output.split(b"\0")[:-1]
    typer.echo(f"   {len(names)} files, {len(output)} bytes in {seconds:.1f} s")
    digest = hashlib.sha256(output).hexdigest()
    _expect(result.stdout_summary.total_bytes == len(output), "the byte count differs")
    _expect(result.stdout_summary.sha256 == digest, "the SHA-256 differs from the agent's")
    typer.echo(f"   SHA-256 of the output: {digest[:32]}…, as the agent signed it")
    _expect(_agree(names, before, _files(os.fsencode(root)), since), "the listing differs from the file system")
    typer.echo("   The names are those of the file system")


def _find_files(root: str) -> ExecRequest:
    """Make the request for the files under a folder, without folders that other users may not read."""
    # The agent's default user is another one than the user of this process, which lists the files too.
    hidden = ("-type", "d", "!", "-perm", "-o=rx", "-prune")
    # Another process may remove a file that `find` has just seen.
    find = ("find", root, "-ignore_readdir_race", "-xdev")
    return ExecRequest(agent_id=AGENT, command=(*find, *hidden, "-o", "-type", "f", "-print0"))


def _agree(names: list[bytes], before: set[bytes], after: set[bytes], since: float) -> bool:
    """Return True if a listing fits the file system: each file once, and no other difference than files that changed.

    Args:
        names: the listing.
        before: the files before it.
        after: the files after it.
        since: time before the first of the three, in seconds since the epoch.
    """
    found = set(names)
    different = (found - before - after) | (before & after) - found
    return len(found) == len(names) and all(_changed(name, since) for name in different)


def _changed(name: bytes, since: float) -> bool:
    """Return True if a file was made, replaced or renamed since a time, or is gone."""
    try:
        return os.lstat(name).st_ctime >= since
    except (FileNotFoundError, NotADirectoryError):
        return True


def _collect(client: Client, request: ExecRequest) -> tuple[bytes, ExecResponse | None]:
    """Run a command and return its whole standard output, and its result."""
    output = bytearray()
    result: ExecResponse | None = None
    for item in client.execute_stream(request):
        _expect(item.kind is not OutputKind.GAP, "output was lost")
        output += item.data if item.kind is OutputKind.STDOUT else b""
        result = item.result
    return bytes(output), result


def _files(root: bytes) -> set[bytes]:
    """List the regular files under a folder, on its file system, in folders that all users may read."""
    device = os.lstat(root).st_dev
    found: set[bytes] = set()
    pending = [root]
    while pending:
        # Another process may remove a folder meanwhile.
        with suppress(FileNotFoundError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    found.add(entry.path)
                elif entry.is_dir(follow_symlinks=False) and _readable(entry.stat(follow_symlinks=False), device):
                    pending.append(entry.path)
    return found


def _readable(status: os.stat_result, device: int) -> bool:
    return status.st_dev == device and status.st_mode & 0o005 == 0o005


def _refused(stack: Stack, client: Client) -> None:
    _title("A command that policy refuses: reboot")
    try:
        client.execute(ExecRequest(agent_id=AGENT, command=("reboot",)))
    except PermissionDenied as error:
        typer.echo(f"   {error}")
        typer.echo(f"   rule: {error.metadata['rule']} of {error.metadata['policy']}")
    else:
        raise DemoFailed("the demonstration failed: policy allowed reboot")


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
    _show(result)
