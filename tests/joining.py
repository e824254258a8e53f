"""A stack that lets hosts join, and a host that does."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from support import make_cli, prepare

from patience import PATIENCE_SECONDS
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.dev.part import Part
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import JoiningStub
from tachikoma.identity import authority
from tachikoma.identity.join_token import JoinToken, agent_of
from tachikoma.identity.spiffe import SpiffeId, agent_id
from tachikoma.redis.passwords import Passwords
from tachikoma.redis.users import ENROLLER


def joining_settings(data: Path) -> dict[str, str]:
    """What lets agents join a stack in that folder, with a certificate authority under that of the whole stack."""
    DevelopmentCA(data / "ca", TRUST_DOMAIN)
    root = authority.CertificateAuthority.load(data / "ca")
    below = data / "joining-ca"
    authority.CertificateAuthority.create(below, TRUST_DOMAIN, name="Agents", lifetime=timedelta(days=1), under=root)
    passwords = Passwords(data / "redis" / "passwords")
    passwords.make(ENROLLER)
    return {
        "TACHIKOMA_CA": str(below),
        "TACHIKOMA_JOIN_LISTEN": "127.0.0.1:0",
        "TACHIKOMA_ENROLLER_PASSWORD_FILE": str(passwords.path(ENROLLER)),
    }


def letting_join(data: Path, redis_server: Path, **environment: str) -> Stack:
    """A stack whose orchestrator lets agents join; its Redis also asks for a certificate."""
    settings = {**joining_settings(prepare(data)), "TACHIKOMA_SWEEP": "200ms", **environment}
    return Stack(data, redis_server=redis_server, redis_tls=True, environment=settings)


def csr_of(agent: str, key: ec.EllipticCurvePrivateKey | None = None, trust_domain: str = TRUST_DOMAIN) -> bytes:
    """A right request for a certificate."""
    return authority.make_request(key or authority.new_key(), agent_id(trust_domain, agent))


def try_join(token: JoinToken, **changes: object) -> pb.JoinResponse:
    """Join by hand, with something in the request changed; raises grpc.RpcError."""
    agent = agent_of(token.spiffe_id)
    right = {"agent_id": agent, "secret": token.secret, "csr": csr_of(agent)}
    credentials = grpc.ssl_channel_credentials(token.root_pem)
    options = [("grpc.ssl_target_name_override", token.server_name)]
    with grpc.secure_channel(token.address, credentials, options) as channel:
        message = pb.JoinRequest(**{**right, **changes})
        answer: pb.JoinResponse = JoiningStub(channel).Join(message, timeout=PATIENCE_SECONDS)
        return answer


class Host:
    """A host that joins a stack and then runs a worker."""

    def __init__(self, stack: Stack, agent: str, folder: Path) -> None:
        self.stack, self.agent, self.folder = stack, agent, folder
        self.identity = folder / "identity"
        folder.mkdir(parents=True, exist_ok=True)
        self.worker = Part(
            agent,
            [
                sys.executable, "-m", "tachikoma", "worker", "--agent-id", agent,
                "--redis-url", stack.redis_url_of(agent), "--identity", str(self.identity),
                "--data", str(folder / "data"),
                "--cgroup-name", f"tachikoma-{folder.parent.name[-20:]}-{agent}".replace("_", "-"),
                "--limits", "best-effort",
            ],
            self.log,
            {
                "TACHIKOMA_REDIS_PASSWORD_FILE": str(self.identity / "redis_password"), "TACHIKOMA_POLL": "0.2s",
                "TACHIKOMA_STOP_GRACE": "1s", "TACHIKOMA_KILL_GRACE": "1s", "TACHIKOMA_SLOTS": "2",
            },
        )  # fmt: skip

    @property
    def log(self) -> Path:
        return self.folder / "worker.log"

    @property
    def spiffe_id(self) -> SpiffeId:
        return agent_id(TRUST_DOMAIN, self.agent)

    def join(self, token: str) -> subprocess.CompletedProcess[bytes]:
        """Join by the command line, with the token on its standard input."""
        return make_cli(self.stack, self.folder).run(
            *("worker", "join", "--token-file", "-", "--identity", str(self.identity), "-o", "json"),
            stdin=token.encode(),
        )

    def start(self) -> None:
        """Start the worker, and wait until it takes orders."""
        self.worker.start_until_ready()

    def stop(self) -> None:
        """Stop the worker, with what it runs."""
        self.worker.stop()
        self.worker.run_once("--sweep")
