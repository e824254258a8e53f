"""Approval as requesters, approvers and an attacker who owns Redis meet it."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support import Cli, prepare, request, wait_until

from json_schemas import checked
from order_queues import waiting_orders
from patience import PATIENCE_SECONDS
from tachikoma import (
    BatchRequest,
    BatchState,
    CancelOutcome,
    Client,
    ExecOutput,
    ExecRequest,
    ExecState,
    FailedPrecondition,
    NotFound,
    OutputKind,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import user_id
from tachikoma.redis import keys

BOSS, OTHER = user_id(TRUST_DOMAIN, "boss"), user_id(TRUST_DOMAIN, "other")

POLICY = """\
operators: []
policies:
  - name: free
    subjects: ["spiffe://tachikoma.local/user/*"]
    agents: ["**"]
    allowedCommands: [/usr/bin/id]
  - name: careful
    subjects: ["spiffe://tachikoma.local/user/*"]
    agents: ["**"]
    allowedCommands: ["/usr/bin/printf **", "/usr/bin/cat", "/usr/bin/env"]
    allowInterpreters: true
    allowedEnvironment: ["TEST_*"]
    limits: {pids: 50}
    requireApproval: true
    approvers: ["spiffe://tachikoma.local/user/boss", "spiffe://tachikoma.local/user/root"]
"""


class World:
    """A stack with a careful policy, and those who use it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.policy = stack.data / "policy.yaml"
        folder = stack.data / "profiles"
        folder.mkdir()
        self.profiles = {"me": stack.profile(), "boss": stack.issue(BOSS), "other": stack.issue(OTHER)}
        for name, profile in self.profiles.items():
            profile.save(folder / f"{name}.json")
        self.me, self.boss, self.other = (Client(profile) for profile in self.profiles.values())
        self.cli = {name: Cli(folder / f"{name}.json") for name in self.profiles}
        self.redis = redis.Redis(**stack.redis_admin)

    def close(self) -> None:
        for client in (self.me, self.boss, self.other):
            client.close()
        self.redis.close()

    def submit(self, *command: str, **values: object) -> str:
        status = self.me.submit(request(*command, **values))
        assert status.state is ExecState.PENDING_APPROVAL
        return status.id

    def codes(self, exec_id: str) -> list[str]:
        """Codes of an execution's events, as they stand in Redis: nobody is an operator here."""
        entries = self.redis.xrange(keys.AUDIT)
        return [fields[b"event"].decode() for _, fields in entries if fields.get(b"id") == exec_id.encode()]

    def ended(self, exec_id: str) -> None:
        wait_until(lambda: self.me.status(exec_id).state.terminal, "it has ended")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[World]:
    data = prepare(tmp_path_factory.mktemp("approval"))
    (data / "policy.yaml").write_text(POLICY)
    with Stack(data, redis_server=redis_server, environment={"TACHIKOMA_SWEEP": "100ms"}) as stack:
        made = World(stack)
        yield made
        made.close()


@pytest.fixture(autouse=True)
def policy(world: World) -> Iterator[None]:
    yield
    if world.policy.read_text() != POLICY:
        change_policy(world, POLICY)


def change_policy(world: World, text: str) -> None:
    """Put a policy in force, and wait until it is."""
    count = len(world.redis.xrange(keys.AUDIT))
    world.policy.write_text(text)
    wait_until(
        lambda: b"policy_changed" in [fields[b"event"] for _, fields in world.redis.xrange(keys.AUDIT)[count:]],
        "the policy is in force",
    )


def test_a_batch_is_approved_or_rejected_as_a_whole(world: World) -> None:
    wanted, unwanted = (BatchRequest(targets=("agent-*",), command=("printf", "{agent}")) for _ in range(2))
    for batch in (wanted, unwanted):
        status = world.me.submit_batch(batch)
        assert (status.state, [need.policy for need in status.needs]) == (BatchState.PENDING_APPROVAL, ["careful"])
    assert {status.id for status in world.boss.batch_approvals()} == {wanted.id, unwanted.id}
    assert world.other.batch_approvals() == ()
    with pytest.raises(NotFound):
        world.other.batch_approval(wanted.id)
    with pytest.raises(PermissionDenied):
        world.me.batch_approval(wanted.id)
    shown = world.cli["boss"].run("batches", "approvals", wanted.id).stdout.decode()
    assert "1: agent-1" in shown
    done = world.cli["boss"].run("batches", "approve", wanted.id, "--yes", "-m", "change 4711")
    assert done.returncode == 0
    (result,) = [update.result for update in world.me.watch_batch(wanted.id, output=True) if update.result]
    assert result.stdout == b"agent-1"
    assert world.me.status(result.exec_id).approved_by == str(BOSS)
    assert world.boss.reject_batch(unwanted.id, "not today").state is BatchState.REJECTED
    last = list(world.me.watch_batch(unwanted.id))[-1].status
    assert last is not None
    assert last.reason.endswith("not today")


def test_approvals_speak_json(world: World) -> None:
    def shown(command: str, *arguments: str) -> Any:
        done = world.cli["boss"].run(*command.removesuffix(" ID").split(), *arguments, "-o", "json")
        assert done.returncode == 0, done.stderr
        return checked(command, done.stdout)

    wanted, unwanted = world.submit("printf", "json", stdin=b"\xff"), world.submit("printf", "no")
    assert {item["id"] for item in shown("approvals")} >= {wanted, unwanted}
    found = shown("approvals ID", wanted)
    assert (found["request"]["command"], found["request"]["stdin"]) == (["printf", "json"], "/w==")
    approved = shown("approve", wanted, "-m", "fine", "--digest", found["digest"])
    assert (approved["id"], approved["approvedBy"]) == (wanted, str(BOSS))
    assert shown("reject", unwanted, "-m", "no")["state"] == "REJECTED"
    world.ended(wanted)
    batches = [BatchRequest(targets=("agent-*",), command=("printf", "{agent}")) for _ in range(2)]
    for batch in batches:
        world.me.submit_batch(batch)
    ids = [batch.id for batch in batches]
    assert {item["id"] for item in shown("batches approvals")} >= {*ids}
    batch_digest = shown("batches approvals ID", ids[0])["digest"]
    approved = shown("batches approve", ids[0], "-m", "fine", "--digest", batch_digest)
    assert approved["id"] == ids[0]
    assert shown("batches reject", ids[1], "-m", "no")["state"] == "REJECTED"
    assert list(world.me.watch_batch(ids[0]))[-1].status is not None


def test_an_approved_command_runs_and_everybody_sees_what_happens(world: World) -> None:
    wanted = request("printf", "done")
    stream = world.me.execute_stream(wanted)
    first = next(stream).status
    assert first is not None
    assert (first.state, first.approvers) == (
        ExecState.PENDING_APPROVAL,
        (str(BOSS), "spiffe://tachikoma.local/user/root"),
    )
    assert first.deadline is not None
    assert (first.deadline - first.request_time).total_seconds() == 3600
    assert [item.id for item in world.boss.approvals()] == [item.id for item in world.me.approvals()] == [wanted.id]
    assert world.other.approvals() == ()
    found = world.boss.approval(wanted.id)
    assert found.request.command == ("printf", "done")
    assert (found.limits.pids, found.policy.partition("@")[0]) == (50, "careful")
    status = world.boss.approve(wanted.id, found.digest, "looks right")
    assert status.approved_by == str(BOSS)
    second, *rest = stream
    assert second.status is not None
    assert (second.status.approved_by, second.status.approval_reason) == (str(BOSS), "looks right")
    assert b"".join(item.data for item in rest if item.kind is OutputKind.STDOUT) == b"done"
    assert rest[-1].result is not None
    assert rest[-1].result.state is ExecState.SUCCEEDED
    assert world.codes(wanted.id) == ["approval_requested", "approved", "dispatched", "started", "succeeded"]
    assert world.boss.approvals() == ()


def test_what_needs_no_approval_does_not_wait(world: World) -> None:
    assert world.me.execute(request("id")).exit_code == 0


def test_a_unary_call_and_a_repetition_wait_for_the_same_approval(world: World) -> None:
    wanted = request("printf", "x")
    world.me.submit(wanted)
    assert world.me.submit(wanted).state is ExecState.PENDING_APPROVAL
    world.boss.approve(wanted.id, world.boss.approval(wanted.id).digest, "fine")
    assert world.me.execute(wanted).stdout == b"x"


def test_an_approval_is_for_what_was_looked_at(world: World) -> None:
    one, two = world.submit("printf", "one"), world.submit("printf", "two")
    digest = world.boss.approval(one).digest
    with pytest.raises(FailedPrecondition, match="what would run is not what was approved"):
        world.boss.approve(two, digest, "fine")
    # Nor is it for what policy makes of it later.
    change_policy(world, POLICY.replace("pids: 50", "pids: 60"))
    with pytest.raises(FailedPrecondition, match="show the approval again"):
        world.boss.approve(one, digest, "fine")
    assert world.me.status(one).state is ExecState.PENDING_APPROVAL
    world.boss.approve(one, world.boss.approval(one).digest, "fine")
    world.ended(one)
    world.boss.reject(two, "no")


def test_an_approval_is_used_once(world: World) -> None:
    exec_id = world.submit("printf", "x")
    digest = world.boss.approval(exec_id).digest
    world.boss.approve(exec_id, digest, "fine")
    with pytest.raises(NotFound, match="waits for your approval"):
        world.boss.approve(exec_id, digest, "fine")
    world.ended(exec_id)
    assert world.codes(exec_id).count("dispatched") == 1


def test_nobody_approves_their_own_request_and_others_do_not_see_it(world: World) -> None:
    exec_id = world.submit("printf", "x")
    digest = world.boss.approval(exec_id).digest
    # The test's own user is among the approvers.
    with pytest.raises(PermissionDenied, match="requesters cannot approve their own requests"):
        world.me.approve(exec_id, digest, "trust me")
    for attempt in (world.other.approval, lambda it: world.other.approve(it, digest, "x"), world.other.status):
        with pytest.raises(NotFound):
            attempt(exec_id)
    with pytest.raises(NotFound):
        world.other.reject(exec_id, "x")
    with pytest.raises(NotFound):
        world.boss.approve("no-such-id", digest, "x")
    assert world.codes(exec_id) == ["approval_requested", *["approval_refused"] * 4]
    assert world.me.status(exec_id).state is ExecState.PENDING_APPROVAL
    world.me.cancel(exec_id)


def test_a_reason_is_required_and_bounded(world: World) -> None:
    exec_id = world.submit("printf", "x")
    digest = world.boss.approval(exec_id).digest
    for reason in ("", "  ", "x" * 1001):
        with pytest.raises(Exception, match="reason"):
            world.boss.approve(exec_id, digest, reason)
        with pytest.raises(Exception, match="reason"):
            world.boss.reject(exec_id, reason)
    world.boss.reject(exec_id, "x" * 1000)


def test_a_rejection_is_told_with_its_reason_and_ends_it(world: World) -> None:
    exec_id = world.submit("printf", "x")
    assert world.boss.reject(exec_id, "not today").state is ExecState.REJECTED
    response = list(world.me.attach(exec_id))[-1].result
    assert response is not None
    assert (response.state, response.error) == (ExecState.REJECTED, f"rejected by {BOSS}: not today")
    assert world.codes(exec_id) == ["approval_requested", "rejected"]
    with pytest.raises(NotFound):
        world.boss.approval(exec_id)


def test_a_request_can_be_withdrawn(world: World) -> None:
    exec_id = world.submit("printf", "x")
    answer = world.me.cancel(exec_id)
    assert (answer.outcome, answer.status.state) == (CancelOutcome.CANCELLED, ExecState.CANCELLED)
    assert answer.status.error == "withdrawn before it was approved"
    assert world.codes(exec_id) == ["approval_requested", "cancelled"]


def test_what_nobody_approves_in_time_expires(world: World) -> None:
    change_policy(world, POLICY + "    approvalTimeout: 1s\n")
    outputs: list[ExecOutput] = list(world.me.execute_stream(request("printf", "x")))
    assert outputs[-1].result is not None
    assert (outputs[-1].result.state, outputs[-1].result.error) == (ExecState.EXPIRED, "not approved in time")
    assert world.codes(outputs[0].id) == ["approval_requested", "expired"]


def test_what_policy_allows_no_more_cannot_be_approved(world: World) -> None:
    exec_id = world.submit("printf", "x")
    digest = world.boss.approval(exec_id).digest
    change_policy(world, POLICY.replace("allowedCommands: [/usr/bin/id]", "deniedCommands: [printf]"))
    with pytest.raises(FailedPrecondition, match=r"policy no longer allows it: .* denies 'printf'"):
        world.boss.approve(exec_id, digest, "fine")
    change_policy(world, POLICY.replace("[/usr/bin/id]", '["/usr/bin/printf **"]'))
    with pytest.raises(FailedPrecondition, match="policy no longer requires an approval"):
        world.boss.approve(exec_id, digest, "fine")
    change_policy(world, POLICY.replace("user/boss", "user/chief"))
    with pytest.raises(FailedPrecondition, match="policy now names other approvers"):
        world.boss.approve(exec_id, digest, "fine")
    # But whoever was asked may still say no.
    assert world.boss.reject(exec_id, "no").state is ExecState.REJECTED


def test_it_cannot_be_queued_where_its_agent_is_gone_and_goes_on_waiting(world: World) -> None:
    exec_id = world.submit("printf", "x")
    digest = world.boss.approval(exec_id).digest
    agent = world.stack.agents["agent-1"]
    agent.stop()
    wait_until(lambda: not any(item.online for item in world.me.agents()), "the agent is offline")
    try:
        with pytest.raises(Unavailable, match="agent 'agent-1' is offline"):
            world.boss.approve(exec_id, digest, "fine")
        assert world.me.status(exec_id).state is ExecState.PENDING_APPROVAL
    finally:
        world.stack.start_agent("agent-1")
        world.stack.wait_for_agents()
    world.boss.approve(exec_id, world.boss.approval(exec_id).digest, "fine")
    world.ended(exec_id)


def test_who_owns_redis_cannot_have_another_request_approved(world: World) -> None:
    asked, other = world.submit("printf", "asked"), world.submit("printf", "other")
    genuine = world.redis.get(keys.parked(asked))
    assert genuine is not None
    header, payload, signature = genuine.split(b".")
    for forged in (world.redis.get(keys.parked(other)), b"nonsense", header + b"." + payload[:-4] + b"." + signature):
        world.redis.set(keys.parked(asked), forged)
        with pytest.raises(FailedPrecondition, match="cannot be verified"):
            world.boss.approval(asked)
    assert world.codes(asked).count("record_altered") == 3
    # Nor can the record be made to say that somebody else asked, so that the requester approves it.
    world.redis.set(keys.parked(asked), genuine)
    requester = world.redis.hget(keys.execution(asked), "requested_by")
    assert requester is not None
    world.redis.hset(keys.execution(asked), "requested_by", str(OTHER))
    with pytest.raises(PermissionDenied, match="requesters cannot approve their own requests"):
        world.me.approve(asked, world.boss.approval(asked).digest, "mine")
    world.redis.hset(keys.execution(asked), "requested_by", requester)
    # What is kept is no order: an agent that is given it refuses.
    assert waiting_orders(world.redis, "agent-1") == 0
    for exec_id in (asked, other):
        world.boss.reject(exec_id, "no")


def test_it_waits_over_a_restart_of_the_orchestrator(tmp_path: Path, redis_server: Path | None) -> None:
    data = prepare(tmp_path)
    (data / "policy.yaml").write_text(POLICY)
    with Stack(data, redis_server=redis_server) as stack:
        wanted = request("cat", stdin=b"kept\n")
        with Client(stack.profile()) as client:
            client.submit(wanted)
        stack.orchestrator.stop()
        stack.start_orchestrator()
        with Client(stack.issue(BOSS)) as boss, Client(stack.profile()) as client:
            found = boss.approval(wanted.id)
            assert found.request.stdin == b"kept\n"
            boss.approve(wanted.id, found.digest, "fine")
            assert client.execute(wanted).stdout == b"kept\n"


def test_too_many_that_wait_are_refused(tmp_path: Path, redis_server: Path | None) -> None:
    data = prepare(tmp_path)
    (data / "policy.yaml").write_text(POLICY)
    with (
        Stack(data, redis_server=redis_server, environment={"TACHIKOMA_APPROVALS_SIZE": "2"}) as stack,
        Client(stack.profile()) as client,
    ):
        for _ in range(2):
            client.submit(ExecRequest(agent_id="agent-1", command=("printf", "x")))
        with pytest.raises(ResourceExhausted, match="too many executions wait for an approval"):
            client.submit(ExecRequest(agent_id="agent-1", command=("printf", "x")))


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_tells_who_waits_and_what_for(world: World) -> None:
    waiting = world.cli["me"].start("exec", "--id", "cli-1", "-e", "TEST_A=b\nid  x", "agent-1", "env")
    try:
        wait_until(lambda: world.boss.approvals(), "it waits")
        listed = world.cli["boss"].run("approvals")
        words = listed.stdout.decode().split()
        assert words[:10] == [
            *("ID", "AGENT", "BY", "ASKED", "UNTIL", "APPROVERS", "COMMAND"),
            *("cli-1", "agent-1", "user/root"),
        ]  # fmt: skip
        assert words[11:13] == ["ago", "in"]
        assert words[14:] == ["user/boss,", "user/root", "env"]
        shown = world.cli["boss"].run("approvals", "cli-1").stdout.decode()
        facts = dict(line.split("  ", 1) for line in shown.splitlines())
        assert facts["command"].strip() == "env"
        # A value cannot pretend to be another line.
        assert facts["variable"].strip() == "TEST_A=$'b\\nid  x'"
        assert facts["limits"].strip() == "pids 50"
        digest = facts["digest"].strip()
        assert json.loads(world.cli["boss"].run("approvals", "cli-1", "-o", "json").stdout)["digest"] == digest
        for missing in (("--digest", digest), ("-m", "fine")):
            assert world.cli["boss"].run("approve", "cli-1", *missing).returncode == 1
        done = world.cli["boss"].run("approve", "cli-1", "-m", "fine", "--digest", digest)
        assert done.returncode == 0, done.stderr
        # It may have run before its state is read.
        assert re.fullmatch(rb"cli-1: approved \((QUEUED|STARTED|SUCCEEDED)\)\n", done.stdout)
        out, err = waiting.communicate(timeout=PATIENCE_SECONDS)
    finally:
        waiting.kill()
        waiting.communicate()
    assert b"TEST_A=b\nid  x\n" in out
    told = err.decode()
    assert "for an approval by spiffe://tachikoma.local/user/boss or spiffe://tachikoma.local/user/root" in told
    assert "tachikoma approve cli-1" in told
    assert f"approved by {BOSS}: fine" in told


def test_ctrl_c_withdraws_what_waits(world: World) -> None:
    waiting = world.cli["me"].start("exec", "--id", "cli-2", "agent-1", "printf", "x")
    wait_until(lambda: world.boss.approvals(), "it waits")
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=PATIENCE_SECONDS)
    assert waiting.returncode == 130
    assert b"withdrawn before it was approved" in err
    assert world.codes("cli-2") == ["approval_requested", "cancelled"]


def test_a_rejected_command_ends_with_125_and_the_reason(world: World) -> None:
    waiting = world.cli["me"].start("exec", "--id", "cli-3", "agent-1", "printf", "x")
    wait_until(lambda: world.boss.approvals(), "it waits")
    assert world.cli["boss"].run("reject", "cli-3").returncode == 1
    assert world.cli["boss"].run("reject", "cli-3", "-m", "not today").stdout == b"cli-3: rejected (REJECTED)\n"
    _, err = waiting.communicate(timeout=PATIENCE_SECONDS)
    assert waiting.returncode == 125
    assert f"rejected by {BOSS}: not today".encode() in err
