"""A development stack that runs until its standard input ends: `python host.py FOLDER`, by the Python of its tree."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tachikoma.dev.stack import Stack


def main() -> None:
    """Start a stack, print its facts as one line of JSON, and wait."""
    settings = json.loads(os.environ.get("BENCHMARK_SETTINGS", "{}"))
    with Stack(Path(sys.argv[1]), environment=settings) as stack:
        pids = {"orchestrator": stack.orchestrator.pid, "agent": stack.agents["agent-1"].pid, "redis": stack.redis.pid}
        facts = {"profile": stack.profile().model_dump(mode="json"), "pids": pids, "redis": stack.redis_admin}
        print(json.dumps(facts), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
