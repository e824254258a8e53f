"""Agents that are drained and resumed, and finding what ran on which."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support import AGENT, Cli, make_cli, prepare, request, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import AgentDraining, AgentUnknown, Client, ExecState, InvalidRequest, PermissionDenied
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import user_id


def test_a_drained_agent_takes_nothing_new_and_finishes_what_it_has(own_stack: Stack, tmp_path: Path) -> None:
    go = tmp_path / "go"
    cli = make_cli(own_stack)
    with Client(own_stack.profile()) as client:
        running = request("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.01; done; exit 3")
        client.submit(running)
        wait_until(lambda: client.status(running.id).state is ExecState.STARTED, "it runs")
        waiting = cli.start("agents", "drain", AGENT, "--reason", "new kernel", "--wait")
        wait_until(lambda: client.agents()[0].draining, "it is drained")
        with pytest.raises(AgentDraining, match="is drained and takes no new executions"):
            client.execute(request("true"))
        # Once more changes nothing, and is not told twice.
        assert client.drain_agent(AGENT, "another reason").drain_reason == "new kernel"
        assert cli.run("exec", AGENT, "true").returncode == 125
        shown = cli.run("agents")
        assert "draining" in shown.stdout.decode()
        assert f"drained by {client.spiffe_id}: new kernel" in shown.stderr.decode()
        assert waiting.poll() is None
        go.touch()
        out, _ = waiting.communicate(timeout=PATIENCE_SECONDS)
        assert (waiting.returncode, out.decode()) == (
            0, f"{AGENT}: takes no new executions\n",
        )  # fmt: skip
        assert client.status(running.id).exit_code == 3
        # It stays drained while its worker is exchanged.
        own_stack.agents[AGENT].stop()
        own_stack.start_agent(AGENT)
        own_stack.wait_for_agents()
        with pytest.raises(AgentDraining):
            client.execute(request("true"))
        assert cli.run("agents", "resume", AGENT).stdout.decode() == f"{AGENT}: takes executions\n"
        assert client.execute(request("true")).exit_code == 0
        events = [event for event in client.audit(limit=100) if event.event in ("agent_drained", "agent_resumed")]
        assert [(event.event, event.agent_id, event.actor, event.reason) for event in events] == [
            ("agent_drained", AGENT, client.spiffe_id, "new kernel"),
            ("agent_resumed", AGENT, client.spiffe_id, ""),
        ]


def test_only_operators_drain_and_only_agents_there_are(client: Client, stack: Stack) -> None:
    with pytest.raises(AgentUnknown, match="there is no agent 'nobody'"):
        client.drain_agent("nobody", "why")
    with pytest.raises(InvalidRequest, match="a reason is required"):
        client.drain_agent(AGENT, " ")
    with Client(stack.issue(user_id(TRUST_DOMAIN, "mallory"))) as mallory:
        for attempt in (lambda: mallory.drain_agent(AGENT, "mine"), lambda: mallory.resume_agent(AGENT)):
            with pytest.raises(PermissionDenied, match="only operators"):
                attempt()
    assert not client.agents()[0].draining


def test_executions_are_found_by_who_what_where_and_when(
    tmp_path: Path, redis_server: Path | None
) -> None:  # fmt: skip
    with (
        Stack(prepare(tmp_path), agents=2, redis_server=redis_server) as stack,
        Client(stack.profile()) as client,
        Client(stack.issue(user_id(TRUST_DOMAIN, "bob"))) as bob,
    ):
        cli: Cli = make_cli(stack)
        first = client.execute(request("true")).id
        failed = client.execute(request("false", agent_id="agent-2")).id
        running = request("sleep", "600")
        client.submit(running)
        theirs = bob.execute(request("true", agent_id="agent-2")).id
        middle = client.status(failed).request_time

        def found(**values: object) -> list[str]:
            """Ids, newest first, read in pages of one."""
            ids, token = [], ""
            while True:
                page, token = client.list_page(page_size=1, page_token=token, **values)  # type: ignore[arg-type]
                ids += [status.id for status in page]
                if not token:
                    return ids

        everything = [theirs, running.id, failed, first]
        assert found(include_ended=True) == everything
        assert found() == [running.id]
        assert found(include_ended=True, requested_by=bob.spiffe_id) == [theirs]
        assert found(states=[ExecState.FAILED]) == [failed]
        assert found(states=[ExecState.FAILED, ExecState.STARTED, ExecState.QUEUED]) == [running.id, failed]
        assert found(states=[ExecState.STARTED, ExecState.QUEUED]) == [running.id]
        assert found(include_ended=True, agents="*-2") == [theirs, failed]
        assert found(include_ended=True, agents="role=web") == []
        assert found(include_ended=True, since=middle) == [theirs, running.id, failed]
        assert found(include_ended=True, until=middle) == [first]
        assert found(include_ended=True, since=middle, until=middle + timedelta(milliseconds=1)) == [failed]
        assert found(since=datetime.now(UTC) + timedelta(hours=1)) == []
        # What somebody may not see is not found by looking for it.
        assert [status.id for status in bob.list_page(include_ended=True, requested_by=client.spiffe_id)[0]] == []
        with pytest.raises(InvalidRequest, match="agents: "):
            client.list_page(agents="[")
        shown = cli.run("ps", "--state", "FAILED", "--since", "1h", "--on", "agent-*", "-o", "json")
        assert [item["id"] for item in json.loads(shown.stdout)] == [failed]
        wrong = cli.run("ps", "--since", "yesterday")
        assert (wrong.returncode, wrong.stderr.decode()) == (
            1, "tachikoma: --since: 'yesterday' is no time; write 2026-01-31T12:00, or 1h for an hour ago\n",
        )  # fmt: skip
        client.cancel(running.id)
