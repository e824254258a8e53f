"""A Celery application of its own that also runs commands on agents. `docs/celery.md` explains it.

celery -A reports worker        # runs `count`, and what else the application does
python reports.py web-1 web-2   # asks two agents for their uptime, and counts who answered
"""

import os
import sys
from typing import Any

from celery import Celery, chord, group

from tachikoma import ExecResponse
from tachikoma.celery import Commands

app = Celery("reports", broker=os.environ["REPORTS_REDIS"], backend=os.environ["REPORTS_REDIS"])
commands = Commands(app, application="reports")


@app.task
def count(answers: list[dict[str, Any]]) -> int:
    """How many commands ended well."""
    return sum(answer["exitCode"] == 0 for answer in answers)


def uptimes(agents: list[str]) -> list[str]:
    """The output of a command on each of the agents."""
    result = group(commands.s(agent, ["/usr/bin/uptime"]) for agent in agents)()
    return [ExecResponse.from_dict(answer).stdout.decode() for answer in result.get(timeout=60)]


def reachable(agents: list[str]) -> int:
    """How many of the agents could run something, counted by a task of this application."""
    result = chord(commands.s(agent, ["/bin/true"], check=False) for agent in agents)(count.s())
    return int(result.get(timeout=60))


if __name__ == "__main__":
    for output in uptimes(sys.argv[1:]):
        print(output)
    print(reachable(sys.argv[1:]), "of", len(sys.argv) - 1)
