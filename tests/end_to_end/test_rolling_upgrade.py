"""A rolling upgrade from the last release, in the documented order (docs/tasks.md), while commands, streams and
schedules run: none fails."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from books import compare_books
from last_release import TAG, LastRelease
from rolling_upgrade import Callers, UpgradedStack, schedule_of
from support import make_cli, nothing_denied, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import Client, DueOutcome, ExecState, ScheduledRun

#: Between two scheduled times of the schedules.
EVERY = timedelta(seconds=1)


@pytest.fixture
def stack(tmp_path: Path, redis_server: Path | None, need: Callable[[bool, str], None]) -> Iterator[UpgradedStack]:
    folder = tmp_path / TAG
    folder.mkdir()
    with UpgradedStack(tmp_path, LastRelease.unpack(folder, need), redis_server) as running:
        yield running


class Upgrade:
    """The steps, each with the load around it, and what the observer finds at the end."""

    def __init__(self, stack: UpgradedStack, client: Client, callers: Sequence[Callers]) -> None:
        self._stack = stack
        self._client = client
        self._callers = callers
        #: When each agent was drained, and when it was resumed: the monotonic clock, and the time.
        self._drained: dict[str, tuple[float, float]] = {}
        self._drained_times: dict[str, tuple[datetime, datetime]] = {}

    @contextmanager
    def step(self, *agents: str) -> Iterator[None]:
        """A step that concerns neither commands nor streams nor schedules on these agents, or all agents."""
        on = agents or tuple(self._stack.agent_ids)
        wait_until(lambda: all(len(running) == 2 for running in self._running(on)), "long commands and streams run")
        before = self._running(on)
        yield
        self.load_goes_on(*on)
        assert before == self._running(on)

    def _running(self, agents: Sequence[str]) -> list[set[str]]:
        return [caller.running(agent) for caller in self._callers for agent in agents]

    def load_goes_on(self, *agents: str) -> None:
        """Wait until commands, streams and schedules went on, on each agent, since now."""
        since, now = time.monotonic(), datetime.now(UTC)
        for agent in agents:
            for caller in self._callers:
                wait_until(lambda c=caller, a=agent: c.went_on(a, since), f"the load goes on, on {agent}")
            wait_until(
                lambda a=agent: any(run.due > now and run.state is ExecState.SUCCEEDED for run in self._runs(a)),
                f"the schedule goes on, on {agent}",
            )

    def drain(self, agent: str) -> None:
        """Drain an agent as the documents say, upgrade its worker with its spawner, and resume it."""
        cli = make_cli(self._stack)
        wait_until(lambda: all(len(running) == 2 for running in self._running([agent])), f"{agent} is busy")
        begun, begun_time = time.monotonic(), datetime.now(UTC)
        drain = cli.start("agents", "drain", agent, "--reason", "upgrade", "--wait")
        try:
            # 1. Callers are refused at once. Long commands and streams go on, and `--wait` waits for them.
            for caller in self._callers:
                wait_until(lambda c=caller: c.refused(agent, begun), f"{agent} is drained")
            assert drain.poll() is None
            for caller in self._callers:
                assert len(caller.running(agent)) == 2
                caller.end_running(agent)
            _, errors = drain.communicate(timeout=PATIENCE_SECONDS)
            assert drain.returncode == 0, errors
        finally:
            drain.kill()
            drain.communicate()
        # 2. Both are restarted.
        self._stack.upgrade(self._stack.agents[agent])
        # 3. The agent takes commands again.
        resumed = cli.run("agents", "resume", agent)
        assert resumed.returncode == 0, resumed.stderr
        self._drained[agent] = (begun, time.monotonic())
        self._drained_times[agent] = (begun_time, datetime.now(UTC))
        self.load_goes_on(agent)

    # --- the end ------------------------------------------------------------------------------------------------------

    def stop_load(self) -> None:
        """Stop the callers and the schedules, and wait until all that they started has ended."""
        (self._stack.marks / "stop").touch()
        for caller in self._callers:
            caller.wait(self._stack.agent_ids)
        for agent in self._stack.agent_ids:
            self._client.pause_schedule(schedule_of(agent), "the end of the test")
            wait_until(
                lambda a=agent: all(run.outcome is not DueOutcome.TAKEN for run in self._runs(a)),
                f"all scheduled times of {agent} are settled",
            )
        wait_until(lambda: not list(self._client.list()), "all executions have ended")

    def check_calls(self) -> None:
        """Every command and every stream succeeded and started once; only drained agents refused."""
        for caller in self._callers:
            counts = Counter[tuple[str, str]]()
            for note in caller.notes():
                counts[note.kind, note.agent] += 1
                if note.kind == "refused":
                    begun, ended = self._drained[note.agent]
                    assert begun < note.at, note
                    assert note.begun < ended, note
                    assert self._starts(note.id) == 0, note
                elif note.kind != "lines":
                    assert (note.state, self._starts(note.id)) == (ExecState.SUCCEEDED, 1), note
            for agent in self._stack.agent_ids:
                # One before and one after the agent's own upgrade.
                assert counts["stream", agent] >= 2, counts
                assert counts["long", agent] >= 2, counts
                assert counts["command", agent] >= 10, counts
        assert {status.state for status in self._client.list(include_ended=True)} == {ExecState.SUCCEEDED}

    def check_schedules(self) -> None:
        """Each scheduled time ran once, but for those at which the agent was drained."""
        for agent in self._stack.agent_ids:
            runs = sorted(self._runs(agent), key=lambda run: run.due)
            due = [run for run in runs if run.outcome is not DueOutcome.SKIPPED]
            assert all(later.due - run.due == EVERY for run, later in pairwise(due)), runs
            assert all(run.count == 1 for run in due), runs
            begun, ended = self._drained_times[agent]
            ran = [run for run in due if run.outcome is DueOutcome.RUN]
            for run in due:
                # Decided, by a submitter that may have been slow, while the agent was drained.
                assert run in ran or (run.outcome is DueOutcome.REFUSED and begun <= run.time and run.due <= ended), run
            assert all(run.state is ExecState.SUCCEEDED for run in ran)
            assert self._starts(schedule_of(agent)) == len(ran) >= 10

    def check_audit_trail(self) -> None:
        """The audit logs of both orchestrators verify, and tell the same as the ledger."""
        compare_books(self._stack)
        verified = make_cli(self._stack).run("audit", "verify", str(self._stack.data / "audit"))
        assert verified.returncode == 0, verified.stdout + verified.stderr
        nothing_denied(self._stack)

    def _runs(self, agent: str) -> Sequence[ScheduledRun]:
        return self._client.scheduled_runs(schedule_of(agent), limit=1000)

    def _starts(self, mark: str) -> int:
        path = self._stack.marks / mark
        return len(path.read_text().split()) if path.exists() else 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_commands_streams_and_schedules_run_through_an_upgrade_from_the_last_release(stack: UpgradedStack) -> None:
    both = stack.profile_of(stack.second_listen, stack.listen)
    with ExitStack() as opened:
        client = opened.enter_context(Client(both))
        # A caller of the last release knows one orchestrator, and waits for it; one of this tree knows both.
        callers = [
            Callers("older", stack, stack.profile(), stack.release.environment),
            Callers("newer", stack, both, {}),
        ]
        for caller in callers:
            opened.callback(caller.close)
        upgrade = Upgrade(stack, client, callers)
        assert not any(agent.isolation for agent in client.agents())
        # 1. The Redis users, with the rights of both versions.
        with upgrade.step():
            stack.load_users()
        # 2. Submitters, one after the other, and beat.
        assert stack.beat is not None
        for parts in ([stack.submitters[0]], [stack.submitters[1], stack.beat]):
            with upgrade.step():
                for part in parts:
                    stack.upgrade(part)
        # 3. Orchestrators, one after the other.
        for part in stack.orchestrators:
            with upgrade.step():
                stack.upgrade(part)
        # 4. The policy, which older orchestrators and submitters would have refused.
        stack.change_policy()
        # 5. Workers, one after the other. The protocol of the spawner changed, so each is drained.
        first, second = stack.agent_ids
        with upgrade.step(second):
            upgrade.drain(first)
        with upgrade.step(first):
            upgrade.drain(second)
        # They are the ones of this tree, which report how they can isolate commands.
        assert all(agent.isolation for agent in client.agents())
        upgrade.stop_load()
        upgrade.check_calls()
        upgrade.check_schedules()
        upgrade.check_audit_trail()
