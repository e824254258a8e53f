"""A system of the last release whose parts are upgraded one after another, and its load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import upgrade_load
from last_release import LastRelease
from redis import Redis
from support import wait_until
from upgrade_load import Note, end_file

from tachikoma.client.profile import Profile
from tachikoma.client.sync import Client
from tachikoma.dev.part import WITH_PARENT, Part
from tachikoma.dev.redis_server import free_port
from tachikoma.dev.stack import Stack

__all__ = ["Callers", "UpgradedStack", "schedule_of"]

#: In the language of the last release. A mistake or an unknown field would keep its orchestrators from starting.
POLICY = """\
operators: ["{user}"]
policies:
  - name: everybody
    subjects: ["spiffe://tachikoma.local/user/*", "spiffe://tachikoma.local/schedule/*"]
    agents: ["**"]
    allowedCommands: ["/** ..."]
    allowInterpreters: true
    allowedUsers: ["*", root]
    maxTimeout: 10m
"""
#: What commands of root need from the worker of this tree on, to leave their marks.
POLICY_OF_THIS_TREE = "    hostAccess: true\n"
SCHEDULED = 'echo $$ >> "$0"'


def schedule_of(agent: str) -> str:
    """The schedule that runs on an agent each second."""
    return f"on-{agent}"


class UpgradedStack(Stack):
    """Redis, two orchestrators, two submitters, beat and two agents, all of the last release at first."""

    def __init__(self, data: Path, release: LastRelease, redis_server: Path | None) -> None:
        # Results that an agent reported on no orchestrator's own channel are found by the sweep.
        super().__init__(
            data, agents=2, redis_server=redis_server, schedules=str(data / "schedules.json"),
            environment={"TACHIKOMA_SWEEP": "0.5s"},
        )  # fmt: skip
        self.release = release
        self.second_listen = f"127.0.0.1:{free_port()}"
        self.orchestrators: list[Part] = []
        self.submitters: list[Part] = []
        self.marks = data / "marks"
        self.marks.mkdir()
        self.policy.write_text(POLICY.format(user=self.user))
        # JSON is YAML.
        schedules = [
            {
                "name": schedule_of(agent),
                "every": "1s",
                "agentId": agent,
                "request": {"command": self._scheduled(agent)},
            }
            for agent in self.agent_ids
        ]
        (data / "schedules.json").write_text(json.dumps({"schedules": schedules}))

    def _scheduled(self, agent: str) -> list[str]:
        return ["/bin/sh", "-c", SCHEDULED, str(self.marks / schedule_of(agent))]

    # --- parts --------------------------------------------------------------------------------------------------------

    def _make_parts(self) -> None:
        super()._make_parts()
        assert self.submitter is not None
        assert self.beat is not None
        second = Part(
            "orchestrator-2",
            [self.second_listen if word == self.listen else word for word in self.orchestrator._command],
            self.data / "logs" / "orchestrator-2.log",
            {
                **self.orchestrator._environment,
                "TACHIKOMA_AUDIT_LOG": str(self.data / "audit" / "orchestrator-2.jsonl"),
            },
        )
        self.orchestrators = [self.orchestrator, second]
        log = self.data / "logs" / "submitter-2.log"
        self.submitters = [
            self.submitter, Part("submitter-2", self.submitter._command, log, self.submitter._environment)
        ]  # fmt: skip
        for part in (*self.orchestrators, *self.submitters, self.beat, *self.agents.values()):
            part._environment = {**part._environment, **self.release.environment}
        self.users.write_text(self._printed_users(self.release.environment))

    def start(self) -> None:
        super().start()
        self.start_part(self.submitters[1])

    def start_orchestrator(self) -> None:
        super().start_orchestrator()
        self.start_part(self.orchestrators[1])

    def stop(self) -> None:
        others = (*self.submitters[1:], *self.orchestrators[1:])
        for part in others:
            part.terminate()
        for part in others:
            part.stop()
        super().stop()

    # --- the steps of an upgrade --------------------------------------------------------------------------------------

    @property
    def users(self) -> Path:
        """The ACL file of Redis."""
        return self.data / "redis" / "users.acl"

    def _printed_users(self, environment: dict[str, str]) -> str:
        command = ["redis", "acl", "--passwords", str(self.redis_passwords.folder)]
        done = subprocess.run(
            [sys.executable, "-m", "tachikoma", *command], env={**os.environ, **environment},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    def load_users(self) -> None:
        """Print the Redis users with this tree, and let Redis load them."""
        self.users.write_text(self._printed_users({}))
        with Redis(**self.redis_admin) as redis:
            assert redis.acl_load()

    def upgrade(self, part: Part) -> None:
        """Restart a part with the packages of this tree."""
        part.stop()
        part._environment = {k: v for k, v in part._environment.items() if k not in self.release.environment}
        self.start_part(part)

    def change_policy(self) -> None:
        """Use a field of this tree in the policy, and wait until both orchestrators do."""
        with Client(self.profile_of(self.listen)) as first, Client(self.profile_of(self.second_listen)) as second:
            before = first.policy_status().digest
            new = self.policy.with_suffix(".new")
            new.write_text(self.policy.read_text() + POLICY_OF_THIS_TREE)
            new.rename(self.policy)
            for client in (first, second):
                wait_until(lambda c=client: c.policy_status().digest != before, "the new policy is active")

    def profile_of(self, *addresses: str) -> Profile:
        return replace(self.profile(), address=",".join(addresses))


class Callers:
    """A program that runs the load: with the library of the last release, or of this tree."""

    def __init__(self, name: str, stack: UpgradedStack, profile: Profile, environment: dict[str, str]) -> None:
        self.name = name
        self._folder = stack.marks
        self._notes: list[Note] = []
        path = stack.data / f"{name}.json"
        profile.save(path)
        self._log = (stack.data / "logs" / f"{name}.log").open("ab")
        self._process = subprocess.Popen(
            [*WITH_PARENT, sys.executable, upgrade_load.__file__, str(path), str(stack.marks), name, *stack.agent_ids],
            env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        self._file = (stack.marks / f"{name}.jsonl").open("a+")
        self._file.seek(0)

    def notes(self) -> list[Note]:
        """All that these callers saw. Fails if one of them failed."""
        while True:
            place = self._file.tell()
            line = self._file.readline()
            if not line.endswith("\n"):
                # Half a line.
                self._file.seek(place)
                return self._notes
            note = Note(**json.loads(line))
            assert note.kind != "failed", f"{note.id} of {self.name} failed:\n{note.wrong}"
            assert not note.wrong, f"{note.id} of {self.name} ended {note.state}: {note.wrong}"
            self._notes.append(note)

    def running(self, agent: str) -> set[str]:
        """The ids of the long command and the stream that run on an agent."""
        marks = [self._folder.glob(f"{self.name}-{agent}-{kind}-*") for kind in ("long", "stream")]
        begun = {mark.name for found in marks for mark in found}
        ended = {note.id for note in self.notes() if note.kind in ("long", "stream")}
        return {name for name in begun if not name.endswith(".end")} - ended

    def went_on(self, agent: str, since: float) -> bool:
        """Whether a command that began after a time has ended on an agent, and a stream has sent something."""
        notes = [note for note in self.notes() if note.agent == agent]
        command = any(note.kind == "command" and note.begun > since for note in notes)
        return command and any(note.kind == "lines" and note.at > since for note in notes)

    def refused(self, agent: str, since: float) -> bool:
        """Whether a request that began after a time was refused since its agent is drained."""
        return any(note.kind == "refused" and note.agent == agent and note.begun > since for note in self.notes())

    def end_running(self, agent: str) -> None:
        """End the long command and the stream that run on an agent."""
        for exec_id in self.running(agent):
            end_file(self._folder / exec_id).touch()

    def wait(self, agents: Iterable[str]) -> None:
        """Wait until the callers have ended, after they were asked to stop."""

        def ended() -> bool:
            for agent in agents:
                self.end_running(agent)
            return self._process.poll() is not None

        wait_until(ended, f"{self.name} ends")
        assert self._process.returncode == 0, Path(self._log.name).read_text()

    def close(self) -> None:
        """End the program, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._file.close()
        self._log.close()
