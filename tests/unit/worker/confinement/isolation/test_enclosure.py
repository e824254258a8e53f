"""The isolation of one command: what the spawner gets, and what the receipt says."""

from __future__ import annotations

from tachikoma.vocabulary.isolation import Isolation, TmpScope
from tachikoma_worker.confinement.isolation.enclosure import OPEN, Enclosure


def test_a_command_that_is_not_isolated_asks_for_nothing_and_reports_nothing() -> None:
    assert (OPEN.flags, OPEN.strings, OPEN.report()) == (0, [], None)


def test_paths_come_in_the_order_of_the_protocol() -> None:
    enclosure = Enclosure(
        Isolation.PRIVATE, masked=True, scoped=True, masks=("/a", "/b"), tmp=TmpScope.REQUESTER, tmp_folder="/t",
        passwd="/p",
    )  # fmt: skip
    assert enclosure.flags == 1 | 4 | 8
    assert enclosure.strings == ["/a", "/b", "/t", "/p"]


def test_a_receipt_names_the_parts_that_hold_and_those_that_do_not() -> None:
    sealed = Enclosure(Isolation.SEALED, masked=True, tmp=TmpScope.EXECUTION, missing=("files of cgroups",)).report()
    assert sealed is not None
    assert sealed.parts == (
        "agent files", "processes", "mounts", "System V IPC", "keyrings", "signals", "abstract sockets", "network",
        "system calls",
    )  # fmt: skip
    assert sealed.missing == ("files of cgroups",)
    root = Enclosure(masked=True, cgroup_files=True, read_only=True, scoped=True).report()
    assert root is not None
    assert root.level is Isolation.SHARED
    assert root.parts == (
        "agent files", "cgroup files", "host files", "devices", "sockets in /run", "signals", "abstract sockets",
    )  # fmt: skip
