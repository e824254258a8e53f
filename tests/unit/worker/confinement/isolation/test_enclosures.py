"""How commands are isolated, decided from order, settings and host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.isolation import Isolation, TmpScope
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_worker.confinement.account import Account
from tachikoma_worker.confinement.isolation.abilities import NO_SCOPES, NO_SIGNAL_SCOPE, Abilities
from tachikoma_worker.confinement.isolation.enclosure import OPEN
from tachikoma_worker.confinement.isolation.enclosures import HOST_SERVICES, OPEN_SOCKETS, Enclosures
from tachikoma_worker.confinement.refusals import Refused
from tachikoma_worker.settings import WorkerSettings

WEB, ROOT = Account("web", 1000, 1000, "/home/web", ()), Account("root", 0, 0, "/root", ())


def order(*, host_access: bool = False, sub: str = "spiffe://x/user/u", user: str = "", **grant: Any) -> WorkOrder:
    request = ExecRequest(agent_id="a", command=("/bin/true",), user=user)
    return WorkOrder(
        iss="", iat=0, aud="", sub=sub, exp=0, jti=request.id, policy="", request=request, host_access=host_access,
        grant=Grant(executables=(GrantedExecutable(path="/bin/true"),), **grant),
    )  # fmt: skip


def enclosures(data: Path, abilities: Abilities | None = None, **settings: Any) -> Enclosures:
    values = {"agent_id": "a", "redis_url": "x", "identity": data / "identity", "user": "", **settings}
    return Enclosures(WorkerSettings(data=data, **values), abilities or Abilities())


def test_a_user_of_the_host_is_not_isolated_at_shared(tmp_path: Path) -> None:
    assert enclosures(tmp_path).of(order(), WEB) is OPEN
    assert enclosures(tmp_path).account(order(), 0) is None


def test_root_is_kept_from_the_host_unless_policy_says_otherwise(tmp_path: Path) -> None:
    closed = enclosures(tmp_path).of(order(), ROOT)
    assert (closed.level, closed.masked, closed.read_only, closed.scoped) == (Isolation.PRIVATE, True, True, True)
    assert (closed.tmp, closed.cgroup_files, closed.missing) == (TmpScope.REQUESTER, True, (OPEN_SOCKETS,))
    assert closed.masks == (str(tmp_path), *HOST_SERVICES)
    granted = enclosures(tmp_path).of(order(host_access=True), ROOT)
    assert (granted.level, granted.masked, granted.read_only) == (Isolation.SHARED, True, False)
    assert (granted.masks, granted.scoped, granted.missing) == ((str(tmp_path),), True, ())
    # The grant is for root only.
    assert enclosures(tmp_path).of(order(host_access=True, isolation="private"), WEB).host_access is False


def test_each_requester_has_its_own_folder(tmp_path: Path) -> None:
    made = enclosures(tmp_path)
    first, again, other = (
        made.of(order(isolation="private", sub=sub), WEB).tmp_folder
        for sub in ("spiffe://x/a", "spiffe://x/a", "spiffe://x/b")
    )
    assert first == again != other
    assert Path(first).parent == tmp_path / "tmp"
    own = made.of(order(isolation="private", tmp="execution"), WEB)
    assert (own.tmp, own.tmp_folder) == (TmpScope.EXECUTION, "")


def test_a_requester_without_a_named_user_has_one_of_its_own_where_it_is_isolated(tmp_path: Path) -> None:
    made = enclosures(tmp_path, isolation="private")
    user = made.account(order(), 0)
    assert user is not None
    assert user.dynamic
    line = f"\n{user.name}:x:70000:70000:requester of commands:/tmp:/bin/sh\n"
    assert Path(made.of(order(), user).passwd).read_text().endswith(line)
    assert made.account(order(user="web"), 0) is None
    assert made.account(order(), 1000) is None
    assert enclosures(tmp_path, isolation="private", user="web").account(order(), 0) is None


def test_a_host_that_cannot_isolate_refuses_and_names_what_would_be_open(tmp_path: Path) -> None:
    unable = enclosures(tmp_path, Abilities.none("no rights"))
    with pytest.raises(Refused, match="this agent cannot isolate commands at sealed: no rights"):
        unable.of(order(isolation="sealed"), WEB)
    with pytest.raises(Refused, match="set hostAccess in the policy"):
        unable.of(order(), ROOT)
    assert unable.of(order(), WEB) is OPEN
    without_scopes = enclosures(tmp_path, Abilities(scopes=NO_SCOPES)).of(order(isolation="private"), WEB)
    assert (without_scopes.scoped, without_scopes.missing) == (False, (NO_SCOPES,))
    # A network namespace has abstract sockets of its own.
    assert enclosures(tmp_path, Abilities(scopes=NO_SCOPES)).of(order(isolation="sealed"), WEB).missing == ()
    granted = enclosures(tmp_path, Abilities(scopes=NO_SCOPES)).of(order(host_access=True), ROOT)
    assert (granted.scoped, granted.missing) == (False, (NO_SIGNAL_SCOPE,))
    cgroups = enclosures(tmp_path, Abilities(cgroup_files="files of cgroups: x"))
    assert cgroups.of(order(isolation="private"), WEB).missing == ("files of cgroups: x",)
    # All of its files are read-only, those of cgroups too.
    assert cgroups.of(order(), ROOT).missing == (OPEN_SOCKETS,)


@pytest.mark.parametrize(
    ("file", "covered"),
    [
        ("/etc/tachikoma/redis_password", "/etc/tachikoma"), ("/run/spire/agent.sock", "/run/spire"),
        ("/opt/tachikoma/keys/redis", "/opt/tachikoma/keys"), ("/etc/redis_password", "/etc/redis_password"),
        ("/home/web/redis_password", "/home/web/redis_password"), ("/etc/ssl/private/key", "/etc/ssl/private/key"),
    ],
)  # fmt: skip
def test_the_folder_of_a_secret_is_covered_unless_it_has_files_of_many_programs(
    tmp_path: Path, file: str, covered: str
) -> None:
    made = enclosures(tmp_path, redis_password_file=file).of(order(host_access=True), ROOT)
    assert set(made.masks) == {str(tmp_path), covered}
    replaceable = (f"{file}, if the host replaces it meanwhile",) if covered == file else ()
    assert made.missing == replaceable
