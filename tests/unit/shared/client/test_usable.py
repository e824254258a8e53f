"""A client after `close`, and in a forked process: a clear error, never a wait for ever."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from authority import Authority
from tachikoma import AsyncClient, Client, ExecRequest, FailedPrecondition, Profile

CLOSED = "this client is closed; make a new one"
#: Uses clients before and after a fork, and prints each error of the child.
FORK = """
import os, sys
from pathlib import Path
from tachikoma import Client, Profile, TachikomaError
profile = Profile.load(Path(sys.argv[1]))
before = Client(profile)
try:
    before.agents()
except TachikomaError:
    pass
if os.fork() == 0:
    for use in (before.agents, lambda: Client(profile)):
        try:
            use()
        except TachikomaError as error:
            print(type(error).__name__, error, flush=True)
    before.close()
    os._exit(0)
print("child", os.wait()[1], os.getpid())
before.close()
"""

#: Makes a client before a fork and uses it only in the child, as a server that loads its application first does.
PRELOADED = """
import os, sys
from pathlib import Path
from tachikoma import Client, Profile, TachikomaError
profile = Profile.load(Path(sys.argv[1]))
before = Client(profile)
if os.fork() == 0:
    try:
        before.agents()
    except TachikomaError as error:
        print(type(error).__name__, error, flush=True)
    before.close()
    # gRPC was not used yet, so a client of the child works.
    with Client(profile) as own:
        own.check_usable()
    print("own", flush=True)
    os._exit(0)
print("child", os.wait()[1], os.getpid())
before.close()
"""


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    """A profile with an identity, and an address at which nothing listens."""
    folder = tmp_path / "identity"
    folder.mkdir()
    Authority("tachikoma.local").write(folder, "spiffe://tachikoma.local/user/alice")
    return Profile(address="127.0.0.1:1", server_name="orchestrator", identity=folder)


def test_each_call_of_a_closed_client_says_so(profile: Profile) -> None:
    client = Client(profile)
    client.close()
    client.close()
    for call in (client.agents, lambda: client.execute(ExecRequest(agent_id="a", command=["x"]))):
        with pytest.raises(FailedPrecondition, match=CLOSED):
            call()
    with pytest.raises(FailedPrecondition, match=CLOSED):
        next(client.attach("job-7"))
    with pytest.raises(FailedPrecondition, match=CLOSED):
        next(client.list())


async def test_the_asynchronous_client_says_so_too(profile: Profile) -> None:
    client = AsyncClient(profile)
    await client.close()
    await client.close()
    with pytest.raises(FailedPrecondition, match=CLOSED):
        await client.agents()
    with pytest.raises(FailedPrecondition, match=CLOSED):
        await anext(client.execute_stream(ExecRequest(agent_id="a", command=["x"])))


def printed(program: str, profile: Profile, folder: Path) -> list[str]:
    """Return the lines that a program prints, run with the file of a profile."""
    profile.save(folder / "profile.json")
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "profile.json")],
        capture_output=True, text=True, timeout=60, check=True, env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )  # fmt: skip
    return done.stdout.splitlines()


def test_a_client_that_was_not_used_before_the_fork_gets_an_error_too(profile: Profile, tmp_path: Path) -> None:
    error, own, last = printed(PRELOADED, profile, tmp_path)
    assert re.fullmatch(r"child 0 \d+", last)
    assert own == "own"
    parent = last.split()[-1]
    assert error.startswith(f"FailedPrecondition a client was made in process {parent} before it forked this one; ")


@pytest.mark.slow
def test_a_forked_process_gets_an_error(profile: Profile, tmp_path: Path) -> None:
    *errors, last = printed(FORK, profile, tmp_path)
    assert re.fullmatch(r"child 0 \d+", last)
    assert len(errors) == 2
    parent = last.split()[-1]
    for error in errors:
        assert error.startswith(f"FailedPrecondition a client was used in process {parent} before it forked this one; ")
