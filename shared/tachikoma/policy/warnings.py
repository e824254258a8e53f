"""Warnings about policies that are valid, but hardly what their author meant."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from tachikoma.policy.compiled import CompiledPolicy
from tachikoma.policy.interpreters import is_interpreter

__all__ = ["warnings_of"]

#: Patterns that match every SPIFFE ID.
_EVERYBODY = ("**", "spiffe://**")


def warnings_of(compiled: CompiledPolicy) -> Iterator[str]:
    """Yield a warning for each rule of a policy that can never grant anything, and for each that grants everything."""
    policy = compiled.policy
    if not policy.allowed_commands and not policy.denied_commands:
        yield "grants and denies nothing: it lists no command"
    for text in policy.allowed_commands:
        yield from _warnings_of_command(compiled, text)
    if any(pattern.text in _EVERYBODY for pattern in compiled.subjects):
        yield "subjects matches every identity of every trust domain"
    if policy.require_approval and any(text in _EVERYBODY for text in policy.approvers):
        yield "approvers matches every identity of every trust domain"
    if policy.approvers and not policy.require_approval:
        yield "approvers has no effect: requireApproval is not set"
    for path in policy.executable_sha256:
        if not any(pattern.names(path) or pattern.program.matches(path) for pattern in compiled.allowed):
            yield f"executableSha256 pins {path}, which no entry of allowedCommands matches"
    if any(network.prefixlen == 0 for network in compiled.networks):
        yield "allowedNetworks contains every address"
    if policy.capabilities and not any(pattern.matches("root") for pattern in compiled.users):
        yield "capabilities has no effect: only root keeps them, and allowedUsers does not allow root"


def _warnings_of_command(compiled: CompiledPolicy, text: str) -> Iterator[str]:
    words = shlex.split(text)
    if words[0] in ("/**", "/*") or words[0].startswith("/**"):
        yield f"allowedCommands {text!r} grants every program"
    elif is_interpreter(words[0]) and not compiled.policy.allow_interpreters:
        yield f"allowedCommands {text!r} can never grant it: allowInterpreters is not set"
    elif is_interpreter(words[0]) and words[-1] == "...":
        yield f"allowedCommands {text!r} grants every program: {words[0]} can run any other program"
    if any(pattern.covers(words[0], words[1:]) for pattern in compiled.denied):
        yield f"allowedCommands {text!r} can never grant it: deniedCommands covers it"
