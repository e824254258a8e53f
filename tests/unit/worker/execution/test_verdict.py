"""The final state of a command, from all that can be known of its end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.isolation import Isolation
from tachikoma.vocabulary.limits import ResourceUsage
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker.confinement.isolation.enclosure import Enclosure
from tachikoma_worker.confinement.protocol import Exit
from tachikoma_worker.execution.verdict import (
    MAX_FAILURE_CHARS,
    NEEDS_HOST_ACCESS,
    Stop,
    describe,
    failure,
    judge,
    stopped_before_start,
)
from tachikoma_worker.output.records import Ending, Facts, SessionFacts

FACTS = Facts(
    host="h", order_sha256="", executable="/bin/x", started_ms=5, began_ns=1, timeout=2.5, kill_grace=1,
    memory=64 * 2**20, session=SessionFacts(idle_seconds=60, detached_seconds=0.5),
)  # fmt: skip
OK, FAILED, KILLED = Exit(0, 0, 0.25), Exit(3, 0, 0.25), Exit(137, 9, 0.25)


def judged(
    exited: Exit | None,
    stopped: Stop | None = None,
    survivors: tuple[int, ...] = (),
    usage: ResourceUsage | None = None,
    facts: Facts = FACTS,
) -> Ending:
    return judge(
        facts, stopped=stopped, survivors=survivors, exited=exited, usage=usage or ResourceUsage(), whole=True,
        duration_us=7,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("exited", "stopped", "state", "error"),
    [
        (OK, None, ExecState.SUCCEEDED, ""),
        (FAILED, None, ExecState.FAILED, ""),
        (KILLED, None, ExecState.FAILED, "killed by SIGKILL"),
        (Exit(128 + 63, 63, 0), None, ExecState.FAILED, "killed by signal 63"),
        (None, None, ExecState.LOST, "its end is not known"),
        (KILLED, Stop.CANCELLED, ExecState.CANCELLED, "cancelled"),
        (KILLED, Stop.TIMED_OUT, ExecState.TIMED_OUT, "killed at its timeout of 2.5 s"),
        (KILLED, Stop.SHUTDOWN, ExecState.FAILED, "killed: the agent was shut down"),
        (OK, Stop.CANCELLED, ExecState.CANCELLED, "cancelled"),
        (KILLED, Stop.IDLE, ExecState.TIMED_OUT, "hung up: no input for 60 s"),
        (OK, Stop.DETACHED, ExecState.TIMED_OUT, "hung up: no caller was attached for 0.5 s"),
        (KILLED, Stop.CLOSED, ExecState.CANCELLED, "hung up: its caller closed the session"),
    ],
)
def test_without_survivors_exit_and_stop_decide(
    exited: Exit | None, stopped: Stop | None, state: ExecState, error: str
) -> None:
    ending = judged(exited, stopped)
    assert (ending.state, ending.error) == (state, error)
    assert (ending.executable, ending.started_ms, ending.duration_us) == ("/bin/x", 5, 7)
    assert (ending.kill is not None) == (stopped is not None)


def test_a_failed_command_of_root_says_which_field_of_policy_would_allow_more() -> None:
    closed = Enclosure(Isolation.PRIVATE, masked=True, read_only=True)
    granted = Enclosure(masked=True, host_access=True)
    hints = {}
    for enclosure in (closed, granted):
        facts = FACTS.model_copy(update={"isolation": enclosure.report()})
        hints[enclosure.host_access] = [judged(exited, facts=facts).error for exited in (OK, FAILED, KILLED)]
    assert hints == {False: ["", NEEDS_HOST_ACCESS, "killed by SIGKILL"], True: ["", "", "killed by SIGKILL"]}
    assert "set hostAccess in the policy" in NEEDS_HOST_ACCESS


def test_a_command_that_exceeded_its_memory_says_how_much_it_had() -> None:
    usage = ResourceUsage(oom_kills=1)
    ending = judged(KILLED, usage=usage)
    assert (ending.state, ending.error) == (ExecState.OUT_OF_MEMORY, "killed: it used more than its 64.0MiB of memory")
    without = FACTS.model_copy(update={"memory": None})
    assert judged(KILLED, usage=usage, facts=without).error == "killed: it used more memory than there was"
    # A child was killed for want of memory, and the command handled that.
    assert judged(OK, usage=usage).state is ExecState.SUCCEEDED


def test_survivors_are_named_and_make_a_stop_unknown() -> None:
    ending = judged(KILLED, Stop.CANCELLED, (7, 8))
    assert ending.state is ExecState.LOST
    assert ending.error == "cancelled; could not kill all of it: processes 7, 8 are still there"
    assert ending.kill is not None
    assert (ending.kill.empty, ending.kill.survivors, ending.kill.signals) == (False, (7, 8), (15, 9))


def test_leftovers_that_survive_do_not_change_how_the_command_ended() -> None:
    ending = judged(FAILED, None, (7,))
    assert (ending.state, ending.exit_code) == (ExecState.FAILED, 3)
    assert ending.error == "could not kill all of it: processes 7 are still there"
    assert ending.kill is not None
    assert ending.kill.signals == (9,)


def test_processor_time_is_that_of_the_exit_where_there_is_no_cgroup() -> None:
    assert judged(OK).usage.cpu_seconds == 0.25
    assert judged(OK, usage=ResourceUsage(cpu_seconds=1.5)).usage.cpu_seconds == 1.5
    assert judged(None).usage.cpu_seconds is None


@given(
    st.none() | st.builds(Exit, st.integers(0, 255), st.integers(0, 64), st.floats(0, 1e6)),
    st.none() | st.sampled_from(Stop),
    st.lists(st.integers(1, 2**31 - 1), max_size=40),
    st.none() | st.integers(0, 5),
)
def test_whatever_is_known_of_a_command_there_is_an_ending(
    exited: Exit | None, stopped: Stop | None, survivors: list[int], oom_kills: int | None
) -> None:
    ending = judged(exited, stopped, tuple(survivors), ResourceUsage(oom_kills=oom_kills))
    assert ending.state.terminal
    if exited is None:
        assert ending.exit_code == -1
        assert ending.state in (ExecState.LOST, ExecState.CANCELLED, ExecState.TIMED_OUT, ExecState.FAILED)
    if survivors and (stopped or exited is None):
        assert ending.state is ExecState.LOST
    if ending.state is ExecState.SUCCEEDED:
        assert (ending.error == "") == (not survivors)


def test_a_stop_before_the_start_is_a_cancel_or_a_refusal() -> None:
    assert stopped_before_start(Stop.CANCELLED).state is ExecState.CANCELLED
    refused = stopped_before_start(Stop.SHUTDOWN)
    assert (refused.state, refused.error) == (ExecState.REJECTED, "not started: the agent is shutting down")


def test_a_failure_of_the_agent_is_lost_and_says_what_failed() -> None:
    assert failure(OSError(28, "No space left")).error == "the agent failed: OSError: [Errno 28] No space left"
    started = failure(RuntimeError("x"), FACTS)
    assert (started.state, started.started_ms, started.executable) == (ExecState.LOST, 5, "/bin/x")
    assert failure(RuntimeError("x")).started_ms == 0


def test_an_exception_is_described_whatever_it_is() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert describe(Unprintable()) == "Unprintable"
    assert len(describe(ValueError("x" * 9000))) == MAX_FAILURE_CHARS


def test_a_reason_is_stored_as_a_number_that_never_changes() -> None:
    assert {stop.number: stop for stop in Stop} == {
        1: Stop.CANCELLED, 2: Stop.TIMED_OUT, 3: Stop.SHUTDOWN, 4: Stop.IDLE, 5: Stop.DETACHED, 6: Stop.CLOSED,
    }  # fmt: skip
    assert [Stop.of_number(stop.number) for stop in Stop] == list(Stop)
    # None is noted, or a later version knows it.
    assert (Stop.of_number(0), Stop.of_number(99)) == (None, None)
