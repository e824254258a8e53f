"""What trusting nobody costs: `make bench-trust`.

Prints p50 and p95 in microseconds, and p50 as a share of an `Execute` of `true` measured in the same run; compare
shares, not times. The kinds are interleaved, so that all meet the same machine. Cold is a certificate that was never
seen; cached one that was, which is all but the first of each renewal. An `Execute` over a warm connection holds one
peer verified, one order and one receipt signed, and both of them verified, all cached, and no handshake.

Then what Redis takes for a command of a user with our ACL rules, and for the same of one who may do anything: many are
sent at once, so that it is the server's time, on a private socket. Here too compare the ratio.
"""

from __future__ import annotations

import argparse
import json
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from redis import Redis

from tachikoma import Client, ExecRequest, ExecState
from tachikoma.dev.stack import SERVER_NAME, TRUST_DOMAIN, Stack
from tachikoma.identity.bundles import TrustBundle, TrustBundles
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tachikoma.identity.signed_messages import OutputDigest, Receipt, WorkOrder, _parse_chain
from tachikoma.identity.signing import sign, verify
from tachikoma.identity.spiffe import agent_id, service_id
from tachikoma.redis import keys
from tachikoma.redis.passwords import read_password
from tachikoma.redis.users import ORCHESTRATOR, agent_user
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.limits import ResourceUsage
from tachikoma_orchestrator.executions.transitions import Transition
from tachikoma_orchestrator.store.scripts import Script

AGENT = "agent-1"
#: Commands that Redis is sent at once.
COMMANDS = 500
EMPTY = "0" * 64


def claims(stack: Stack) -> tuple[WorkOrder, Receipt]:
    """An order and a receipt of ordinary size."""
    now, request = int(time.time()), ExecRequest(agent_id=AGENT, command=["/usr/bin/true"], timeout=60)
    agent = str(agent_id(TRUST_DOMAIN, AGENT))
    order = WorkOrder(
        iss=str(service_id(TRUST_DOMAIN, "orchestrator")), aud=agent, sub=str(stack.user), iat=now, exp=now + 600,
        jti=request.id, policy="web@0123456789ab", request=request,
        grant=Grant(executables=(GrantedExecutable(path="/usr/bin/true"),)),
    )  # fmt: skip
    output = OutputDigest(total_bytes=0, sha256=EMPTY, truncated=False, excerpt_sha256=EMPTY)
    receipt = Receipt(
        iss=agent, iat=now, jti=request.id, order_sha256=EMPTY, state=ExecState.SUCCEEDED, exit_code=0, signal=0,
        error="", executable="/usr/bin/true", started_ms=1, ended_ms=2, duration_us=1000, chunks=0, stdout=output,
        stderr=output, usage=ResourceUsage(),
    )  # fmt: skip
    return order, receipt


def handshake(stack: Stack) -> Callable[[], None]:
    """A connection to the orchestrator, to the end of its handshake."""
    folder = stack.identity("user")
    context = ssl.create_default_context(cafile=str(folder / BUNDLE_FILE))
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE)
    host, _, port = stack.address.rpartition(":")

    def connect() -> None:
        with (
            socket.create_connection((host, int(port))) as plain,
            context.wrap_socket(plain, server_hostname=SERVER_NAME) as secured,
        ):
            # The server's first frame says that it has taken the certificate.
            secured.recv(1)

    return connect


def connect_only(stack: Stack) -> Callable[[], None]:
    """The same without TLS."""
    host, _, port = stack.address.rpartition(":")

    def connect() -> None:
        socket.create_connection((host, int(port))).close()

    return connect


def redis_commands(stack: Stack, user: str, words: tuple[str, ...]) -> Callable[[], None]:
    """One command of a user, so many times at once."""

    def encoded(*parts: str) -> bytes:
        return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part.encode()) for part in parts)

    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(stack.socket))
    if user != "default":
        connection.sendall(encoded("AUTH", user, read_password(stack.redis_passwords.path(user))))
        assert connection.recv(1000) == b"+OK\r\n"
    connection.sendall(encoded(*words))
    answer = connection.recv(1000)
    assert not answer.startswith(b"-"), answer
    many, length = encoded(*words) * COMMANDS, len(answer) * COMMANDS

    def measured() -> None:
        connection.sendall(many)
        left = length
        while left:
            left -= len(connection.recv(left))

    return measured


def measure_users(stack: Stack, rounds: int) -> None:
    """Commands of the fast way, each as its own user and as one who may do anything."""
    transition = Script("transition")
    change = Transition.start(AGENT, "none", 0).arguments(keep_seconds=1)
    changed = [keys.execution("none"), *[keys.AUDIT] * 7, json.dumps(change)]
    with Redis(**stack.redis_admin) as redis:
        redis.script_load(transition.source)
        redis.set(keys.claim(AGENT, "none"), "x")
    commands = [
        (ORCHESTRATOR, ("GET", keys.claim(AGENT, "none"))),
        (ORCHESTRATOR, ("HGETALL", keys.execution("none"))),
        (ORCHESTRATOR, ("EVALSHA", transition.sha1, "8", *changed)),
        (agent_user(AGENT), ("GET", keys.claim(AGENT, "none"))),
        (agent_user(AGENT), ("SET", keys.claim(AGENT, "none"), "x")),
        (agent_user(AGENT), ("PUBLISH", keys.output(AGENT, "none"), "x")),
    ]
    print(f"\n{'':36}{'anybody µs':>12}{'its user µs':>12}{'ratio':>8}")
    for user, words in commands:
        works = [redis_commands(stack, name, words) for name in ("default", user)]
        taken: list[list[float]] = [[], []]
        for number in range(rounds + 10):
            for work, values in zip(works, taken, strict=True):
                begun = time.perf_counter()
                work()
                if number >= 10:
                    values.append((time.perf_counter() - begun) * 1e6 / COMMANDS)
        plain, own = map(statistics.median, taken)
        print(f"{f'{words[0]} by {user}':36}{plain:12.2f}{own:12.2f}{own / plain:8.2f}")


def run(rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack, Client(stack.profile()) as client:
        orchestrator = FileSvidSource(stack.identity("orchestrator")).current()
        agent = FileSvidSource(stack.identity(AGENT)).current()
        user = FileSvidSource(stack.identity("user")).current()
        order, receipt = claims(stack)
        order_token, receipt_token = sign(orchestrator, order), sign(agent, receipt)
        roots, leaf = list(user.bundle.roots), user.chain[0]

        def cold(token: str, kind: type, issuer: object) -> Callable[[], object]:
            def measured() -> object:
                _parse_chain.cache_clear()
                return verify(token, kind, TrustBundle(TRUST_DOMAIN, roots), issuer)  # type: ignore[type-var, arg-type]

            return measured

        def executed() -> None:
            response = client.execute(ExecRequest(agent_id=AGENT, command=["/usr/bin/true"]))
            assert response.state is ExecState.SUCCEEDED

        kinds: dict[str, Callable[[], object]] = {
            "Execute of true": executed,
            "sign an order": lambda: sign(orchestrator, order),
            "sign a receipt": lambda: sign(agent, receipt),
            "verify an order, cold": cold(order_token, WorkOrder, orchestrator.spiffe_id),
            "verify an order, cached": lambda: verify(order_token, WorkOrder, user.bundle, orchestrator.spiffe_id),
            "verify a receipt, cold": cold(receipt_token, Receipt, agent.spiffe_id),
            "verify a receipt, cached": lambda: verify(receipt_token, Receipt, user.bundle, agent.spiffe_id),
            "verify a peer, cold": lambda: TrustBundles(TrustBundle(TRUST_DOMAIN, roots)).verify(leaf, []),
            "verify a peer, cached": lambda: user.bundles.verify(leaf, []),
            "mTLS connection": handshake(stack),
            "TCP connection": connect_only(stack),
        }
        taken: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(rounds + 10):
            for name, work in kinds.items():
                begun = time.perf_counter()
                work()
                if number >= 10:
                    taken[name].append((time.perf_counter() - begun) * 1e6)
        report(taken)
        measure_users(stack, rounds)


def report(taken: dict[str, list[float]]) -> None:
    """Print what was measured."""
    whole = statistics.median(taken["Execute of true"])
    print(f"{'':26}{'p50 µs':>10}{'p95 µs':>10}{'of an Execute':>16}")
    for name, values in taken.items():
        middle, high = statistics.median(values), statistics.quantiles(values, n=20)[-1]
        print(f"{name:26}{middle:10.0f}{high:10.0f}{middle / whole:16.1%}")
    parts = (
        "verify a peer, cached", "sign an order", "verify an order, cached", "sign a receipt",
        "verify a receipt, cached",
    )  # fmt: skip
    total = sum(statistics.median(taken[name]) for name in parts)
    print(f"{'in each Execute':26}{total:10.0f}{'':10}{total / whole:16.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    run(parser.parse_args().rounds)
