"""The walk to the working directory: links that another user could have placed are not followed."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import Host

from tachikoma_worker.confinement.refusals import Refused

#: The user of the commands, and another one.
USER = "nobody"
OTHER = "daemon"


@pytest.fixture
def tree(root: None) -> Iterator[Path]:
    """A folder of root that every user may enter, with a folder of each user in it."""
    folder = Path(tempfile.mkdtemp(prefix="tk-"))
    folder.chmod(0o755)
    for name in (USER, OTHER, "root"):
        (folder / name / "work" / "inner").mkdir(parents=True)
        for path in (folder / name, folder / name / "work", folder / name / "work" / "inner"):
            path.chmod(0o755)
            os.chown(path, pwd.getpwnam(name).pw_uid, 0)
    yield folder
    shutil.rmtree(folder)


def link(path: Path, target: str, owner: str) -> Path:
    path.symlink_to(target)
    os.lchown(path, pwd.getpwnam(owner).pw_uid, 0)
    return path


async def where(host: Host, path: Path, root: Path) -> str:
    status, out, err = await host.run("/bin/pwd", "-P", user=USER, work_dir=str(path), work_dir_root=str(root))
    assert (status, err) == (0, b"")
    return out.decode().removesuffix("\n")


async def refused(host: Host, path: Path, root: Path, why: str) -> None:
    with pytest.raises(Refused, match=why):
        await host.run("/bin/pwd", user=USER, work_dir=str(path), work_dir_root=str(root))


PLACED = "another user could have placed a symbolic link"


@pytest.mark.parametrize("owner", ["root", USER])
async def test_a_link_of_root_or_of_the_user_is_followed(host: Host, tree: Path, owner: str) -> None:
    current = link(tree / owner / "current", "work/./../work//inner", owner)
    assert await where(host, current, tree) == str(tree / owner / "work" / "inner")
    assert await where(host, link(tree / "twice", f"{owner}/current", "root"), tree) == await where(host, current, tree)


async def test_a_link_of_another_user_is_not_followed(host: Host, tree: Path) -> None:
    placed = link(tree / OTHER / "placed", "work", OTHER)
    await refused(host, placed, tree, PLACED)
    await refused(host, placed / "inner", tree, PLACED)
    # Behind a link that is trusted, and where the directory is trusted.
    await refused(host, link(tree / "trusted", f"{OTHER}/placed/inner", "root"), tree, PLACED)
    await refused(host, link(tree / "foreign", "root/work", OTHER), tree, PLACED)


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o775, 0o1775])
async def test_a_link_of_root_in_a_directory_that_others_write_to_is_not_followed(
    host: Host, tree: Path, mode: int
) -> None:
    shared = tree / "root"
    shared.chmod(mode)
    await refused(host, link(shared / "moved-here", "work", "root"), tree, PLACED)
    # A directory there is entered: only links lead elsewhere.
    assert await where(host, shared / "work", tree) == str(shared / "work")


async def test_a_link_of_root_in_a_directory_of_another_user_is_not_followed(host: Host, tree: Path) -> None:
    await refused(host, link(tree / OTHER / "moved-here", "work", "root"), tree, PLACED)


async def test_the_directory_that_policy_names_is_not_found_through_a_link_of_another_user(
    host: Host, tree: Path
) -> None:
    for name in ("/etc", "work", "../root"):
        placed = link(tree / OTHER / f"to-{name.replace('/', '_')}", name, OTHER)
        await refused(host, placed, placed, PLACED)
        await refused(host, placed / "inner", placed, PLACED)
    named = link(tree / "named", str(tree / "root" / "work"), "root")
    assert await where(host, named / "inner", named) == str(tree / "root" / "work" / "inner")
    assert await where(host, Path("/bin"), Path("/bin")) == str(Path("/bin").resolve())


async def test_a_trusted_link_out_of_the_directory_that_policy_names_is_not_followed(host: Host, tree: Path) -> None:
    root = tree / "root"
    for number, target in enumerate(("/etc", "..", "../..", "work/../../daemon", str(root / "work"))):
        await refused(host, link(root / f"out-{number}", target, "root"), root, "leads out of the directory")
        await refused(host, root / f"out-{number}" / "inner", root, "leads out of the directory")


async def test_links_without_an_end_and_missing_targets_are_refused(host: Host, tree: Path) -> None:
    root = tree / "root"
    link(root / "loop", "loop", "root")
    await refused(host, root / "loop", root, "Too many levels of symbolic links")
    link(root / "gone", "nowhere", "root")
    await refused(host, root / "gone", root, "No such file or directory")
    link(root / "long", "/".join(["work/.."] * 500), "root")
    link(root / "longer", "/".join(["long/.."] * 500), "root")
    await refused(host, root / "longer", root, "File name too long|Too many levels")
    (root / "file").write_text("")
    link(root / "to-file", "file", "root")
    await refused(host, root / "to-file", root, "Not a directory")


async def test_as_many_links_are_followed_as_by_the_kernel(host: Host, tree: Path) -> None:
    root = tree / "root"
    target = "work"
    for number in range(41):
        target = link(root / f"link-{number}", target, "root").name
    assert await where(host, root / "link-39", root) == str(root / "work")
    await refused(host, root / "link-40", root, "Too many levels of symbolic links")


async def test_a_directory_that_the_user_cannot_enter_stays_closed_behind_a_link(host: Host, tree: Path) -> None:
    closed = tree / "root" / "work"
    closed.chmod(0o700)
    await refused(host, link(tree / "there", "root/work/inner", "root"), tree, "Permission denied")
