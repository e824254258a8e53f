"""The numbers of system calls, from the kernel's headers as the C compiler has them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

COMPILER = shutil.which("cc") or ""


def numbers(*names: str, header: str = "asm/unistd.h") -> dict[str, int]:
    """Return the number of each call that the header knows.

    Args:
        names: names of calls.
        header: `asm/unistd_32.h` has the calls of 32-bit programs on x86-64.
    """
    if not COMPILER:
        pytest.fail("needs a C compiler", pytrace=False)
    source = f"#include <{header}>\n" + "".join(f"call {name} __NR_{name}\n" for name in names)
    done = subprocess.run([COMPILER, "-E", "-P", "-"], input=source, capture_output=True, text=True, check=True)
    found: dict[str, int] = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "call" and words[2].isdigit():
            found[words[1]] = int(words[2])
    return found
