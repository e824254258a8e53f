"""Checks that this tree can be released, and builds all of a release into dist/: `make release-check`.

`docs/releasing.md` is the recipe. Each step prints one line; the first that fails ends it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
#: A release; what lies between two tags has another form.
RELEASE = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")
#: Files that an installation needs beside the packages.
IN_SDIST = (
    *("README.md", "CHANGELOG.md", "SECURITY.md", "docs/deployment.md", "docs/settings.md", "docker/compose.yaml"),
    *("docker/worker.Dockerfile", "packaging/systemd/tachikoma-worker.service", "requirements/all.txt"),
    "packaging/debian/build",
)
IN_WHEEL = (
    "tachikoma_worker/tachikoma-spawner",
    "tachikoma/exec/v1/remote_execution.proto",
    "data/share/tachikoma/systemd/tachikoma-worker.service",
)


class Failure(Exception):
    """The tree cannot be released; the message says what to do."""


def _run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout)[-3000:]}")
    return done.stdout.strip()


def _say(text: str) -> None:
    print(f"release-check: {text}", flush=True)


def version() -> str:
    """Return the version, which is that of the tag on this commit.

    Raises:
        Failure: there is no such tag, or the tree has changes.
    """
    if changes := _run("git", "status", "--porcelain"):
        raise Failure(f"the tree has changes; commit them first:\n{changes}")
    found = _run(sys.executable, "-m", "setuptools_scm")
    if not RELEASE.fullmatch(found):
        raise Failure(f"this commit is version {found}, no release; tag it first: git tag -s -m vX.Y.Z vX.Y.Z")
    return found


def changelog_section(text: str, release: str) -> str:
    """Return the section of a release in the changelog.

    Raises:
        Failure: there is none, it has no date, or it is empty.
    """
    found = re.search(
        rf"^## {re.escape(release)} - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    if found is None or not found[1].strip():
        raise Failure(f"CHANGELOG.md has no section `## {release} - YYYY-MM-DD` with text; rename `## Unreleased`")
    return found[1].strip()


def _check_contents(release: str) -> None:
    sdist = DIST / f"tachikoma_exec-{release}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    if missing := [name for name in IN_SDIST if name not in names]:
        raise Failure(f"{sdist.name} lacks {', '.join(missing)}")
    (wheel,) = DIST.glob(f"tachikoma_exec-{release}-*.whl")
    if "-manylinux_" not in wheel.name:
        raise Failure(f"PyPI takes no {wheel.name}; link the spawner statically (Debian: libc6-dev)")
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.namelist()
    if missing := [name for name in IN_WHEEL if not any(file.endswith(name) for file in packed)]:
        raise Failure(f"{wheel.name} lacks {', '.join(missing)}; a C compiler is needed for the spawner")


def _build_images(release: str) -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        raise Failure("no docker engine answers, so the images cannot be built; start one, or build them elsewhere")
    for name in ("orchestrator", "worker"):
        arguments = ("--build-arg", f"VERSION={release}", "-t", f"tachikoma-{name}:{release}", ".")
        _run("docker", "build", "-f", f"docker/{name}.Dockerfile", *arguments)
        _say(f"built image tachikoma-{name}:{release}")


def main(images: bool, packages: bool) -> None:
    """Check and build everything, in the order of the recipe."""
    release = version()
    changelog_section((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), release)
    _say(f"version {release}, with a section in the changelog")
    shutil.rmtree(DIST, ignore_errors=True)
    for target in ("sdist", "wheel", "sbom", *(["deb"] if packages else [])):
        _run("make", "--no-print-directory", target)
    _check_contents(release)
    _say("built sdist, wheel, SBOM and packages: " + ", ".join(sorted(path.name for path in DIST.iterdir())))
    if images:
        _build_images(release)
    _say("all of it is in dist/")


if __name__ == "__main__":
    try:
        main(images="--no-images" not in sys.argv[1:], packages="--no-packages" not in sys.argv[1:])
    except Failure as failure:
        sys.exit(f"release-check: {failure}")
