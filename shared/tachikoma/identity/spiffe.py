"""SPIFFE IDs (SPIFFE-ID standard, section 2), and the paths that Tachikoma gives them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from tachikoma.vocabulary.identifiers import is_identifier

__all__ = [
    "InvalidIdentity",
    "Member",
    "MemberKind",
    "SpiffeId",
    "agent_id",
    "check_trust_domain",
    "is_agent",
    "schedule_id",
    "service_id",
    "user_id",
]

#: Longest URI that the standard allows, in bytes.
MAX_ID_BYTES = 2048

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
#: Names of people. Other than ids of agents, they may contain dots.
_USER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class InvalidIdentity(ValueError):
    """An ID or certificate that breaks the SPIFFE standards or is not trusted; the message names the rule."""


def check_trust_domain(text: str) -> str:
    """Return the name of a trust domain, checked (SPIFFE-ID section 2.1).

    Raises:
        InvalidIdentity: the text is not the name of a trust domain.
    """
    if not _TRUST_DOMAIN.fullmatch(text):
        raise InvalidIdentity(f"{text[:100]!r} is not a trust domain")
    return text


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A SPIFFE ID `spiffe://<trust_domain>/<path>`, whose path has at least one segment."""

    #: Name of the trust domain.
    trust_domain: str
    #: The path, with its leading slash.
    path: str

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Parse an ID by the strict rules of SPIFFE-ID section 2.

        Raises:
            InvalidIdentity: the text is not a SPIFFE ID.
        """
        if len(text.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
            raise InvalidIdentity(f"a SPIFFE ID is at most {MAX_ID_BYTES} bytes long")
        scheme, found, rest = text.partition("://")
        if scheme != "spiffe" or not found:
            raise InvalidIdentity(f"{text[:100]!r} is not a SPIFFE ID: it does not begin with spiffe://")
        trust_domain, slash, path = rest.partition("/")
        check_trust_domain(trust_domain)
        if not slash or not path:
            raise InvalidIdentity(f"{text[:100]!r} has no path, so it names no workload")
        for segment in path.split("/"):
            if segment in (".", "..") or not _SEGMENT.fullmatch(segment):
                raise InvalidIdentity(f"{segment[:100]!r} is not a path segment of a SPIFFE ID")
        return cls(trust_domain, "/" + path)

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}{self.path}"


def agent_id(trust_domain: str, agent: str) -> SpiffeId:
    """Return the ID of an agent."""
    return SpiffeId.parse(f"spiffe://{trust_domain}/agent/{agent}")


def is_agent(spiffe_id: SpiffeId) -> bool:
    """Return True for the ID of an agent. Agents receive orders and make no requests."""
    return spiffe_id.path.startswith("/agent/")


def service_id(trust_domain: str, name: str) -> SpiffeId:
    """Return the ID of a service, for instance `orchestrator`."""
    return SpiffeId.parse(f"spiffe://{trust_domain}/service/{name}")


def user_id(trust_domain: str, name: str) -> SpiffeId:
    """Return the ID of a person."""
    return SpiffeId.parse(f"spiffe://{trust_domain}/user/{name}")


def schedule_id(trust_domain: str, name: str) -> SpiffeId:
    """Return the ID of a schedule, which is the requester of its runs."""
    return SpiffeId.parse(f"spiffe://{trust_domain}/schedule/{name}")


class MemberKind(StrEnum):
    """The kinds of owners that join with a token."""

    AGENT = "agent"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Member:
    """An owner of an identity that joins with a token, and can be revoked: an agent or a person."""

    kind: MemberKind
    #: Id of the agent, or name of the person.
    name: str

    @classmethod
    def agent(cls, name: str) -> Member:
        """Return an agent."""
        return cls(MemberKind.AGENT, name)

    @classmethod
    def user(cls, name: str) -> Member:
        """Return a person."""
        return cls(MemberKind.USER, name)

    @classmethod
    def of(cls, spiffe_id: SpiffeId) -> Member | None:
        """Return the member that an ID names; None if it names none, such as a service."""
        _, kind, *names = spiffe_id.path.split("/")
        if kind not in set(MemberKind) or len(names) != 1:
            return None
        return cls(MemberKind(kind), names[0])._checked()

    @classmethod
    def required(cls, spiffe_id: SpiffeId) -> Member:
        """Return the member that an ID names.

        Raises:
            InvalidIdentity: it names none.
        """
        found = cls.of(spiffe_id)
        if found is None:
            raise InvalidIdentity(f"{spiffe_id} names neither an agent nor a person")
        return found

    @classmethod
    def parse(cls, key: str) -> Member | None:
        """Return the member of a key; None if no member has it."""
        name = key.removeprefix(f"{MemberKind.USER}/")
        return (cls.agent(name) if name == key else cls.user(name))._checked()

    def _checked(self) -> Member | None:
        """Return the member itself, or None if its name is not valid."""
        valid = is_identifier(self.name) if self.is_agent else _USER_NAME.fullmatch(self.name)
        return self if valid else None

    @property
    def key(self) -> str:
        """The name in Redis and in messages: an agent's id, or `user/<name>`, which is the id of no agent."""
        return self.name if self.kind is MemberKind.AGENT else f"{self.kind}/{self.name}"

    @property
    def is_agent(self) -> bool:
        """True if the member is an agent."""
        return self.kind is MemberKind.AGENT

    def spiffe_id(self, trust_domain: str) -> SpiffeId:
        """Return its ID in a trust domain."""
        return SpiffeId.parse(f"spiffe://{trust_domain}/{self.kind}/{self.name}")

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"
