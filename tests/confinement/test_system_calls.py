"""The denied system calls: the list of the spawner and of the page, the kernel's numbers, and the refusals."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from calls import COMPILER, numbers
from host import Host, a_host, python

from tachikoma.vocabulary.isolation import Isolation, TmpScope

ROOT = Path(__file__).parents[2]
SOURCE = (ROOT / "worker/spawner/system_calls.c").read_text()
PAGE = (ROOT / "docs/isolation.md").read_text()
KEYRINGS = {"add_key", "request_key", "keyctl"}
#: Of another architecture than this one, or newer than the headers of some distributions.
MAY_BE_UNKNOWN = {"open_tree_attr"}
OTHER_HEADER = "asm/unistd_32.h"
x86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="entries of x86-64")


@pytest.fixture(autouse=True)
def compiler(need: Callable[[bool, str], None]) -> None:
    need(bool(COMPILER), "a C compiler")


def listed() -> dict[str, int | None]:
    """The calls that the source denies; the number where it is written out."""
    body = SOURCE[SOURCE.index("sealed_calls[]") : SOURCE.index("int deny_system_calls")]
    if os.uname().machine != "x86_64":
        body = re.sub(r"#if defined\(__x86_64__\)\n.*?#endif\n", "", body, flags=re.DOTALL)
    named: dict[str, int | None] = dict.fromkeys(re.findall(r"DENY\(SYS_(\w+)\)", body))
    written = {name: int(number) for number, name in re.findall(r"DENY\((\d+) /\* (\w+) \*/\)", body)}
    assert len(re.findall(r"DENY\(", body)) == len(named) + len(written)
    return {**named, **written, **dict.fromkeys(KEYRINGS)}


def test_the_page_lists_the_calls_that_are_denied() -> None:
    section = PAGE[PAGE.index("## `sealed`") : PAGE.index("## Commands of root")]
    sentence = section[section.index("fail with\n`EPERM`") : section.index("and all calls of 32-bit")]
    documented = set(re.findall(r"`(\w+)`", sentence.partition("`EPERM`")[2])) - {"clone", "socket"}
    if os.uname().machine != "x86_64":
        documented -= {"iopl", "ioperm"}
    assert documented == set(listed())
    assert "`clone` with new namespaces" in sentence.replace("\n", " ")
    private = PAGE[PAGE.index("## `private`") : PAGE.index("## `sealed`")]
    assert all(f"`{name}`" in private for name in KEYRINGS)


def test_numbers_that_are_written_out_are_those_of_the_kernel() -> None:
    written = {name: number for name, number in listed().items() if number is not None} | {"clone3": 435}
    assert "435 /* clone3 */" in SOURCE
    known = numbers(*written)
    assert set(written) - set(known) <= MAY_BE_UNKNOWN
    assert {name: number for name, number in written.items() if name in known} == known


@x86
def test_numbers_of_32_bit_programs_are_those_of_the_kernel() -> None:
    architecture = SOURCE[SOURCE.index("defined(__x86_64__)") : SOURCE.index("#elif")]
    written = {name.lower(): int(number) for name, number in re.findall(r"OTHER_(\w*KEY\w*) (\d+)", architecture)}
    assert written == numbers(*KEYRINGS, header=OTHER_HEADER)


TRY_CALLS = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
found = {}
for name, numbers in json.loads(sys.argv[1]).items():
    arguments = [ctypes.c_long(number) for number in numbers]
    arguments += [ctypes.c_long(-1)] * (7 - len(arguments))
    found[name] = ctypes.get_errno() if libc.syscall(*arguments) < 0 else 0
print(json.dumps(found))
"""


def tried() -> dict[str, list[int]]:
    """Each denied call, as its number and what it gets before -1; none of them would do any harm."""
    written = listed()
    known = numbers(*written, "clone", "clone3", "socket")
    calls = {name: [known[name] if number is None else number] for name, number in written.items()}
    new_user_namespace, vsock, stream = 0x10000000, 40, 1
    return calls | {
        "clone": [known["clone"], new_user_namespace | 17, 0, 0, 0, 0], "clone3": [known["clone3"]],
        "socket": [known["socket"], vsock, stream, 0],
    }  # fmt: skip


async def errors(host: Host, calls: dict[str, list[int]], **values: object) -> dict[str, int]:
    status, out, err = await host.run(*python(TRY_CALLS, json.dumps(calls)), **values)
    assert (status, err) == (0, b"")
    return json.loads(out)  # type: ignore[no-any-return]


@pytest.mark.usefixtures("isolating")
@pytest.mark.parametrize("user", ["root", "nobody"])
async def test_system_calls_that_lead_out_are_refused_at_sealed(user: str) -> None:
    every = int(re.findall(r"CapBnd:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)
    calls = tried()
    async with a_host(every) as host:
        values = {"user": user, "host_access": False, "capabilities": every if user == "root" else 0}
        sealed = await errors(host, calls, isolation=Isolation.SEALED, **values)
        assert len(sealed) > 50
        assert {name: error for name, error in sealed.items() if error != (38 if name == "clone3" else 1)} == {}
        if user == "root":
            # With every capability, only the filter refuses them: without it, they fail in other ways.
            del calls["clone"]
            private = await errors(host, calls, isolation=Isolation.PRIVATE, **values)
            assert {name for name, error in private.items() if error == 1} == KEYRINGS


#: Enters the kernel as a 32-bit program (int 0x80) and with the numbers of x32, and prints what comes back.
ENTRIES = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <unistd.h>
#include <sys/syscall.h>
static long enter_32(long number)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(-1L), "c"(-1L), "d"(-1L), "S"(-1L), "D"(-1L)
                     : "memory", "r8", "r9", "r10", "r11");
    return result;
}
int main(int count, char **argument)
{
    for (int i = 1; i < count; i++)
        printf("%ld ", enter_32(atol(argument[i])));
    long result = syscall(0x40000000 | SYS_getpid);
    printf("%d\\n", result < 0 ? -errno : 0);
    return 0;
}
"""


@x86
@pytest.mark.usefixtures("isolating")
async def test_calls_of_32_bit_and_x32_programs_are_refused(
    host: Host, tmp_path: Path, need: Callable[[bool, str], None]
) -> None:
    program = tmp_path / "entries"
    subprocess.run([COMPILER, "-x", "c", "-o", str(program), "-"], input=ENTRIES, text=True, check=True)
    other = numbers("getpid", *sorted(KEYRINGS), header=OTHER_HEADER)
    command = (str(program), *(str(other[name]) for name in ("getpid", *sorted(KEYRINGS))))
    need(subprocess.run(command, capture_output=True, check=False).returncode == 0, "32-bit programs in the kernel")
    found = {}
    for level in Isolation:
        status, out, err = await host.run(*command, user="root", isolation=level, tmp=TmpScope.HOST)
        assert (status, err) == (0, b"")
        found[level] = [int(word) for word in out.split()]
    # The process, the three keyring calls, and the call of x32, which this kernel may not know (ENOSYS).
    assert found[Isolation.SHARED][0] > 0
    assert -1 not in found[Isolation.SHARED]
    assert found[Isolation.PRIVATE][0] > 0
    assert found[Isolation.PRIVATE][1:] == [-1] * 4
    assert found[Isolation.SEALED] == [-1] * 5
