"""Builds the spawner, a C program, beside the Python packages; everything else is declared in setup.cfg."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NAMES = (
    *("spawner", "child", "commands", "input", "isolation", "killing", "orphans", "pid_namespace", "protocol"),
    *("scratch", "session", "start", "system_calls", "terminal"),
)
SOURCES = [f"worker/spawner/{name}.c" for name in (*NAMES, "work_dir", "workers")]
HEADER_NAMES = ("child", "input", "isolation", "protocol", "spawner", "system_calls", "terminal", "work_dir")
HEADERS = [f"worker/spawner/{name}.h" for name in HEADER_NAMES]
FLAGS = [
    *("-std=c11", "-O2", "-D_FORTIFY_SOURCE=2", "-fstack-protector-strong", "-fPIE", "-Wl,-z,relro,-z,now"),
    *("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-sign-conversion"),
]
#: Static, so that it depends on nothing of the host; where there is no static C library, at least nothing else.
LINKING = (["-static-pie"], ["-pie"])


class BuildSpawner(build_ext):
    """Compiles the spawner as a program. Without a compiler the package is installed without it, for clients."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")))

    def build_extension(self, ext: Extension) -> None:
        program = Path(self.get_ext_fullpath(ext.name))
        program.parent.mkdir(parents=True, exist_ok=True)
        said = ""
        for linking in LINKING:
            command = [os.environ.get("CC", "cc"), *FLAGS, *linking, "-o", str(program), *ext.sources]
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except OSError as error:
                said = f"{command[0]}: {error.strerror}"
                break
            if done.returncode == 0:
                return
            said = done.stderr
        print(
            f"tachikoma: the spawner was not built, so this installation can run no agent; clients and orchestrators "
            f"work. It needs a C compiler and the headers of the C library (Debian: gcc, libc6-dev).\n{said}",
            file=sys.stderr,
        )

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]

    def copy_extensions_to_source(self) -> None:
        # For an editable install.
        build_py = self.get_finalized_command("build_py")
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(ext.name))
            package, _, name = ext.name.rpartition(".")
            if built.exists():
                self.copy_file(str(built), str(Path(build_py.get_package_dir(package), name)))


def is_static(program: Path) -> bool:
    """Return whether an ELF program needs no dynamic linker and so no library of its host: it has no PT_INTERP."""
    image = program.read_bytes()
    if image[:5] != b"\x7fELF\x02":
        return False
    start, size, count = (int.from_bytes(image[at : at + n], sys.byteorder) for at, n in ((32, 8), (54, 2), (56, 2)))
    return all(
        int.from_bytes(image[at : at + 4], sys.byteorder) != 3 for at in range(start, start + size * count, size)
    )


class Wheel(bdist_wheel):
    """One wheel for every Python of a platform: the program knows nothing of Python.

    A static program runs with any C library, so the wheel has the tag that PyPI accepts.
    """

    def get_tag(self) -> tuple[str, str, str]:
        _, _, tag = super().get_tag()
        (extension,) = self.distribution.ext_modules
        builder = self.get_finalized_command("build_ext")
        program = Path(builder.build_lib, builder.get_ext_filename(extension.name))
        if tag.startswith("linux_") and platform.libc_ver()[0] == "glibc" and program.exists() and is_static(program):
            tag = tag.replace("linux_", "manylinux_2_17_", 1)
        return "py3", "none", tag


setup(
    ext_modules=[Extension("tachikoma_worker.tachikoma-spawner", SOURCES, depends=HEADERS)],
    cmdclass={"build_ext": BuildSpawner, "bdist_wheel": Wheel},
)
