"""The policy of the worlds whose Redis goes back to an older state, and the people in it."""

from __future__ import annotations

from pathlib import Path

from tachikoma.dev.identities import own_user
from tachikoma.dev.stack import TRUST_DOMAIN
from tachikoma.identity.spiffe import user_id

__all__ = ["BOSS", "LEAVER", "write_policy"]

BOSS, LEAVER = user_id(TRUST_DOMAIN, "boss"), user_id(TRUST_DOMAIN, "leaver")
#: One command must be approved.
_POLICY = """\
operators: ["{user}"]
policies:
  - name: runs
    subjects: ["spiffe://tachikoma.local/user/*", "spiffe://tachikoma.local/schedule/*"]
    agents: ["**"]
    allowedCommands: ["/bin/sh ...", /usr/bin/true]
    allowInterpreters: true
    allowInteractive: true
    allowTty: true
    hostAccess: true
    record: required
  - name: careful
    subjects: ["spiffe://tachikoma.local/user/*"]
    agents: ["**"]
    allowedCommands: ["/usr/bin/mkdir /tmp/**"]
    hostAccess: true
    requireApproval: true
    approvers: ["spiffe://tachikoma.local/user/boss"]
"""


def write_policy(data: Path) -> None:
    """Put the policy where a stack finds it; this user is its operator."""
    (data / "policy.yaml").write_text(_POLICY.format(user=user_id(TRUST_DOMAIN, own_user())))
