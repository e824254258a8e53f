"""Users of requesters."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tachikoma_worker.confinement.isolation.dynamic_users import DynamicUsers
from tachikoma_worker.confinement.refusals import Refused


def test_a_requester_keeps_its_user_also_after_a_restart(tmp_path: Path) -> None:
    users = DynamicUsers(tmp_path, "70000-70009")
    first, second = users.of("a"), users.of("b")
    assert (first.uid, second.uid) == (70000, 70001)
    assert DynamicUsers(tmp_path, "70000-70009").of("b") == second
    assert DynamicUsers(tmp_path, "70000-70009").of("c").uid == 70002
    assert (tmp_path / "users.json").stat().st_mode & 0o777 == 0o600


def test_users_of_the_host_are_left_out(tmp_path: Path) -> None:
    # nobody, and the number that no system call accepts.
    assert DynamicUsers(tmp_path, "65534-65535").of("a").uid == 65535


def test_two_requesters_at_once_get_two_users(tmp_path: Path) -> None:
    users, found = DynamicUsers(tmp_path, "70000-70099"), []
    threads = [threading.Thread(target=lambda name=name: found.append(users.of(name).uid)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(70000, 70008))


def test_a_table_that_cannot_be_read_refuses_instead_of_giving_a_number_twice(tmp_path: Path) -> None:
    (tmp_path / "users.json").write_text("{")
    with pytest.raises(Refused, match="the agent's table of users cannot be used"):
        DynamicUsers(tmp_path, "70000-70009").of("a")


def test_a_used_up_range_refuses(tmp_path: Path) -> None:
    users = DynamicUsers(tmp_path, "70000-70000")
    users.of("a")
    with pytest.raises(Refused, match="extend the agent's setting uid_range"):
        users.of("b")
    assert json.loads((tmp_path / "users.json").read_text()) == {"a": 70000}


def test_the_copy_of_the_table_of_users_has_one_more_line(tmp_path: Path) -> None:
    users = DynamicUsers(tmp_path, "70000-70009")
    path = Path(users.passwd_of(users.of("a")))
    host = Path("/etc/passwd").read_text()
    assert path.read_text().startswith(host)
    assert path.read_text().removeprefix(host).strip().startswith("tachikoma70000:x:70000:70000:")
    assert path.stat().st_mode & 0o777 == 0o644
    before = path.stat().st_ino
    assert Path(users.passwd_of(users.of("a"))).stat().st_ino == before
