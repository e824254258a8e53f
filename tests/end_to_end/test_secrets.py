"""No secret of a command reaches what is written down: audit, logs, Celery's messages, events and results, errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from support import AGENT, prepare, wait_until

from command_lines import COMMAND_LINES, SECRET
from tachikoma import Client, ExecRequest, PermissionDenied
from tachikoma.dev.stack import Stack
from tachikoma.redis import keys

MARKED = "marked-by-policy"
#: The second exists nowhere.
ALLOWED = ["/usr/bin/true ...", "/nowhere/** ...", "/usr/bin/true --key <*> <...>"]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    data = prepare(tmp_path_factory.mktemp("secrets"))
    file = data / "policy.yaml"
    file.write_text(
        file.read_text().replace('allowedCommands: ["/** ..."]', f"allowedCommands: [{', '.join(ALLOWED)}]")
    )
    with Stack(data, redis_server=redis_server) as stack:
        yield stack


def lines() -> Iterator[tuple[str, ...]]:
    """The corpus: denied as it is; allowed and missing on the agent; and run as the arguments of `true`."""
    for command in COMMAND_LINES:
        yield command
        yield ("/nowhere/" + command[0], *command[1:])
        yield ("true", *command)
    yield ("true", "--key", MARKED, MARKED)
    yield ("/usr/bin/true", "-v", "--key", MARKED)


def test_no_secret_gets_anywhere_but_to_the_command(strict: Stack) -> None:
    said: list[str] = []
    ran = 0
    app = Celery(broker=strict.redis_admin_celery_url, backend=strict.redis_admin_celery_url, set_as_current=False)
    with Client(strict.profile()) as client:
        for command in lines():
            request = ExecRequest(agent_id=AGENT, command=command)
            try:
                response = client.execute(request)
            except PermissionDenied as error:
                said += (str(error), repr(error), str(error.metadata))
                continue
            assert response.exit_code in (0, 127), response
            ran += 1
            said += (repr(response), str(client.status(request.id).to_dict()))
            said.append(str(app.AsyncResult(keys.task_id(AGENT, request.id)).result))
        events = client.audit(limit=1000)
        said += (str(event.to_dict()) for event in events)
        said += (str(status.to_dict()) for status in client.list_page(include_ended=True)[0])
        assert len({event.id for event in events if event.id}) == 3 * len(COMMAND_LINES) + 2
        assert ran == 2 * len(COMMAND_LINES) + 2
        last = events[-1].seq
    app.close()
    log = strict.data / "audit" / "audit.jsonl"
    wait_until(lambda: f'"seq":{last}' in log.read_text().replace(" ", ""), "the audit log has everything")
    said.append(log.read_text())
    said += (file.read_text(errors="replace") for file in (strict.data / "logs").iterdir())
    # All that was ever written to Redis is in its append-only file: messages, results, events, records.
    files = [path for path in (strict.data / "redis").rglob("*") if path.is_file()]
    said += (path.read_text(errors="replace") for path in files)
    assert any("keytool -importkeystore -storepass '***'" in text for text in said[-len(files) :])
    for text in said:
        for secret in (SECRET, MARKED):
            assert secret not in text, text[max(0, text.find(secret) - 200) :][:400]
