"""Production in three commands, below temporary roots: an orchestrator with its Redis, and three agents.

The commands are the real ones, as processes. Without systemd the test starts what the units would start, with the
environment files that the commands wrote.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from support import request, wait_until

from json_schemas import checked
from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecState
from tachikoma.client.profile import Profile
from tachikoma.dev.part import Part
from tachikoma.dev.redis_server import free_port
from tachikoma.identity.authority import CertificateAuthority
from tachikoma.identity.certificates import dns_names
from tachikoma.identity.file_source import FileSvidSource

pytestmark = pytest.mark.long

AGENTS = ("web-1", "web-2", "web-3")
DOMAIN = "example.org"


class Site:
    """The hosts of a site, each a folder."""

    def __init__(self, folder: Path, redis_server: Path) -> None:
        self.folder, self.control = folder, folder / "control"
        self.redis_server = redis_server
        self.ports = [free_port() for _ in range(3)]
        self.parts: dict[str, Part] = {}

    def run(self, *words: str, stdin: str = "", code: int = 0) -> str:
        """Run a command line as the operator, and return its output."""
        others = ("TACHIKOMA", "XDG", "SPIFFE")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        environment["TACHIKOMA_PROFILE"] = str(self.profile)
        done = subprocess.run(
            [sys.executable, "-m", "tachikoma", *words], input=stdin, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout

    @property
    def home(self) -> Path:
        return self.control / Path.home().relative_to("/")

    @property
    def profile(self) -> Path:
        return self.home / ".config/tachikoma/profile.json"

    def setup(self) -> list[str]:
        port, join_port, redis_port = self.ports
        return [
            "setup", "--root", str(self.control), "--host", "localhost", "--trust-domain", DOMAIN,
            "--operator", "root", "--bind", "127.0.0.1", "--port", str(port), "--join-port", str(join_port),
            "--redis-port", str(redis_port), "--redis-server", str(self.redis_server),
            "--parts", "submitter,beat,flower",
        ]  # fmt: skip

    def part(self, name: str, root: Path, *words: str, file: str = "", **more: str) -> Part:
        """Return a part with the settings that a command wrote below a root.

        Args:
            name: of the part.
            root: the folder.
            words: its command line.
            file: name of its environment file; by default that of its command.
            more: further settings.
        """
        text = (root / f"etc/tachikoma/{file or words[0]}.env").read_text()
        settings = dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))
        quick = {"TACHIKOMA_POLL": "0.2s", "TACHIKOMA_STOP_GRACE": "1s", "TACHIKOMA_SLOTS": "2"}
        argv = [sys.executable, "-m", "tachikoma", *words]
        self.parts[name] = Part(name, argv, self.folder / f"{name}.log", {**settings, **quick, **more})
        return self.parts[name]

    def start_redis(self) -> None:
        conf = str(self.control / "etc/tachikoma/redis.conf")
        self.parts["redis"] = Part("redis", [str(self.redis_server), conf], self.folder / "redis.log", {})
        self.parts["redis"].start()

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.ports[2])) == 0

        wait_until(listens, "Redis listens")

    def aged(self, place: Path) -> Callable[[], bool]:
        """Replace an identity by one of which most of its life is over. Return whether it was renewed since."""
        ca = CertificateAuthority.load(self.control / "etc/tachikoma/ca")
        old, life = FileSvidSource(place).current(), timedelta(hours=10)
        ca.issue(
            old.spiffe_id, bundle_pem=old.bundle.pem, lifetime=life, dns_names=tuple(dns_names(old.chain[0])),
            not_before=datetime.now(UTC) - 0.8 * life,
        ).write(place)  # fmt: skip
        before = FileSvidSource(place).current()
        return lambda: FileSvidSource(place).current().not_after > before.not_after


@pytest.fixture
def site(debian: Path) -> Iterator[Site]:
    # Not under tmp_path: the path of a unix socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="tk-"))
    site = Site(folder, debian)
    with ExitStack() as stops:
        stops.callback(shutil.rmtree, folder)
        yield site
        # The last started first: agents, orchestrator, Redis.
        for part in site.parts.values():
            stops.callback(part.stop)


@pytest.mark.slow
def test_three_commands_make_a_system_that_survives_restarts_and_renews_every_certificate(site: Site) -> None:
    # 1. The orchestrator and its Redis.
    assert "would create the root of example.org" in site.run(*site.setup(), "--dry-run")
    assert not site.control.exists()
    planned = checked("setup", site.run(*site.setup(), "--dry-run", "-o", "json"))["steps"]
    assert planned
    assert not site.control.exists()
    done = checked("setup", site.run(*site.setup(), "-o", "json"))
    assert (len(done["steps"]), done["left"][0]) == (len(planned), "start it:")
    site.start_redis()
    orchestrator = site.part("orchestrator", site.control, "orchestrator")
    orchestrator.start_until_ready()

    # 2. A token for each host, 3. an agent on each host.
    lines = site.run("agents", "enroll", "web-{1..3}").splitlines()
    tokens = dict(line.split() for line in lines)
    assert tuple(tokens) == AGENTS
    workers = {}
    for agent, token in tokens.items():
        root = site.folder / agent
        assert "start it" in site.run("worker", "install", "--token-file", "-", "--root", str(root), stdin=token)
        names = ("--cgroup-name", f"tachikoma-setup-{os.getpid()}-{agent}", "--limits", "best-effort")
        workers[agent] = site.part(agent, root, "worker", *names)
        workers[agent].start_until_ready()
    _runs_on_each_agent(site)
    _schedules_and_flower_work(site)
    # A repetition with the used token changes nothing.
    again = site.run(
        *("worker", "install", "--token-file", "-", "--root", str(site.folder / "web-1"), "-o", "json"),
        stdin=tokens["web-1"],
    )
    assert not any("write" in words for words in checked("worker install", again)["steps"])

    # Most of the life of every certificate is over, and every part is restarted.
    for part in (*workers.values(), orchestrator):
        part.stop()
    renewed = {
        name: site.aged(site.control / place / "identity")
        for name, place in ((name, f"var/lib/tachikoma-{name}") for name in ("orchestrator", "redis", "beat", "flower"))
    }
    operator = Profile.load(site.profile).identity
    assert isinstance(operator, Path)
    renewed["operator"] = site.aged(operator)
    for agent in AGENTS:
        renewed[agent] = site.aged(site.folder / agent / "var/lib/tachikoma-worker/identity")
    # What the timer runs; the operator's is renewed by use, or here.
    shown = site.run("setup", "--root", str(site.control), "--redis-server", str(site.redis_server), "--renew")
    assert "let Redis load its new certificate" in shown
    for part in (orchestrator, *workers.values()):
        part.start_until_ready()
    # They connect to Redis with the new certificates.
    for name in ("beat", "flower"):
        site.parts[name].stop()
        site.parts[name].start_until_ready()
    for name, done in renewed.items():
        wait_until(done, f"the certificate of {name} is renewed")
    _runs_on_each_agent(site)


def _schedules_and_flower_work(site: Site) -> None:
    """Start the further parts of the host, write a schedule, and look at Flower's pages."""
    command = ["/usr/bin/uname", "-n"]
    schedule = {"name": "names", "every": "1s", "agentId": "web-1", "request": {"command": command}}
    grant = {
        "name": "schedules", "subjects": [f"spiffe://{DOMAIN}/schedule/*"], "agents": ["**"],
        "allowedCommands": ["/usr/bin/uname ..."],
    }  # fmt: skip
    settings = site.control / "etc/tachikoma"
    (settings / "schedules/main.yaml").write_text(json.dumps({"schedules": [schedule]}))
    (settings / "policy/schedules.yaml").write_text(json.dumps({"policies": [grant]}))
    site.part("submitter", site.control, "submitter", file="orchestrator").start_until_ready()
    site.part("beat", site.control, "beat").start_until_ready()
    with Client(Profile.load(site.profile)) as client:
        wait_until(
            lambda: any(run.state is ExecState.SUCCEEDED for run in client.scheduled_runs("names")), "a schedule runs"
        )
    port = free_port()
    site.part("flower", site.control, "flower", TACHIKOMA_FLOWER_LISTEN=f"127.0.0.1:{port}").start_until_ready()
    user = (site.control / "etc/tachikoma/flower.users").read_text().strip().encode()
    page = Request(f"http://127.0.0.1:{port}/workers")
    with pytest.raises(HTTPError, match="401"):
        urlopen(page, timeout=PATIENCE_SECONDS)
    page.add_header("Authorization", f"Basic {base64.b64encode(user).decode()}")

    def shown() -> bool:
        with urlopen(page, timeout=PATIENCE_SECONDS) as answer:
            return b"web-1@web-1" in answer.read()

    wait_until(shown, "Flower shows the agents")


def _runs_on_each_agent(site: Site) -> None:
    with Client(Profile.load(site.profile)) as client:
        wait_until(lambda: {item.id for item in client.agents() if item.online} == set(AGENTS), "all are online")
        for agent in AGENTS:
            done = client.execute(request("/usr/bin/uname", "-n", agent_id=agent))
            assert (done.state, done.stdout.strip()) == (ExecState.SUCCEEDED, os.uname().nodename.encode())
