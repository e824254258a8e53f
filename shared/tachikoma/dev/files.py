"""Configuration files of a stack that are written once, and belong to the developer from then on."""

from __future__ import annotations

import secrets
from pathlib import Path

from tachikoma.identity.files import write_private
from tachikoma.identity.spiffe import SpiffeId

__all__ = ["FLOWER_USER", "isolate", "write_audit_key", "write_flower_users", "write_policy"]

#: The user of Flower.
FLOWER_USER = "tachikoma"

POLICY = """\
# Permissions of this user, and of schedules, on this machine's development agents. Changes take effect within a second;
# `tachikoma policy check FILE` reports mistakes.
operators: ["{user}"]
policies:
  - name: development
    subjects: ["{user}", "spiffe://tachikoma.local/schedule/*"]
    agents: ["**"]
    # Any program by its absolute path, with any arguments.
    allowedCommands: ["/** ..."]
    allowInterpreters: true
    allowInteractive: true
    allowTty: true
    deniedCommands: [shutdown, reboot, halt, poweroff]
    allowedUsers: ["*", root]
    hostAccess: true
    allowedWorkDirs: ["/**"]
    allowedEnvironment: ["*"]
    maxTimeout: 24h
"""


#: The end of a policy on hosts that can isolate commands.
ISOLATED = """\
    # Users of their own, processes, /tmp and mounts for the commands of each requester; `shared` is without that.
    isolation: private
"""


def write_policy(path: Path, user: SpiffeId) -> bool:
    """Write a policy that allows a user everything but to stop the machine, unless there is a policy.

    Returns:
        True if it was written.
    """
    if path.exists():
        return False
    path.write_text(POLICY.format(user=user), encoding="utf-8")
    return True


def isolate(path: Path) -> None:
    """Add isolation of commands to a policy file that was written before."""
    path.write_text(path.read_text(encoding="utf-8") + ISOLATED, encoding="utf-8")


def write_audit_key(path: Path) -> None:
    """Write a random key of 32 bytes, unless there is one."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(32))


def write_flower_users(path: Path) -> None:
    """Write the user of Flower with a random password, unless there is a file."""
    if not path.exists():
        write_private(path, f"{FLOWER_USER}:{secrets.token_urlsafe(16)}\n".encode())
