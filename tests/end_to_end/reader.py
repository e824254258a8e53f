"""A reader of the pages: the folder with the files that they name, and the things behind the ids that they show."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest
from support import request, wait_until

from audit_chain import chain, events, last_checkpoint
from documents import Block, blocks
from tachikoma import BatchRequest, BatchState, Client, ExecRequest, ExecState, InvalidRequest, TargetState
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.files import BUNDLE_FILE
from tachikoma.identity.spiffe import user_id

__all__ = ["AGENTS", "SLOTS", "Reader", "permit"]

AGENTS, SLOTS = 3, 2
#: What the pages name, and what this system has instead. Programs are replaced too, since hosts of tests lack them.
_NAMES = {
    "web[01-40]!web07": f"agent-[1-{AGENTS}]!agent-2", "web01": f"agent-{AGENTS}",
    "web-": "agent-", "/usr/local/bin/upgrade": "/usr/bin/true", "upgrade": "true", "systemctl": "true",
    "5m": "0s", "/srv": "/tmp",
}  # fmt: skip
#: Folders of hosts that the reader has below its own.
_FOLDERS = ("/etc/tachikoma", "/etc/redis", "/var/lib/tachikoma", "/var/lib/tachikoma-orchestrator")
#: Settings of a worker whose configuration the reader looks at.
_WORKER = {"AGENT_ID": "web-1", "REDIS_URL": "redis://redis.example.org", "DATA": "."}
#: What a page writes for an id that its reader has.
_ID = re.compile(r"\b(?:9beb6694b0a67bee38213a62|BATCH\b|4f1c\b|3f2a\.\.\.)")
_ADA = user_id(TRUST_DOMAIN, "ada")
#: A policy whose requests wait for the reader.
_CAREFUL = """\
  - name: careful
    subjects: ["{ada}"]
    agents: ["**"]
    allowedCommands: [/usr/bin/uptime]
    requireApproval: true
    approvers: ["{reader}"]
"""


def permit(data: Path, reader: str) -> None:
    """Let the policy of a stack allow the reader also sessions, and somebody else only what the reader approves."""
    file = data / "policy.yaml"
    own = file.read_text().replace("spiffe://tachikoma.local/user/*", reader)
    file.write_text(own + "    allowInteractive: true\n" + _CAREFUL.format(ada=_ADA, reader=reader))


def _of_page(page: str, language: str, number: int = 0) -> Block:
    return [block for block in blocks(language) if block.page.name == page][number]


class Reader:
    """A person who follows the pages, and has what they name."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.folder, self._stack = folder, stack
        self._own, self._ada = Client(stack.profile()), Client(stack.issue(_ADA))
        #: Id of the request and of the batch that wait for approval.
        self._waiting: dict[str, str] = {}
        #: What a line needs, in place of the id in it.
        self._things: dict[str, Callable[[], str]] = {
            r"tachikoma (status|logs|audit show) 9beb|tachikoma logs -f 9beb": cache(self._ended),
            r"tachikoma (approvals|approve|reject) 9beb": self._request,
            r"tachikoma batches (approvals|approve|reject) 4f1c": self._batch_request,
            r"tachikoma (run --retry|batches (status|logs|retry)) BATCH": cache(self._failed_batch),
            r"tachikoma batches cancel BATCH": self._running_batch,
            r"tachikoma sessions close 3f2a": self._session,
        }
        self._write_files()
        self._bind_labels()

    def close(self) -> None:
        self._own.close()
        self._ada.close()

    def localise(self, words: list[str]) -> list[str]:
        """Return the words of a command with the names and places of this system."""
        places = {
            "~/.local/share/tachikoma": str(self._stack.data),
            "/var/log/tachikoma": str(self._stack.data / "audit"),
        }
        places |= {place: f"{self.folder}{place}" for place in _FOLDERS}
        # An explanation asks no system: its policy, too, has the names of the page.
        names = places if words[1:3] == ["policy", "explain"] else {**places, **_NAMES}
        # Once, and not within a path.
        known = re.compile(rf"(?<![/\w])(?:{'|'.join(map(re.escape, names))})")
        return [known.sub(lambda found: names[found[0]], word) for word in words]

    def _bind_labels(self) -> None:
        for agent in ("agent-1", "agent-2"):
            self._own.label_agent(agent, {"role": "web", "site": "b1"})
        wanted = BatchRequest(targets=("role=web,site=b*",), command=("true",))

        def active() -> bool:
            # An expression that matches no agent is an error.
            with suppress(InvalidRequest):
                return len(self._own.preview_batch(wanted).targets) == 2
            return False

        wait_until(active, "the labels are active")

    # --- files --------------------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        files = {
            "policy.yaml": _of_page("tasks.md", "yaml"), "new.yaml": _of_page("tasks.md", "yaml"),
            "web.yaml": _of_page("recipes.md", "yaml"), "web.test.yaml": _of_page("recipes.md", "yaml", 1),
            "schedules.yaml": _of_page("schedules.md", "yaml"),
        }  # fmt: skip
        for name, block in files.items():
            (self.folder / name).write_text(block.text)
        expected = '{as: "spiffe://example.org/user/ada", agent: web-1, command: systemctl stop x, expect: deny}'
        (self.folder / "policy.test.yaml").write_text(f"tests:\n  - {expected}\n")
        (self.folder / "hosts").write_text("agent-[1-2]\n")
        for place in _FOLDERS:
            Path(f"{self.folder}{place}").mkdir(parents=True)
        (self.folder / "etc/redis/users.acl").write_text("user default off\n")
        tarfile.open(self.folder / "big.tar", "w").close()
        bundle = (self._stack.identity("user") / BUNDLE_FILE).read_bytes()
        for name in ("both.pem", "new.pem"):
            (self.folder / name).write_bytes(bundle)
        self._write_audit_log()

    def _write_audit_log(self) -> None:
        """Write an audit log whose end was removed, and the log of the orchestrator that shows it."""
        file, log = self.folder / "audit.jsonl", self.folder / "orchestrator.log"
        lines = chain(FileSvidSource(self._stack.identity("orchestrator")), events(1, 5))
        file.write_bytes(b"".join(lines))
        log.write_text(f"audit.checkpoint token={last_checkpoint(file)}\n")
        file.write_bytes(b"".join(lines[:-2]))

    # --- things behind ids --------------------------------------------------------------------------------------------

    def with_ids(self, line: str) -> str:
        """Return a line with the id of what it needs, which is made now."""
        for pattern, make in self._things.items():
            if re.match(pattern, line):
                return _ID.sub(make(), line)
        return line

    def _ended(self) -> str:
        return self._own.execute(request("echo", "step")).id

    def _request(self) -> str:
        """A request of somebody else that waits for approval; the same until it was answered."""
        exec_id = self._waiting.get("request")
        if exec_id is None or self._ada.status(exec_id).state is not ExecState.PENDING_APPROVAL:
            exec_id = self._waiting["request"] = self._ada.submit(request("uptime")).id
        return exec_id

    def _batch_request(self) -> str:
        batch_id = self._waiting.get("batch")
        if batch_id is None or self._ada.batch(batch_id).state is not BatchState.PENDING_APPROVAL:
            wanted = BatchRequest(targets=("agent-*",), command=("uptime",))
            batch_id = self._waiting["batch"] = self._ada.submit_batch(wanted).id
        return batch_id

    def _failed_batch(self) -> str:
        """A batch that failed, and would succeed again."""
        mark = self.folder / "mark"
        wanted = BatchRequest(targets=("agent-1",), command=("test", "-e", str(mark)))
        *_, last = self._own.run(wanted)
        assert last.status is not None
        assert last.status.totals.get(TargetState.FAILED) == 1
        mark.touch()
        return wanted.id

    def _running_batch(self) -> str:
        wanted = BatchRequest(targets=("agent-1",), command=("sleep", "600"))
        return self._own.submit_batch(wanted).id

    def _session(self) -> str:
        wanted = ExecRequest(agent_id="agent-1", command=("cat",), interactive=True)
        with self._own.session(wanted) as session:
            # The first message is the execution's state.
            for _ in session:
                session.detach()
        return wanted.id

    @contextmanager
    def prepared(self, line: str) -> Iterator[None]:
        """Have what a line needs without naming it, and end that afterwards."""
        with pytest.MonkeyPatch.context() as patch, ExitStack() as ends:
            if line.startswith("tachikoma config "):
                for name, value in _WORKER.items():
                    patch.setenv(f"TACHIKOMA_{name}", value)
            if "--state QUEUED" in line:
                ends.enter_context(self._queued())
            yield

    @contextmanager
    def _queued(self) -> Iterator[None]:
        """An execution that waits for a slot, and that the line cancels."""
        agent = f"agent-{AGENTS}"
        using = [self._own.submit(request("sleep", "600", agent_id=agent)).id for _ in range(SLOTS)]
        for exec_id in using:
            wait_until(lambda exec_id=exec_id: self._own.status(exec_id).state is ExecState.STARTED, "it runs")
        waiting = self._own.submit(request("true", agent_id=agent)).id
        assert self._own.status(waiting).state is ExecState.QUEUED
        yield
        wait_until(lambda: self._own.status(waiting).state is ExecState.CANCELLED, "it is cancelled")
        for exec_id in using:
            self._own.cancel(exec_id)
