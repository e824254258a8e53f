"""The places of a stack."""

from __future__ import annotations

from pathlib import Path

from tachikoma.dev.folder import StackFolder


def test_every_place_is_under_the_data_folder_and_no_two_are_the_same() -> None:
    data = Path("/data")
    folder = StackFolder(data)
    places = [
        folder.ca, folder.identity("user"), folder.identity("agent-1"), folder.agent("agent-1"), folder.log("agent-1"),
        folder.policy, folder.audit_log, folder.audit_key, folder.redis, folder.redis_passwords.path("x"),
        folder.flower_users,
    ]  # fmt: skip
    assert all(data in place.parents for place in places)
    assert len(set(places)) == len(places)
