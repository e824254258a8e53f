"""`tachikoma flower`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated

import typer

from tachikoma.config import error_reporting, logs
from tachikoma.config.settings import Address, read_settings
from tachikoma.errors import ConfigurationError
from tachikoma.identity.open import open_identity
from tachikoma.redis.access import RedisAccess, RedisSettings
from tachikoma.redis.users import FLOWER
from tachikoma.vocabulary.addresses import HostPort
from tachikoma.vocabulary.types import IdentityPlace
from tachikoma_orchestrator.commands.options import Identity, LogLevel, ReadyFd, RedisUrl
from tachikoma_orchestrator.commands.ready import announce

__all__ = ["FlowerSettings", "certificate_of", "flower", "read_users"]

flower = typer.Typer(
    invoke_without_command=True, help="Run Flower, the web pages that show executions and agents; it changes nothing."
)


class FlowerSettings(RedisSettings):
    """The settings of Flower: environment variables `TACHIKOMA_…`, or options of the command."""

    #: X.509-SVID that Flower shows to Redis with rediss://: a folder, or unix:///path of the Workload API.
    identity: IdentityPlace | None = None
    #: Address of the web server; port 0 takes a free one.
    flower_listen: Address = HostPort("127.0.0.1", 5555)
    #: File with a line `user:password` for each person who may use Flower.
    flower_users: Path
    #: Certificate of the web server, PEM. Set it together with its key; without them the server uses HTTP.
    flower_certificate: Path | None = None
    #: Key of the web server's certificate, PEM.
    flower_key: Path | None = None
    #: Lowest severity of log lines that are written: debug, info, warning or error.
    log_level: str = "info"


def read_users(path: Path) -> list[str]:
    """Read the users of Flower, each as `user:password`.

    Raises:
        ConfigurationError: the file cannot be read, contains no user, or a line is not `user:password`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the users of Flower from {path}: {error}") from error
    users = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        user, _, password = line.partition(":")
        # Flower compares texts in constant time, which Python does for ASCII only.
        if not user or not password or not line.isascii() or not line.isprintable():
            raise ConfigurationError(f"{path}:{number}: is not user:password in ASCII")
        users.append(line)
    if not users:
        raise ConfigurationError(f"there is no user in {path}; write one user:password per line")
    return users


def certificate_of(settings: FlowerSettings) -> tuple[str, str] | None:
    """Return the files of certificate and key; None if Flower speaks HTTP.

    Raises:
        ConfigurationError: only one of them is set.
    """
    certificate, key = settings.flower_certificate, settings.flower_key
    if (certificate is None) != (key is None):
        raise ConfigurationError("--certificate and --key are given together or not at all")
    return None if certificate is None else (str(certificate), str(key))


@flower.callback()
def run(
    redis_url: RedisUrl = None,
    identity: Identity = None,
    listen: Annotated[str | None, typer.Option(help="Address of the web server, host:port.")] = None,
    users: Annotated[Path | None, typer.Option(help="File with a user:password per line.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Certificate of the web server, which then speaks HTTPS.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Key of the certificate.")] = None,
    log_level: LogLevel = None,
    ready_fd: ReadyFd = None,
) -> None:
    """Run Flower. Every option is also an environment variable TACHIKOMA_…; those of the web server begin with
    TACHIKOMA_FLOWER_."""
    settings = read_settings(
        FlowerSettings, "flower",
        redis_url=redis_url, identity=identity, flower_listen=listen, flower_users=users,
        flower_certificate=certificate, flower_key=key, log_level=log_level,
    )  # fmt: skip
    # What can be wrong in the settings is found before Flower is loaded.
    certificate_files, allowed = certificate_of(settings), read_users(settings.flower_users)
    serve = _load()
    logs.configure(settings.log_level)
    error_reporting.configure("flower")
    asyncio.run(
        serve(
            _access(settings),
            listen=settings.flower_listen,
            users=allowed,
            certificate=certificate_files,
            ready=announce(ready_fd) if ready_fd is not None else None,
        )
    )


def _load() -> Callable[..., Coroutine[None, None, None]]:
    """Return the function that runs Flower.

    Raises:
        ConfigurationError: Flower is not installed.
    """
    try:
        from tachikoma_orchestrator.flower.dashboard import serve
    except ModuleNotFoundError as error:
        if error.name != "flower":
            raise
        raise ConfigurationError("Flower is not installed; pip install 'tachikoma-exec[flower]'") from None
    return serve


def _access(settings: FlowerSettings) -> RedisAccess:
    """Return Flower's access to Redis, over TLS with its identity if it has one."""
    svid = None if settings.identity is None else open_identity(settings.identity)
    if svid is not None:
        error_reporting.identify(svid.current().spiffe_id.trust_domain)
    return RedisAccess.of(settings, identity=svid, user=FLOWER)
