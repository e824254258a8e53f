"""The choices of an operator who sets up an orchestrator's host, stored in a file for the next setup."""

from __future__ import annotations

import getpass
import json
import os
import socket
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator

from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.model import Model, describe_validation_error

__all__ = ["Choices", "Part"]

_Port = Annotated[int, Field(ge=1, le=65535)]


class Part(StrEnum):
    """A further part of the host."""

    #: Admits the requests of Celery applications and of schedules.
    SUBMITTER = "submitter"
    #: Triggers schedules.
    BEAT = "beat"
    #: Shows executions and agents in a browser.
    FLOWER = "flower"


class Choices(Model):
    """Names, addresses and ports of an installation."""

    #: Name or address of this host, as agents and people reach it.
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")]
    #: Trust domain of all identities.
    trust_domain: Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,255}$")]
    #: Name of the first operator: spiffe://<trust domain>/user/<operator>.
    operator: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    #: Address to listen on.
    bind: str = "0.0.0.0"  # noqa: S104 (agents are on other hosts; every caller shows a certificate)
    #: Port of the gRPC server.
    port: _Port = 8534
    #: Port on which hosts and people join.
    join_port: _Port = 8535
    #: URL of a Redis that exists; empty for one on this host.
    redis_url: str = ""
    #: Port of the Redis on this host.
    redis_port: _Port = 6379
    #: Program of the Redis on this host.
    redis_server: Annotated[str, Field(min_length=1, max_length=4096)] = "redis-server"
    #: Further parts of this host.
    parts: tuple[Part, ...] = ()

    @field_validator("parts")
    @classmethod
    def _in_order(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        if Part.BEAT in parts and Part.SUBMITTER not in parts:
            raise ValueError("beat triggers schedules, and only the submitter admits their requests: name it too")
        return tuple(part for part in Part if part in parts)

    @classmethod
    def read(cls, path: Path, **given: str | int | list[str] | None) -> Choices:
        """Return the choices: those given, then those of the last setup, then the defaults of this host.

        Raises:
            ConfigurationError: the file or a choice is wrong.
        """
        try:
            before = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            chosen = {**before, **{name: value for name, value in given.items() if value is not None}}
            host = str(chosen.get("host") or socket.getfqdn())
            defaults = {
                "host": host,
                "trust_domain": host.partition(".")[2].lower() or "tachikoma.internal",
                "operator": os.environ.get("SUDO_USER") or getpass.getuser(),
            }
            return cls.model_validate({**defaults, **chosen})
        except ValidationError as error:
            raise ConfigurationError(f"setup: {describe_validation_error(error)}") from None
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot read the choices of the last setup in {path}: {error}") from None

    def text(self) -> str:
        """Return the choices as TOML."""
        # JSON's numbers and texts are TOML's too.
        lines = [f"{name} = {json.dumps(value)}" for name, value in self.model_dump(by_alias=False).items()]
        return "\n".join(["# Choices of `tachikoma setup`; its options change them.", *lines]) + "\n"

    @property
    def own_redis(self) -> bool:
        """True if Redis runs on this host."""
        return not self.redis_url

    @property
    def has_schedules(self) -> bool:
        """True if schedules run on this host."""
        return Part.BEAT in self.parts

    @property
    def address(self) -> str:
        """host:port of the orchestrator, as clients and members reach it."""
        return f"{self.host}:{self.port}"

    @property
    def reached_redis(self) -> str:
        """URL of Redis as all parts reach it."""
        return self.redis_url or f"rediss://{self.host}:{self.redis_port}"

    @property
    def server_name(self) -> str:
        """DNS name in the certificates of orchestrators."""
        return f"orchestrator.{self.trust_domain}"
