"""Warnings about policies that are valid, but hardly what their author meant."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from tachikoma.policy.command_patterns import CommandPattern
from tachikoma.policy.compiled import CompiledPolicy
from tachikoma.policy.denials import DeniedCommand
from tachikoma.policy.hazards.programs import ProgramKind, kind_of
from tachikoma.policy.rules import ROOT
from tachikoma.vocabulary.isolation import Isolation
from tachikoma.vocabulary.recordings import RecordMode

__all__ = ["warnings_of"]

#: Patterns that match every SPIFFE ID.
_EVERYBODY = ("**", "spiffe://**")


def warnings_of(compiled: CompiledPolicy, others: Sequence[CompiledPolicy] = ()) -> Iterator[str]:
    """Yield a warning for each rule of a policy that grants nothing or everything, or that denies less than it seems.

    Args:
        compiled: the policy.
        others: all policies of the set; what they allow may be denied by this one.
    """
    policy = compiled.policy
    if not policy.allowed_commands and not policy.denied_commands:
        yield "grants and denies nothing: it lists no command"
    for text in policy.allowed_commands:
        yield from _warnings_of_command(compiled, text)
    yield from _warnings_of_denials(compiled, others or (compiled,))
    if any(pattern.text in _EVERYBODY for pattern in compiled.subjects):
        yield "subjects matches every identity of every trust domain"
    if policy.require_approval and any(text in _EVERYBODY for text in policy.approvers):
        yield "approvers matches every identity of every trust domain"
    if any(text in _EVERYBODY for text in policy.observers):
        yield "observers matches every identity of every trust domain"
    if any(text in _EVERYBODY for text in policy.players):
        yield "players matches every identity of every trust domain"
    if policy.observers and not policy.allow_interactive:
        yield "observers has no effect: allowInteractive is not set"
    if policy.record is not RecordMode.OFF and not policy.allow_interactive:
        yield "record has no effect: allowInteractive is not set"
    if policy.record_input and policy.record is RecordMode.OFF:
        yield "recordInput has no effect: record is off"
    if policy.players and policy.record is RecordMode.OFF:
        yield "players has an effect only on earlier recordings: record is off"
    if policy.approvers and not policy.require_approval:
        yield "approvers has no effect: requireApproval is not set"
    for path in policy.executable_sha256:
        if not any(pattern.names(path) or pattern.program.matches(path) for pattern in compiled.allowed):
            yield f"executableSha256 pins {path}, which no entry of allowedCommands matches"
    if any(network.prefixlen == 0 for network in compiled.networks):
        yield "allowedNetworks contains every address"
    yield from _warnings_of_root(compiled)
    if policy.tmp is not None and policy.isolation in (None, Isolation.SHARED) and not _closed_root(compiled):
        yield "tmp has an effect only with isolation private or sealed, which this policy does not name"


def _names_root(compiled: CompiledPolicy) -> bool:
    return any(pattern.names(ROOT) for pattern in compiled.users)


def _closed_root(compiled: CompiledPolicy) -> bool:
    """Return True if a policy grants root without the host, which agents isolate at `private` at least."""
    return _names_root(compiled) and not compiled.policy.host_access


def _warnings_of_root(compiled: CompiledPolicy) -> Iterator[str]:
    policy = compiled.policy
    root = _names_root(compiled)
    if not root and any(pattern.matches(ROOT) for pattern in compiled.users):
        yield "allowedUsers allows root only by a wildcard, which never means root: write its name out"
    if policy.capabilities and not root:
        yield "capabilities has no effect: only root keeps them, and allowedUsers does not allow root"
    if policy.host_access and not root:
        yield "hostAccess has no effect: only root has it, and allowedUsers does not allow root"
    if policy.host_access and root:
        yield "hostAccess lets commands of root change this host, and reach its agent through the host's services"
    if _closed_root(compiled):
        yield "allowedUsers names root: its commands read every file of the host but the agent's, also /etc/shadow"


def _warnings_of_command(compiled: CompiledPolicy, text: str) -> Iterator[str]:
    words = shlex.split(text)
    if words[0] in ("/**", "/*") or words[0].startswith("/**"):
        yield f"allowedCommands {text!r} grants every program"
    elif kind_of(words[0]) is ProgramKind.RUNNER and not compiled.policy.allow_interpreters:
        yield f"allowedCommands {text!r} can never grant it: allowInterpreters is not set"
    elif kind_of(words[0]) is ProgramKind.RUNNER and words[-1] == "...":
        yield f"allowedCommands {text!r} grants every program: {words[0]} can run any other program"
    elif kind_of(words[0]) is ProgramKind.BY_ARGUMENTS and not (
        compiled.policy.allow_interpreters or CommandPattern(text).is_bounded
    ):
        yield (
            f"allowedCommands {text!r} can never grant it: some arguments of {words[0]} run other programs; they must "
            "be written out, the first without a wildcard"
        )
    if any(pattern.covers(words[0], words[1:]) for pattern in compiled.denied):
        yield f"allowedCommands {text!r} can never grant it: deniedCommands covers it"


def _warnings_of_denials(compiled: CompiledPolicy, policies: Sequence[CompiledPolicy]) -> Iterator[str]:
    for denied in compiled.denied:
        for why in denied.undecidable:
            yield f"deniedCommands {denied.text!r} may deny less than it says: {why}"
        if not denied.has_arguments:
            continue
        for policy in policies:
            for allowed in filter(lambda allowed: _restricts(denied, allowed), policy.allowed):
                yield (
                    f"deniedCommands {denied.text!r} restricts {allowed.text!r} of {policy.policy.name}; '...' also "
                    "allows symbolic links and spellings that only the program knows: list what is allowed instead"
                )


def _restricts(denied: DeniedCommand, allowed: CommandPattern) -> bool:
    """Return True if a deny takes some arguments away from an entry that ends in '...'."""
    programs = allowed.program.literals
    return allowed.is_open and (not programs or any(denied.denies_program(path) for path in programs))
