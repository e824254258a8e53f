"""The load of a rolling upgrade, as a program: it runs with the library of the last release, and of this tree.

    python upgrade_load.py PROFILE FOLDER NAME AGENT...

On each agent it runs short commands, long commands and streams, each one after another, until FOLDER/stop exists. Each
appends a line to its mark, FOLDER/ID, when it starts. A long command or a stream runs until FOLDER/ID.end exists. The
observations of the callers are appended to FOLDER/NAME.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from tachikoma import AgentDraining, AgentOffline, Client, ExecRequest, ExecResponse

__all__ = ["Note", "end_file"]

#: Between two calls.
PAUSE_SECONDS = 0.3
#: `$0` is the mark.
COMMAND = 'echo $$ >> "$0"; echo done'
LONG = 'echo $$ >> "$0"; while [ ! -e "$0.end" ]; do sleep 0.2; done; echo done'
STREAM = 'echo $$ >> "$0"; n=0; while [ ! -e "$0.end" ]; do n=$((n+1)); echo $n; sleep 0.2; done; echo end'


def end_file(mark: Path) -> Path:
    """The file that ends a long command or a stream."""
    return Path(f"{mark}.end")


@dataclass(frozen=True)
class Note:
    """What a caller saw."""

    #: `command`, `long` or `stream`: one has ended. `lines`: some of a stream have come. `refused`: a call was, by
    #: a drained agent. `failed`: the load itself.
    kind: str
    id: str = ""
    agent: str = ""
    #: When the call began, and when this was noted, by the clock that all processes of a machine share.
    begun: float = 0
    at: float = 0
    #: The state, and what is wrong with the output; empty if nothing is.
    state: str = ""
    wrong: str = ""


class Load:
    """The callers."""

    def __init__(self, client: Client, folder: Path, name: str) -> None:
        self._client = client
        self._folder = folder
        self._name = name
        self._file = (folder / f"{name}.jsonl").open("a", buffering=1)
        self._lock = threading.Lock()

    @property
    def _stopped(self) -> bool:
        return (self._folder / "stop").exists()

    def note(self, note: Note) -> None:
        with self._lock:
            self._file.write(json.dumps(asdict(note)) + "\n")

    def repeat(self, call: Callable[[str, str, float], None], kind: str, agent: str) -> None:
        """Make one call after another on an agent, until the load is stopped or fails."""
        number, exec_id, begun = 0, "", 0.0
        try:
            while not self._stopped:
                number += 1
                exec_id, begun = f"{self._name}-{agent}-{kind}-{number}", time.monotonic()
                try:
                    call(exec_id, agent, begun)
                except (AgentDraining, AgentOffline):
                    self.note(Note("refused", exec_id, agent, begun, time.monotonic()))
                time.sleep(PAUSE_SECONDS)
        except BaseException:
            self.note(Note("failed", exec_id, agent, begun, time.monotonic(), wrong=traceback.format_exc()))

    def command(self, exec_id: str, agent: str, begun: float) -> None:
        self._execute("command", self._request(exec_id, agent, COMMAND), begun)

    def long_command(self, exec_id: str, agent: str, begun: float) -> None:
        self._execute("long", self._request(exec_id, agent, LONG), begun)

    def _execute(self, kind: str, request: ExecRequest, begun: float) -> None:
        response = self._client.execute(request)
        wrong = "" if response.stdout == b"done\n" else f"the output is {response.stdout!r}"
        self._note_end(kind, response, begun, wrong)

    def stream(self, exec_id: str, agent: str, begun: float) -> None:
        output, gaps, result = b"", 0, None
        for message in self._client.execute_stream(self._request(exec_id, agent, STREAM)):
            output += message.data
            gaps += message.missing_bytes
            result = message.result or result
            if message.data:
                self.note(Note("lines", exec_id, agent, begun, time.monotonic()))
        assert result is not None
        self._note_end("stream", result, begun, _wrong_with(output, gaps, result))

    def _request(self, exec_id: str, agent: str, script: str) -> ExecRequest:
        command = ("/bin/sh", "-c", script, str(self._folder / exec_id))
        return ExecRequest(id=exec_id, agent_id=agent, command=command, timeout=timedelta(minutes=10))

    def _note_end(self, kind: str, response: ExecResponse, begun: float, wrong: str) -> None:
        wrong = wrong or response.error
        self.note(Note(kind, response.id, response.agent_id, begun, time.monotonic(), str(response.state), wrong))


def _wrong_with(output: bytes, gaps: int, result: ExecResponse) -> str:
    """Return in words what is wrong with the output of a stream; empty if every byte came, in order, once."""
    *numbers, end = output.split() or [b""]
    digest = (len(output), hashlib.sha256(output).hexdigest())
    if gaps:
        return f"{gaps} bytes are missing"
    if end != b"end" or numbers != [b"%d" % number for number in range(1, len(numbers) + 1)]:
        return f"the output is {output!r}"
    if (result.stdout_summary.total_bytes, result.stdout_summary.sha256) != digest:
        return "the agent read another output"
    return ""


def main(profile: str, folder: str, name: str, *agents: str) -> None:
    """Run the load until it is stopped."""
    with Client.from_profile(Path(profile)) as client:
        load = Load(client, Path(folder), name)
        calls = {"command": load.command, "long": load.long_command, "stream": load.stream}
        threads = [
            threading.Thread(target=load.repeat, args=(call, kind, agent))
            for agent in agents
            for kind, call in calls.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
