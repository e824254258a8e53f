"""Preparation of a command: everything that is checked and created between a genuine order and its start."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from tachikoma.errors import PermissionDenied
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.policy.decide import PolicySet
from tachikoma.policy.narrowing import narrow
from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma.vocabulary.requests import Terminal
from tachikoma_worker.cgroups.defaults import default_limits, with_defaults
from tachikoma_worker.cgroups.hierarchy import Cgroup, Hierarchy
from tachikoma_worker.confinement.account import Account, account
from tachikoma_worker.confinement.environment import environment
from tachikoma_worker.confinement.executable import Executable, check_real_path, open_executable
from tachikoma_worker.confinement.isolation.enclosure import Enclosure
from tachikoma_worker.confinement.isolation.enclosures import Enclosures
from tachikoma_worker.confinement.refusals import Refused
from tachikoma_worker.settings import WorkerSettings

__all__ = ["Prepared", "narrowed", "prepare"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """The checked parts of one order, and the cgroup that was created for it."""

    order: WorkOrder
    user: Account
    environment: dict[str, str]
    executable: Executable
    #: Those of the grant, and the agent's defaults for others.
    limits: ResourceLimits
    cgroup: Cgroup
    enclosure: Enclosure

    def discard(self) -> None:
        """Close the executable and remove the cgroup. Blocks while the kernel removes it."""
        os.close(self.executable.fd)
        if not self.cgroup.remove():
            log.warning("cgroup.not_removed", id=self.order.jti)


def narrowed(order: WorkOrder, policies: PolicySet, labels: Mapping[str, str]) -> WorkOrder:
    """Return the order with its grant narrowed by the agent's own policy.

    Args:
        order: the verified order.
        policies: the agent's own policy set.
        labels: the agent's labels.

    Raises:
        Refused: the agent's own policy does not allow the order.
    """
    folders = [posixpath.dirname(executable.path) for executable in order.grant.executables]
    try:
        local = policies.decide(order.request, order.sub, folders, labels, order.client_ip)
        grant = narrow(order.grant, local)
    except PermissionDenied as error:
        raise Refused(str(error)) from None
    if local.approvers and not local.approvable_by(order.approved_by, order.sub):
        given = f"the approval is by {order.approved_by}" if order.approved_by else "there is none"
        raise Refused(f"the agent's own policy requires an approval by {' or '.join(local.approvers)}, and {given}")
    return order.model_copy(update={"grant": grant, "host_access": order.host_access and local.host_access})


def prepare(
    order: WorkOrder, settings: WorkerSettings, spawner_uid: int, cgroups: Hierarchy, enclosures: Enclosures
) -> Prepared:
    """Check the command of an order and create its cgroup. Blocks.

    Args:
        order: the verified order, narrowed by the agent's own policy.
        settings: those of the worker.
        spawner_uid: the user of the spawner.
        cgroups: the place where the cgroup is created.
        enclosures: decides how the command is isolated.

    Raises:
        Refused: the command must not run here.
        CannotExecute: the program does not exist or may not be executed.
    """
    request, grant = order.request, order.grant
    lacking = cgroups.missing(grant.limits)
    if lacking and settings.limits == "enforce":
        raise Refused(f"this agent cannot enforce the limits of {', '.join(lacking)}: no such cgroup controller")
    user = enclosures.account(order, spawner_uid) or account(request.user, settings.user, spawner_uid)
    enclosure = enclosures.of(order, user)
    variables = environment(request.environment, user, request.terminal or Terminal() if request.tty else None)
    executable = open_executable(request.command, grant.executables, user, frozenset({0, spawner_uid}))
    try:
        check_real_path(executable.real_path, request.command, grant, request.work_dir or user.home)
        defaults = default_limits(settings.default_memory, settings.default_pids, settings.default_cpu_weight)
        limits = with_defaults(grant.limits, defaults, cgroups.controllers)
        cgroup = _make_cgroup(cgroups, order.jti, limits)
    except BaseException:
        os.close(executable.fd)
        raise
    return Prepared(order, user, variables, executable, limits, cgroup, enclosure)


def _make_cgroup(cgroups: Hierarchy, name: str, limits: ResourceLimits) -> Cgroup:
    try:
        return cgroups.make(name, limits)
    except OSError as error:
        raise Refused(f"cannot make its cgroup: {error}") from error
