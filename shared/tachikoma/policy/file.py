"""Policy files: YAML that people write, read and compiled with the place of each mistake.

operators: ["spiffe://tachikoma.local/user/alice"]
policies:
  - name: web
    subjects: ["spiffe://tachikoma.local/user/*"]
    agents: ["web-*"]
    allowedCommands: ["/usr/bin/systemctl {status,restart} nginx.service"]
    maxTimeout: 5m
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from tachikoma.config.yaml_files import Document, dotted, read_document
from tachikoma.errors import ConfigurationError
from tachikoma.policy.compiled import CompiledPolicy, PatternMistakes
from tachikoma.policy.patterns import Pattern, PatternError
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.policies import ExecPolicy

__all__ = ["PolicyFile", "parse_policies"]


class PolicyFile(Model):
    """The content of a policy file."""

    #: SPIFFE ID patterns of the operators, who see and cancel all executions and read the audit trail.
    operators: tuple[str, ...] = ()
    policies: tuple[ExecPolicy, ...] = Field(max_length=10_000)


def parse_policies(texts: Sequence[tuple[str, str]]) -> tuple[list[CompiledPolicy], list[Pattern]]:
    """Compile the policies and the patterns of operators from names and texts of files.

    Raises:
        ConfigurationError: a file is wrong; the message names file, line, column and field of each mistake.
    """
    mistakes: list[str] = []
    policies: list[CompiledPolicy] = []
    operators: list[Pattern] = []
    first_use: dict[str, str] = {}
    for name, text in texts:
        try:
            document = read_document(text, name, PolicyFile)
        except ConfigurationError as error:
            mistakes.append(str(error))
            continue
        policies += _policies(document, first_use, mistakes)
        operators += _operators(document, mistakes)
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
    return policies, operators


def _policies(document: Document[PolicyFile], first_use: dict[str, str], mistakes: list[str]) -> list[CompiledPolicy]:
    compiled = []
    for index, policy in enumerate(document.content.policies):
        position = document.position(("policies", index, "name"))
        if policy.name in first_use:
            mistakes.append(f"{position}: name: {policy.name!r} is used twice, first at {first_use[policy.name]}")
        first_use.setdefault(policy.name, position)
        try:
            compiled.append(CompiledPolicy(policy, position))
        except PatternMistakes as found:
            for field, number, error in found.mistakes:
                location = ("policies", index, field, number)
                mistakes.append(f"{document.position(location)}: {dotted(location)}: {error}")
    return compiled


def _operators(document: Document[PolicyFile], mistakes: list[str]) -> list[Pattern]:
    compiled = []
    for index, text in enumerate(document.content.operators):
        try:
            compiled.append(Pattern(text))
        except PatternError as error:
            mistakes.append(f"{document.position(('operators', index))}: operators: {error}")
    return compiled
