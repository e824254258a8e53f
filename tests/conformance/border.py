"""The border of an agent's engine, from the other side: Redis with its users, and an orchestrator that only signs.

The engine is a process. Nothing here knows more of it than its command line, its settings, its names in Redis, and
the formats of its messages.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil
from redis import Redis
from support import wait_until

from authority import Authority
from order_queues import queue_of, waiting_orders
from relay import Relays
from tachikoma.dev.folder import StackFolder
from tachikoma.dev.part import Part
from tachikoma.dev.redis_server import RedisServer
from tachikoma.identity import jws
from tachikoma.identity.signed_messages import CancelOrder, LifeRecord, Receipt, WorkOrder
from tachikoma.identity.signing import sign, verify
from tachikoma.identity.spiffe import agent_id, service_id, user_id
from tachikoma.identity.svid import Svid
from tachikoma.redis import keys
from tachikoma.redis.users import agent_user
from tachikoma.streams.frames import FIELD, STDERR, STDOUT, Frame, sequence_of
from tachikoma.streams.heartbeat import Heartbeat
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.admission.celery_message import MessageFactory

__all__ = [
    "AGENT",
    "DOMAIN",
    "ENGINE",
    "EXCERPT_BYTES",
    "QUEUE",
    "REPLY",
    "REQUESTER",
    "Border",
    "Delivered",
    "Listener",
]

#: The command line of the engine; the worker by default.
ENGINE = shlex.split(os.environ.get("TACHIKOMA_TEST_ENGINE", "")) or [sys.executable, "-m", "tachikoma", "worker"]

DOMAIN = "tachikoma.local"
AGENT = "web-1"
REQUESTER = str(user_id(DOMAIN, "someone"))
#: The queue of that requester's orders.
QUEUE = queue_of(REQUESTER, AGENT)
#: The lane on which the suite receives reports.
REPLY = 7
#: Bytes of each output stream in a result.
EXCERPT_BYTES = 4096
T = TypeVar("T")


@dataclass(frozen=True)
class Delivered:
    """What an engine gives back for an order."""

    #: The Celery result as it is stored.
    raw: bytes
    receipt: Receipt

    @property
    def meta(self) -> dict[str, Any]:
        """The Celery result."""
        found: dict[str, Any] = json.loads(self.raw)
        return found

    def content(self, stream: str) -> bytes:
        """Return the bytes of `stdout` or `stderr` in the result."""
        return base64.b64decode(self.meta["result"][stream], validate=True)


class Listener:
    """A subscription that is confirmed before anything else happens."""

    def __init__(self, redis: Redis, channels: tuple[str, ...]) -> None:
        self._subscription = redis.pubsub()
        self._subscription.subscribe(*channels)
        self._seen: list[bytes] = []
        confirmed = 0
        while confirmed < len(channels):
            message = self._subscription.get_message(timeout=1)
            confirmed += message is not None and message["type"] == "subscribe"

    def messages(self) -> list[bytes]:
        """Return everything that was published so far."""
        while (message := self._subscription.get_message(timeout=0.01)) is not None:
            if message["type"] == "message":
                self._seen.append(message["data"])
        return self._seen

    def close(self) -> None:
        self._subscription.close()


class Border:
    """Redis under the users of production, an engine, and the orchestrator's half of their conversation."""

    def __init__(self, redis_server: Path | None, **settings: str) -> None:
        """Prepare a border; nothing is started.

        Args:
            redis_server: the server to run; None for the embedded Valkey.
            settings: further settings of the engine, by the names of their variables without the prefix.
        """
        #: The folder of everything. Not under tmp_path: the path of a unix socket has at most 107 bytes.
        self.place = Path(tempfile.mkdtemp(prefix="tk-"))
        self._folder = StackFolder(self.place)
        self._folder.logs.mkdir()
        self._server = RedisServer(self._folder, self.place / "redis.sock", redis_server)
        self._redis_part = Part("redis", self._server.write_files([AGENT]), self._folder.log("redis"), {})
        #: Redis for the suite, which may do everything.
        self.redis = self._client()
        self.authority = Authority(DOMAIN)
        self.authority.write(self._folder.identity(AGENT), str(agent_id(DOMAIN, AGENT)))
        self.orchestrator = self.authority.svid(str(service_id(DOMAIN, "orchestrator")))
        #: Number of the life of Redis, for orders.
        self.life = 0
        self._messages = MessageFactory()
        #: The way of the engine to Redis, on which a test may hold a command or an answer.
        self.relays = Relays()
        relayed = self.place / "relay.sock"
        self.relays.add(AGENT, relayed, self._server.socket)
        self._settings = {"REDIS_URL": f"unix://{relayed}", **settings}
        self.engine = self.make_engine()

    def make_engine(self, name: str = "engine", **settings: str) -> Part:
        """Return an engine that is not started, with a log of its own, and settings that differ from the others."""
        values = {
            "AGENT_ID": AGENT,
            "REDIS_PASSWORD_FILE": str(self._folder.redis_passwords.path(agent_user(AGENT))),
            "IDENTITY": str(self._folder.identity(AGENT)),
            "DATA": str(self.data),
            # Cgroups of this engine only.
            "CGROUP_NAME": self.place.name,
            "LIMITS": "best-effort",
            "EXCERPT_BYTES": str(EXCERPT_BYTES),
            "KILL_GRACE": "1s",
            "STOP_GRACE": "0.1s",
            "POLL": "0.2s",
            **self._settings,
            **settings,
        }
        environment = {f"TACHIKOMA_{setting}": value for setting, value in values.items()}
        return Part(name, ENGINE, self._folder.log(name), environment)

    @property
    def admin(self) -> tuple[str, str]:
        """The socket of Redis, and the password of the user `admin`."""
        admin = self._server.admin
        return admin["unix_socket_path"], admin["password"]

    @property
    def data(self) -> Path:
        """The folder of the engine's journal and spools."""
        return self._folder.agent(AGENT)

    # --- start and end ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.start_redis()
            self.record_life(1)
            self.start_engine()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self.engine.alive:
                # Only an engine can end what an engine left.
                self.start_engine()
            self.engine.stop()
            assert self.redis.acl_log() == [], "the engine used a command or a name that the agent's user may not"
        finally:
            self.remove()

    def remove(self) -> None:
        """End every process, and remove all files."""
        self.engine.stop()
        self._end_spawner()
        self.relays.close()
        self.redis.close()
        self._redis_part.stop()
        shutil.rmtree(self.place)

    def _end_spawner(self) -> None:
        """End the spawner that a killed engine left: the next one does not, and it would wait for another."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("TACHIKOMA_DATA") == str(self.data):
                    process.kill()

    def start_redis(self) -> None:
        """Start Redis, again with the data that it stored."""
        self._redis_part.start()
        self._redis_part.wait_until(self._server.answers)
        self.redis = self._client()

    def _client(self) -> Redis:
        return Redis(**self._server.admin)  # type: ignore[arg-type]

    def stop_redis(self) -> None:
        """End Redis, which stores its data."""
        self.redis.close()
        self._redis_part.stop()

    def forget_everything(self) -> None:
        """Remove the data of a Redis that does not run."""
        for path in self._folder.redis.iterdir():
            if path.name.startswith(("appendonly", "dump")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def start_engine(self, **settings: str) -> None:
        """Start the engine, with other settings than before if they are given, and wait for its lease."""
        if settings:
            self._settings |= settings
            self.engine = self.make_engine()
        before = self.heartbeat()
        self.engine.start()

        def online() -> bool:
            beat = self.heartbeat()
            return beat is not None and (before is None or beat.run != before.run)

        self.wait_until(online, "the engine holds its lease")

    def wait_until(self, condition: Callable[[], T], what: str) -> T:
        """Wait for a condition and return its value; fail when the engine ends, or it does not come true."""

        def check() -> T:
            value = condition()
            assert value or self.engine.alive, self.engine.failure()
            return value

        found: T = wait_until(check, what)
        return found

    # --- what the engine takes ----------------------------------------------------------------------------------------

    def order(
        self, *command: str, order: dict[str, Any] | None = None, grant: dict[str, Any] | None = None, **request: Any
    ) -> WorkOrder:
        """Return an order for the engine.

        Args:
            command: the argv.
            order, grant, request: fields that differ from an ordinary one.
        """
        asked = ExecRequest(agent_id=AGENT, command=command, **{"timeout": 600, **request})
        now = int(time.time())
        fields: dict[str, Any] = {
            "iss": str(self.orchestrator.spiffe_id), "iat": now, "aud": str(agent_id(DOMAIN, AGENT)), "sub": REQUESTER,
            "exp": now + 600, "jti": asked.id, "policy": "p@0", "host_access": True, "journal": self.journal(),
            "bound": {}, "life": self.life, "reply": REPLY,
            "grant": Grant(**{
                "executables": [GrantedExecutable(path=command[0])], "interpreters": True,
                "work_dir_root": asked.work_dir, **(grant or {}),
            }),
            "request": asked,
        }  # fmt: skip
        return WorkOrder(**{**fields, **(order or {})})

    def signed(self, order: WorkOrder) -> str:
        """Return the order, signed by the orchestrator."""
        return sign(self.orchestrator, order)

    def signed_content(self, kind: str, content: dict[str, Any]) -> str:
        """Return any content, signed by the orchestrator as a message of a kind."""
        signer = self.orchestrator
        return jws.sign_payload(json.dumps(content).encode(), kind, signer.chain, signer.signing_key)

    def message(self, token: str, exec_id: str) -> bytes:
        """Return the Celery message of a signed order."""
        return self._messages.message(AGENT, exec_id, token, expires_seconds=600, shown="a command")

    def put(self, token: str, exec_id: str, *, queue: str = QUEUE) -> None:
        """Put a signed order on a queue."""
        self.redis.lpush(queue, self.message(token, exec_id))

    def put_order(self, order: WorkOrder) -> str:
        """Sign an order, put it on the queue of its requester, and return the signed order."""
        token = self.signed(order)
        self.put(token, order.jti)
        return token

    def put_cancel(self, order: WorkOrder, *, by: Svid | None = None, stored: bool = True, **fields: Any) -> None:
        """Store a signed cancel of an execution, and publish it, as an orchestrator does.

        Args:
            order: the order of the execution.
            by: the signer; None for the orchestrator.
            stored: False to publish it only.
            fields: fields that differ from an ordinary one.
        """
        signer = by or self.orchestrator
        values = {"iss": str(signer.spiffe_id), "iat": int(time.time()), "aud": order.aud, "sub": REQUESTER}
        token = sign(signer, CancelOrder(**{**values, "jti": order.jti, **fields}))
        if stored:
            self.redis.set(keys.cancel(AGENT, order.jti), token, ex=3600)
        self.redis.publish(keys.control(AGENT), f"{order.jti} {token}")

    def record_life(self, number: int, *, valid_from: int = 0) -> str:
        """Record the life of Redis, as an orchestrator does, and return the record."""
        replid = self.redis.info("replication")["master_replid"]  # type: ignore[index]
        issuer = str(self.orchestrator.spiffe_id)
        record = LifeRecord(iss=issuer, iat=int(time.time()), number=number, valid_from=valid_from, replid=replid)
        token = sign(self.orchestrator, record)
        self.redis.set(keys.LIFE, token)
        self.life = number
        return token

    # --- what it gives back -------------------------------------------------------------------------------------------

    def heartbeat(self) -> Heartbeat | None:
        """Return the engine's registration; None if it has no lease."""
        raw = self.redis.get(keys.info(AGENT))
        return None if raw is None else Heartbeat.model_validate_json(raw)  # type: ignore[arg-type]

    def journal(self) -> str:
        """Return the id of the engine's journal."""
        beat = self.wait_until(self.heartbeat, "the engine holds its lease")
        assert beat is not None
        return beat.boot

    def claim(self, exec_id: str) -> str | None:
        """Return the claim of an execution; None if there is none."""
        raw = self.redis.get(keys.claim(AGENT, exec_id))
        return None if raw is None else raw.decode()  # type: ignore[union-attr]

    def delivered(self, exec_id: str) -> Delivered | None:
        """Return the result of an execution, with its receipt verified; None if there is none."""
        raw = self.redis.get(keys.result(AGENT, exec_id))
        if raw is None:
            return None
        token = json.loads(raw)["result"]["receipt"]  # type: ignore[arg-type]
        receipt = verify(token, Receipt, self.orchestrator.bundle, agent_id(DOMAIN, AGENT))
        assert receipt.jti == exec_id
        return Delivered(raw, receipt)  # type: ignore[arg-type]

    def wait_for(self, exec_id: str) -> Delivered:
        """Return the result of an execution once there is one."""
        found = self.wait_until(lambda: self.delivered(exec_id), f"{exec_id} has a result")
        assert found is not None
        return found

    def run(self, order: WorkOrder) -> Delivered:
        """Put an order on its queue, and return its result."""
        self.put_order(order)
        return self.wait_for(order.jti)

    def settle(self) -> None:
        """Return when the engine has taken everything that was put on the requester's queue, and answered another."""
        self.run(self.order("/bin/true"))
        assert waiting_orders(self.redis, AGENT) == 0

    def frames(self, exec_id: str) -> list[Frame]:
        """Return the chunks of an output log, whose entry ids are their numbers."""
        found = []
        for entry, fields in self.redis.xrange(keys.output(AGENT, exec_id)):  # type: ignore[union-attr]
            assert list(fields) == [FIELD]
            frame = Frame.decode(fields[FIELD])
            assert sequence_of(entry) == frame.seq
            found.append(frame)
        return found

    def output(self, exec_id: str, kind: int = STDOUT) -> bytes:
        """Return what an output log has of STDOUT or STDERR."""
        assert kind in (STDOUT, STDERR)
        return b"".join(frame.data for frame in self.frames(exec_id) if frame.kind == kind)

    @contextmanager
    def listening(self, *channels: str) -> Iterator[Listener]:
        """Receive what is published on channels from now on."""
        listener = Listener(self.redis, channels)
        try:
            yield listener
        finally:
            listener.close()
