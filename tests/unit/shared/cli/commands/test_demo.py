"""Parts of `tachikoma demo` that need no system; the whole runs end to end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from tachikoma import Client, ExecOutput, ExecRequest, ExecResponse, ExecState, OutputKind
from tachikoma.cli.commands import demo


def test_files_are_those_that_find_would_list(tmp_path: Path) -> None:
    for name in ("a", "folder/b", "folder/deeper/c", "hidden/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "hidden").chmod(0o700)
    os.mkfifo(tmp_path / "pipe")
    found = {os.fsdecode(name) for name in demo._files(os.fsencode(tmp_path))}
    assert found == {str(tmp_path / name) for name in ("a", "folder/b", "folder/deeper/c")}


@pytest.mark.parametrize(
    ("names", "agree"),
    [
        # `a` was there all the time, `b` only before and `new` only after the listing; `brief` is gone again.
        (["a", "b"], True), (["a"], True), (["a", "new"], True), (["a", "brief"], True),
        # `c` was there all the time, too, but in no other listing.
        (["b"], False), (["a", "c"], False), (["a", "a"], False), ([], False),
    ],
)  # fmt: skip
def test_a_listing_may_differ_only_in_files_that_came_or_went_meanwhile(
    tmp_path: Path, names: list[str], agree: bool
) -> None:
    for name in ("a", "c", "new"):
        (tmp_path / name).touch()

    def paths(*names: str) -> list[bytes]:
        return [os.fsencode(tmp_path / name) for name in names]

    later = os.lstat(tmp_path / "new").st_ctime + 1
    before, after = set(paths("a", "b")), set(paths("a", "new"))
    assert demo._agree(paths(*names), before, after, later) is agree


def test_a_file_that_was_replaced_during_the_listing_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (name,) = files = {os.fsencode(tmp_path / "a")}
    assert demo._agree([], files, files, os.lstat(name).st_ctime)


def output(*items: ExecOutput) -> Client:
    class Server:
        def execute_stream(self, request: ExecRequest) -> Any:
            yield from items

    return cast("Client", Server())


def test_output_is_collected_with_its_result() -> None:
    result = ExecResponse(id="e", agent_id="a", state=ExecState.SUCCEEDED)
    client = output(
        ExecOutput(id="e", kind=OutputKind.STDOUT, seq=1, data=b"a"),
        ExecOutput(id="e", kind=OutputKind.STDERR, seq=2, data=b"x"),
        ExecOutput(id="e", kind=OutputKind.STDOUT, seq=3, data=b"b"),
        ExecOutput(id="e", kind=OutputKind.RESULT, result=result),
    )
    assert demo._collect(client, demo._find_files("/usr")) == (b"ab", result)


def test_lost_output_fails_the_demonstration() -> None:
    client = output(ExecOutput(id="e", kind=OutputKind.GAP, missing_bytes=1))
    with pytest.raises(demo.DemoFailed, match="the demonstration failed: output was lost"):
        demo._collect(client, demo._find_files("/usr"))
