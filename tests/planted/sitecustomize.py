"""Mistakes, for parts that run with this folder in PYTHONPATH: exceptions nobody foresaw, full of secrets.

Python imports this module at its start by itself. What it raises has in its texts, its causes and its local variables
whatever there is in the place where it is raised.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

#: The ids of executions whose handling is mistaken begin with this.
FAULT = "fault-"
STREAM_FAULT = FAULT + "stream-"
#: A file; while it is there, the orchestrator's reaper is mistaken.
REAPER_FAULT = os.environ.get("PLANTED_REAPER_FAULT", "/nonexistent")
#: Secrets that are nowhere else in the process.
MORE = os.environ.get("PLANTED_SECRETS", "")


def everything(identity: Any, *others: object) -> str:
    password = Path(os.environ["TACHIKOMA_REDIS_PASSWORD_FILE"]).read_text().strip()
    key = identity.current().key_pem.decode()
    return f"{MORE} redis://someone:{password}@localhost:6379/0 {key} {others!r} {dict(os.environ)!r}"


def fail(text: str, *, stdin: bytes = b"") -> None:
    try:
        try:
            {}[stdin]
        except KeyError as error:
            raise OSError(28, f"cannot write {text}", text) from error
    except OSError as error:
        raise RuntimeError(f"cannot make sense of {text}") from error


if "orchestrator" in sys.orig_argv:
    from tachikoma_orchestrator.api.remote_execution import RemoteExecution
    from tachikoma_orchestrator.executions.reaper import Reaper

    status, attach, sweep = RemoteExecution.Status, RemoteExecution.Attach, Reaper.sweep

    async def mistaken_status(self: Any, request: Any, context: Any) -> Any:
        answer = await status(self, request, context)
        if request.id.startswith(FAULT):
            record = await self._record(request.id)
            fail(everything(self._parts.identity, request, answer, record))
        return answer

    async def mistaken_attach(self: Any, request: Any, context: Any) -> Any:
        async for output in attach(self, request, context):
            yield output
            if request.id.startswith(STREAM_FAULT):
                fail(everything(self._parts.identity, request, output))

    async def mistaken_sweep(self: Any) -> None:
        if Path(REAPER_FAULT).exists():
            fail(everything(self._collector._identity))
        await sweep(self)

    RemoteExecution.Status = mistaken_status  # type: ignore[method-assign]
    RemoteExecution.Attach = mistaken_attach  # type: ignore[method-assign]
    Reaper.sweep = mistaken_sweep  # type: ignore[method-assign]

if "worker" in sys.orig_argv:
    from tachikoma_worker.execution.execution import Execution

    run = Execution._run

    async def mistaken_run(self: Any, prepared: Any) -> Any:
        if self.exec_id.startswith(FAULT):
            request = prepared.order.request
            text = everything(self._context.identity, self._token, request.command, request.environment, request.stdin)
            fail(text, stdin=request.stdin)
        return await run(self, prepared)

    Execution._run = mistaken_run  # type: ignore[method-assign]
