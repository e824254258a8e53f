"""The agent's own policy, applied to a grant: it takes away and never adds.

Each field of `Grant` has its function in `NARROWING`; a field without one would leave the agent unprotected, so a test
compares the two lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tachikoma.errors import PermissionDenied
from tachikoma.policy.decision import Decision
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.isolation import strictest, strictest_tmp

__all__ = ["NARROWING", "narrow"]


def _executables(order: Grant, own: Grant) -> tuple[GrantedExecutable, ...]:
    """Keep the executables that both grant, with the contents that both permit."""
    others = {executable.path: executable for executable in own.executables}
    kept = []
    for executable in order.executables:
        other = others.get(executable.path)
        if other is None:
            continue
        pins = executable.sha256 or other.sha256
        if executable.sha256 and other.sha256:
            pins = tuple(pin for pin in executable.sha256 if pin in other.sha256)
            if not pins:
                continue
        kept.append(GrantedExecutable(path=executable.path, named=executable.named and other.named, sha256=pins))
    return tuple(kept)


def _shorter(order: float | None, own: float | None) -> float | None:
    """Return the shorter of two times; None means no limit."""
    limits = [limit for limit in (order, own) if limit is not None]
    return min(limits) if limits else None


#: For each field of a grant: a function of the order's grant and the grant of the agent's own policy, to its value.
NARROWING: Mapping[str, Callable[[Grant, Grant], object]] = MappingProxyType(
    {
        "executables": _executables,
        "interpreters": lambda order, own: order.interpreters and own.interpreters,
        "denied": lambda order, own: tuple(sorted({*order.denied, *own.denied})),
        # Both directories are above the working directory, so the longer one lies within the other.
        "work_dir_root": lambda order, own: max(order.work_dir_root, own.work_dir_root, key=len),
        "limits": lambda order, own: order.limits.lowered_by(own.limits),
        "output": lambda order, own: order.output.lowered_by(own.output),
        "capabilities": lambda order, own: order.capabilities & own.capabilities,
        "kill_grace": lambda order, own: _shorter(order.kill_grace, own.kill_grace),
        "idle_seconds": lambda order, own: _shorter(order.idle_seconds, own.idle_seconds),
        "detached_seconds": lambda order, own: _shorter(order.detached_seconds, own.detached_seconds),
        "isolation": lambda order, own: strictest(order.isolation, own.isolation),
        "tmp": lambda order, own: strictest_tmp(order.tmp, own.tmp),
    }
)


def narrow(grant: Grant, local: Decision) -> Grant:
    """Return the part of an order's grant that the agent's own policy allows too.

    Args:
        grant: the grant of the order.
        local: the decision of the agent's own policy on the same request.

    Raises:
        PermissionDenied: the agent's own policy denies the request, or no executable is left.
    """
    if not local.allowed or local.grant is None:
        raise PermissionDenied(f"the agent's own policy does not allow it: {local.reason}")
    fields = {field: narrowed(grant, local.grant) for field, narrowed in NARROWING.items()}
    if not fields["executables"]:
        raise PermissionDenied(
            "the agent's own policy does not allow it: it grants none of the files that the order may execute"
        )
    return Grant.model_validate(fields)
