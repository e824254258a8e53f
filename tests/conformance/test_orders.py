"""Orders: each genuine one is claimed, runs once and is answered; any other starts nothing."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from border import AGENT, DOMAIN, QUEUE, REPLY, Border
from traces import Traces

from authority import Authority
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.identity.signing import sign
from tachikoma.identity.spiffe import agent_id, service_id
from tachikoma.redis import keys
from tachikoma.streams.frames import STDERR, STDOUT
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions.transitions import FENCE


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- an order that runs -----------------------------------------------------------------------------------------------


def test_an_order_runs_once_and_its_receipt_describes_the_end(border: Border, traces: Traces) -> None:
    order = border.order(*traces.command("echo out; echo err >&2; exit 3"))
    token = border.put_order(order)
    found = border.wait_for(order.jti)
    receipt = found.receipt
    assert traces.starts == 1
    assert receipt.order_sha256 == sha256(token.encode())
    assert (receipt.state, receipt.exit_code, receipt.signal) == (ExecState.FAILED, 3, 0)
    assert receipt.executable == "/bin/sh"
    assert 0 < receipt.started_ms <= receipt.ended_ms
    assert receipt.kill is None
    for name, digest, kind, content in (
        ("stdout", receipt.stdout, STDOUT, b"out\n"), ("stderr", receipt.stderr, STDERR, b"err\n")
    ):  # fmt: skip
        assert found.content(name) == content == border.output(order.jti, kind)
        assert (digest.total_bytes, digest.truncated) == (len(content), False)
        assert digest.sha256 == digest.excerpt_sha256 == sha256(content)
    assert [frame.seq for frame in border.frames(order.jti)] == list(range(1, receipt.chunks + 1))


def test_the_result_is_celerys_and_expires_with_the_output(border: Border) -> None:
    order = border.order("/bin/echo", "hello")
    meta = border.run(order).meta
    assert (meta["status"], meta["task_id"]) == ("SUCCESS", keys.task_id(AGENT, order.jti))
    result = meta["result"]
    assert (result["id"], result["agentId"]) == (order.jti, AGENT)
    assert (result["state"], result["exitCode"], result["error"]) == ("SUCCEEDED", 0, "")
    for key in (keys.result(AGENT, order.jti), keys.output(AGENT, order.jti), keys.claim(AGENT, order.jti)):
        assert border.redis.ttl(key) > 3600


def test_result_and_output_are_published_as_they_are_stored(border: Border) -> None:
    order = border.order("/bin/echo", "hello")
    report, result = keys.report(AGENT, REPLY, order.jti), keys.result(AGENT, order.jti)
    output = keys.output(AGENT, order.jti)
    with (
        border.listening(report) as to_sender,
        border.listening(result) as to_celery,
        border.listening(output) as live,
    ):
        raw = border.run(order).raw
        border.wait_until(to_celery.messages, "the result is published")
        border.wait_until(to_sender.messages, "the report is published")
        assert to_sender.messages() == to_celery.messages() == [raw]
        border.wait_until(live.messages, "the output is published")
        assert live.messages() == [frame.encode() for frame in border.frames(order.jti)]


#: Prints a value of Redis: the arguments are a socket, a password and a key.
READ = """\
import socket, sys
with socket.socket(socket.AF_UNIX) as redis:
    redis.connect(sys.argv[1])
    redis.sendall(f"AUTH admin {sys.argv[2]}\\r\\nGET {sys.argv[3]}\\r\\nQUIT\\r\\n".encode())
    while data := redis.recv(4096):
        sys.stdout.write(data.decode())
"""


def test_the_claim_names_the_journal_before_the_command_starts(border: Border) -> None:
    exec_id = "reads-its-claim"
    order = border.order(sys.executable, "-I", "-S", "-c", READ, *border.admin, keys.claim(AGENT, exec_id), id=exec_id)
    assert border.claim(order.jti) is None
    found = border.run(order)
    assert found.receipt.state is ExecState.SUCCEEDED
    assert border.journal() in found.content("stdout").decode().split("\r\n")
    assert border.claim(order.jti) == border.journal()


def test_a_command_gets_its_input_environment_and_directory_and_no_shell(border: Border) -> None:
    script = 'cat; echo "$GREETING"; pwd; echo "$1"'
    order = border.order(
        "/bin/sh", "-c", script, "sh", "$HOME; *", stdin=b"input\n", environment={"GREETING": "hello"}, work_dir="/tmp"
    )
    assert border.run(order).content("stdout") == b"input\nhello\n/tmp\n$HOME; *\n"


def test_a_program_that_is_missing_or_not_granted_does_not_run(border: Border, traces: Traces) -> None:
    missing = border.run(border.order("/no/such/program")).receipt
    assert (missing.state, missing.exit_code, missing.started_ms) == (ExecState.FAILED, 127, 0)
    pinned = {"executables": [{"path": "/bin/sh", "sha256": ["0" * 64]}]}
    other = border.run(border.order(*traces.command(), grant=pinned)).receipt
    assert (other.state, other.exit_code, other.started_ms) == (ExecState.REJECTED, -1, 0)
    assert (other.chunks, other.stdout.total_bytes, other.executable) == (0, 0, "")
    assert other.error
    assert traces.starts == 0


def test_every_queue_of_the_agent_is_read(border: Border) -> None:
    queues = keys.queues(AGENT)
    beat = border.heartbeat()
    assert beat is not None
    assert beat.queues == len(queues) - 1
    orders = {queue: border.order("/bin/echo", queue) for queue in queues}
    for queue, order in orders.items():
        border.put(border.signed(order), order.jti, queue=queue)
    assert [border.wait_for(order.jti).content("stdout").decode().strip() for order in orders.values()] == list(queues)


# --- an order that comes again ----------------------------------------------------------------------------------------


def test_a_second_delivery_starts_nothing_before_or_after_the_end(border: Border, traces: Traces) -> None:
    order = border.order(*traces.command(waits=True))
    token = border.signed(order)
    for _ in range(3):
        border.put(token, order.jti)
    border.wait_until(lambda: traces.starts, "it runs")
    border.settle()
    traces.go()
    raw = border.wait_for(order.jti).raw
    border.put(token, order.jti)
    border.settle()
    # Redis may lose the claim and the result; the journal has neither forgotten.
    border.redis.delete(keys.claim(AGENT, order.jti))
    border.put(token, order.jti)
    border.settle()
    assert traces.starts == 1
    found = border.delivered(order.jti)
    assert found is not None
    assert found.raw == raw


def test_another_order_of_an_id_that_ran_is_answered_as_lost(border: Border, traces: Traces) -> None:
    first = border.order("/bin/true")
    border.run(first)
    other = border.order(*traces.command(), id=first.jti)
    token = border.signed(other)
    border.put(token, other.jti)

    def answered() -> bool:
        found = border.delivered(first.jti)
        return found is not None and found.receipt.order_sha256 == sha256(token.encode())

    border.wait_until(answered, "the other order is answered")
    assert border.wait_for(first.jti).receipt.state is ExecState.LOST
    assert traces.starts == 0


def test_a_fenced_execution_starts_nothing_and_is_not_answered(border: Border, traces: Traces) -> None:
    order = border.order(*traces.command())
    border.redis.set(keys.claim(AGENT, order.jti), FENCE)
    border.put_order(order)
    border.settle()
    assert (traces.starts, border.delivered(order.jti), border.claim(order.jti)) == (0, None, FENCE)


def test_an_order_for_another_journal_is_lost(border: Border, traces: Traces) -> None:
    receipt = border.run(border.order(*traces.command(), order={"journal": "0123456789abcdef"})).receipt
    assert (receipt.state, receipt.started_ms, receipt.stdout.truncated) == (ExecState.LOST, 0, True)
    assert "journal" in receipt.error
    assert traces.starts == 0


def test_an_order_from_before_a_loss_of_data_expires(border: Border, traces: Traces) -> None:
    earlier = border.order(*traces.command())
    border.record_life(border.life + 1, valid_from=border.life + 1)
    receipt = border.run(earlier).receipt
    assert (receipt.state, receipt.started_ms) == (ExecState.EXPIRED, 0)
    assert border.run(border.order("/bin/true")).receipt.state is ExecState.SUCCEEDED
    assert traces.starts == 0


# --- an order that is not genuine -------------------------------------------------------------------------------------


def altered(border: Border, order: WorkOrder) -> str:
    changed = border.signed(order.model_copy(update={"exp": order.exp + 1}))
    head, _, signature = border.signed(order).split(".")
    return ".".join((head, changed.split(".")[1], signature))


def by_a_stranger(border: Border, order: WorkOrder) -> str:
    stranger = border.authority.svid(str(service_id(DOMAIN, "stranger")))
    return sign(stranger, order.model_copy(update={"iss": str(stranger.spiffe_id)}))


def by_the_agent(border: Border, order: WorkOrder) -> str:
    agent = border.authority.svid(str(agent_id(DOMAIN, AGENT)))
    return sign(agent, order)


def of_another_authority(border: Border, order: WorkOrder) -> str:
    return sign(Authority(DOMAIN).svid(str(service_id(DOMAIN, "orchestrator"))), order)


def for_another_agent(border: Border, order: WorkOrder) -> str:
    return border.signed(order.model_copy(update={"aud": str(agent_id(DOMAIN, "web-2"))}))


def of_another_execution(border: Border, order: WorkOrder) -> str:
    return border.signed(order.model_copy(update={"jti": "another"}))


def expired(border: Border, order: WorkOrder) -> str:
    return border.signed(order.model_copy(update={"exp": order.iat - 1}))


def from_the_future(border: Border, order: WorkOrder) -> str:
    return border.signed(order.model_copy(update={"iat": order.iat + 3600}))


def of_another_type(border: Border, order: WorkOrder) -> str:
    return border.signed_content("tachikoma-parked+jws", order.model_dump(mode="json"))


@pytest.mark.parametrize(
    "forge",
    [
        altered, by_a_stranger, by_the_agent, of_another_authority, for_another_agent, of_another_execution, expired,
        from_the_future, of_another_type,
    ],
)  # fmt: skip
def test_an_order_that_is_not_genuine_starts_nothing_and_is_not_answered(
    border: Border, traces: Traces, forge: Callable[[Border, WorkOrder], str]
) -> None:
    order = border.order(*traces.command())
    border.put(forge(border, order), order.jti)
    border.settle()
    assert (traces.starts, border.delivered(order.jti), border.claim(order.jti)) == (0, None, None)
    # Nor is its id spent: the genuine order runs.
    assert border.run(order).receipt.state is ExecState.SUCCEEDED
    assert traces.starts == 1


def without_headers(message: dict[str, Any]) -> None:
    message["headers"] = None


def with_an_unreadable_body(message: dict[str, Any]) -> None:
    message["body"] = "no base64 and no JSON"


def of_another_encoding(message: dict[str, Any]) -> None:
    message["content-type"] = "application/x-python-serialize"


def of_another_task(message: dict[str, Any]) -> None:
    message["headers"]["task"] = "celery.backend_cleanup"


@pytest.mark.parametrize("spoil", [without_headers, with_an_unreadable_body, of_another_encoding, of_another_task])
def test_a_message_that_is_no_order_is_dropped(
    border: Border, traces: Traces, spoil: Callable[[dict[str, Any]], None]
) -> None:
    order = border.order(*traces.command())
    message = json.loads(border.message(border.signed(order), order.jti))
    spoil(message)
    border.redis.lpush(QUEUE, json.dumps(message))
    border.settle()
    assert (traces.starts, border.delivered(order.jti), border.claim(order.jti)) == (0, None, None)


# --- an order of another version --------------------------------------------------------------------------------------


def test_a_field_that_is_not_known_is_ignored(border: Border, traces: Traces) -> None:
    order = border.order(*traces.command())
    token = border.signed_content(order.type, {**order.model_dump(mode="json"), "later": {"field": [1]}})
    border.put(token, order.jti)
    receipt = border.wait_for(order.jti).receipt
    assert (receipt.state, receipt.order_sha256) == (ExecState.SUCCEEDED, sha256(token.encode()))
    assert traces.starts == 1


@pytest.mark.parametrize(
    "changed",
    [{"v": 99}, {"crit": ["later"], "later": 1}, {"request": {"later": 1}}, {"grant": {"later": 1}}],
    ids=["version", "critical", "request", "grant"],
)
def test_an_order_that_cannot_be_read_is_claimed_and_rejected(
    border: Border, traces: Traces, changed: dict[str, Any]
) -> None:
    order = border.order(*traces.command())
    content = json.loads(order.model_dump_json())
    for name, value in changed.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    token = border.signed_content(order.type, content)
    border.put(token, order.jti)
    receipt = border.wait_for(order.jti).receipt
    assert (receipt.state, receipt.order_sha256) == (ExecState.REJECTED, sha256(token.encode()))
    assert (receipt.started_ms, receipt.exit_code) == (0, -1)
    assert border.claim(order.jti) == border.journal()
    assert traces.starts == 0
