"""A Celery application of its own that also runs commands on agents. `docs/celery.md` explains it.

celery -A reports worker        # runs `count`, and what else the application does
python reports.py web-1 web-2   # asks two agents for their uptime, and counts who answered
"""

import os
import ssl
import sys
from pathlib import Path
from typing import Any

from celery import Celery, chord, group

from tachikoma import ExecResponse
from tachikoma.celery import Commands

redis = os.environ["REPORTS_REDIS"]
# With rediss://, the folder of the application's X.509-SVID.
identity = Path(os.environ.get("REPORTS_IDENTITY", ""))
tls = {
    "ssl_cert_reqs": ssl.CERT_REQUIRED,
    "ssl_ca_certs": str(identity / "svid_bundle.pem"),
    "ssl_certfile": str(identity / "svid.pem"),
    "ssl_keyfile": str(identity / "svid_key.pem"),
}
app = Celery("reports", broker=redis, backend=redis)
if redis.startswith("rediss:"):
    app.conf.update(broker_use_ssl=tls, redis_backend_use_ssl=tls)
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
