"""Expected decisions of a policy, kept in YAML beside it and checked by `tachikoma policy test`.

tests:
  - as: spiffe://example.org/user/alice
    agent: web-1
    command: /usr/bin/systemctl restart nginx.service
    expect: allow
  - as: spiffe://example.org/user/alice
    agent: web-1
    command: [/usr/bin/systemctl, stop, nginx.service]
    expect: deny
    rule: deniedCommands
"""

from __future__ import annotations

import io
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tachikoma.errors import ConfigurationError
from tachikoma.policy.decide import SEARCH_PATH, PolicySet
from tachikoma.policy.decision import Decision
from tachikoma.vocabulary.model import Model, describe_validation_error
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.types import Duration, Identifier

__all__ = ["Expectation", "Outcome", "check", "load_expectations"]


class Expectation(Model):
    """A request and its expected decision."""

    #: SPIFFE ID of the requester.
    subject: Annotated[str, Field(alias="as", min_length=1)]
    #: Id of the agent, and its labels.
    agent: Identifier
    labels: dict[str, str] = Field(default_factory=dict)
    #: IP address that the request comes from; unknown if empty.
    address: Annotated[str, Field(alias="from")] = ""
    #: The argv as a list, or as a line that is split into words as a shell does.
    command: Annotated[
        tuple[str, ...], BeforeValidator(lambda value: shlex.split(value) if isinstance(value, str) else value)
    ]
    #: The other fields of the request, as in `ExecRequest`.
    user: str = ""
    work_dir: str = ""
    environment: dict[str, str] = Field(default_factory=dict)
    timeout: Duration | None = None
    interactive: bool = False
    tty: bool = False
    #: The expected outcome; `allow` means without an approval.
    expect: Literal["allow", "approval", "deny"]
    #: Name of the policy that must decide; any if empty.
    policy: str = ""
    #: The field that must decide; any if empty.
    rule: str = ""

    def request(self) -> ExecRequest:
        """Build the request."""
        # Not the constructor: the file's mistakes are named as the file has them.
        return ExecRequest.model_validate(
            {
                "agent_id": self.agent, "command": self.command, "user": self.user, "work_dir": self.work_dir,
                "environment": self.environment, "timeout": self.timeout, "interactive": self.interactive,
                "tty": self.tty,
            }
        )  # fmt: skip


class _File(Model):
    tests: Annotated[tuple[Expectation, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A decision beside its expectation."""

    expectation: Expectation
    decision: Decision

    @property
    def mistake(self) -> str:
        """The difference, for people; empty if there is none."""
        wanted, got = self.expectation, self.decision
        decider = f"{got.policy or 'no policy'}: {got.rule}{f' ({got.reason})' if got.reason else ''}"
        outcome = "deny" if not got.allowed else "approval" if got.approvers else "allow"
        if wanted.expect != outcome:
            described = {"deny": "denied", "approval": "allowed only with an approval", "allow": "allowed"}
            return f"is {described[outcome]} by {decider}"
        if wanted.policy and got.policy.partition("@")[0] != wanted.policy:
            return f"is decided by {got.policy or 'no policy'}, not by {wanted.policy}"
        if wanted.rule and got.rule.partition(":")[0] != wanted.rule:
            return f"is decided by the field {got.rule}, not by {wanted.rule}"
        return ""


def load_expectations(path: Path) -> tuple[Expectation, ...]:
    """Read a file of expectations.

    Raises:
        ConfigurationError: the file cannot be read or is wrong.
    """
    try:
        document = YAML(typ="safe").load(io.StringIO(path.read_text(encoding="utf-8")))
        tests = _File.model_validate(document).tests
        for test in tests:
            test.request()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the expectations {path}: {error}") from error
    except YAMLError as error:
        raise ConfigurationError(f"{path}: not YAML: {error}") from None
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {describe_validation_error(error)}") from None
    return tests


def check(policies: PolicySet, expectations: tuple[Expectation, ...]) -> list[Outcome]:
    """Decide on each expected request."""
    return [
        Outcome(
            expectation,
            policies.decide(
                expectation.request(), expectation.subject, SEARCH_PATH, expectation.labels, expectation.address
            ),
        )
        for expectation in expectations
    ]
