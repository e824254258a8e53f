"""Starting the spawner program. That it works is tested in tests/confinement."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma_worker.confinement import launch
from tachikoma_worker.confinement.launch import PROGRAM, become_spawner


def test_the_program_is_beside_the_package() -> None:
    assert PROGRAM.parent.name == "tachikoma_worker"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that is never started."""
    path = tmp_path / "program"
    path.touch()
    monkeypatch.setattr(launch, "PROGRAM", path)
    return path


def test_a_socket_that_cannot_be_made_is_told(program: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen at .*: No such file"):
        become_spawner(tmp_path / "none" / "s", os.getuid(), os.getgid(), 0)


def test_a_process_becomes_a_spawner_for_one_user(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    listeners: list[socket.socket] = []
    listen = launch._listen

    def kept(path: Path) -> socket.socket:
        listeners.append(listen(path))
        return listeners[-1]

    # The process that this one would become holds the socket; here the test does.
    monkeypatch.setattr(launch, "_listen", kept)
    monkeypatch.setattr(os, "execv", lambda path, command: started.append([str(path), *command]))
    monkeypatch.chdir(program.parent)
    become_spawner(Path("s"), os.getuid(), os.getgid(), 5)
    [[path, name, *options]] = started
    assert path == name == str(program)
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert (given["--peer"], given["--linger"], given["--capabilities"]) == (str(os.getuid()), "0", "5")
    # Only its owner may connect, and the program inherits the socket.
    assert Path("s").stat().st_mode & 0o777 == 0o600
    assert os.get_inheritable(int(given["--socket"]))
    listeners[0].close()


def test_a_socket_of_an_earlier_spawner_is_replaced(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(program.parent)
    with socket.socket(socket.AF_UNIX) as earlier:
        earlier.bind("s")
        with launch._listen(Path("s")) as listener, socket.socket(socket.AF_UNIX) as client:
            client.connect("s")
            assert listener.getsockname() == "s"
