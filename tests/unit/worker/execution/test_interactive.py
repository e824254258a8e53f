"""The session of a command, from its order and its facts."""

from __future__ import annotations

from typing import Any, cast

from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_worker.execution.interactive import interactive, session_facts
from tachikoma_worker.execution.verdict import Stop
from tachikoma_worker.output.records import Facts, SessionFacts
from tachikoma_worker.sessions.session import SessionEnd


def order(**request: Any) -> WorkOrder:
    asked = ExecRequest(agent_id="a", command=("/bin/sh",), **request)
    return WorkOrder(
        iss="spiffe://x/service/o", iat=0, aud="spiffe://x/agent/a", sub="spiffe://x/user/u", exp=0, jti=asked.id,
        policy="p@0", request=asked,
        grant=Grant(
            executables=[GrantedExecutable(path="/bin/sh")], work_dir_root="/", idle_seconds=5, detached_seconds=7
        ),
    )  # fmt: skip


def test_the_facts_are_those_of_request_and_grant() -> None:
    assert session_facts(order()) is None
    assert session_facts(order(interactive=True)) == SessionFacts(idle_seconds=5, detached_seconds=7)
    terminal = session_facts(order(interactive=True, tty=True))
    assert terminal == SessionFacts(terminal=True, idle_seconds=5, detached_seconds=7)


def test_a_command_without_input_has_no_session_and_no_limit() -> None:
    facts = Facts(
        host="h", order_sha256="", executable="/bin/x", started_ms=5, began_ns=1, timeout=2.5, kill_grace=1
    )  # fmt: skip
    nothing = cast(Any, None)
    window, session = interactive(nothing, "job-7", nothing, facts, nothing, resumed=False)
    assert session is None
    assert window.size > 0


def test_every_end_of_a_session_is_a_reason_to_stop() -> None:
    assert {Stop(end.value) for end in SessionEnd} == {Stop.IDLE, Stop.DETACHED, Stop.CLOSED}
