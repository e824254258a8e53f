"""The settings of a part that systemd runs on this host."""

from __future__ import annotations

import os
import pwd
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tachikoma.config.settings import PREFIX, read_settings
from tachikoma.diagnosis import installed
from tachikoma.diagnosis.installed import Installed, find, is_configured
from tachikoma.errors import ConfigurationError
from tachikoma.setup.layout import Layout
from tachikoma_worker.settings import WorkerSettings


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """No settings of parts; the environment is restored afterwards."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A host with the real units of all parts and no settings yet."""
    layout = Layout(tmp_path)
    monkeypatch.setattr(installed, "UNIT_FOLDERS", (layout.units, tmp_path / "usr/lib/systemd/system"))
    for folder in (layout.units, layout.settings):
        folder.mkdir(parents=True)
    for part in ("worker", "orchestrator", "submitter", "beat", "flower"):
        unit = layout.unit(f"tachikoma-{part}.service")
        unit.path.write_text(unit.content)
    return layout


def read(layout: Layout, text: str, unit: str = "") -> Installed:
    """Return a worker's installation with this text in its file, and this text at the end of its unit."""
    (layout.settings / "worker.env").write_text(text)
    drop_in = layout.units / "tachikoma-worker.service.d/own.conf"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(f"[Service]\n{unit}")
    found = find("worker")
    assert found is not None
    return found


def test_a_host_with_units_and_no_settings_has_no_installation(layout: Layout) -> None:
    assert [find(part) for part in ("worker", "orchestrator", "submitter", "beat", "flower")] == [None] * 5
    assert find("unknown") is None


def test_the_settings_are_those_of_unit_and_files_as_systemd_orders_them(layout: Layout) -> None:
    (layout.settings / "worker.local.env").write_text("TACHIKOMA_SLOTS=7\nTACHIKOMA_LEAVE_RUNNING=false\n")
    found = read(layout, "# a comment\nTACHIKOMA_AGENT_ID=web-1\nTACHIKOMA_REDIS_URL=unix:///x\nTACHIKOMA_SLOTS=3\n")
    assert (found.unit, found.user) == ("tachikoma-worker.service", "tachikoma-worker")
    assert found.files == (layout.settings / "worker.env", layout.settings / "worker.local.env")
    assert found.open_files == 65536
    assert not is_configured(WorkerSettings)
    os.environ |= {"TACHIKOMA_POLL": "17s"}
    assert is_configured(WorkerSettings)
    # The limit of this process is not to change.
    Installed(found.unit, found.user, found.files, found.variables).enter()
    assert "TACHIKOMA_POLL" not in os.environ
    settings = read_settings(WorkerSettings, "worker")
    assert (settings.agent_id, settings.slots, settings.leave_running) == ("web-1", 7, False)
    assert settings.data == layout.state("worker")
    assert settings.spawner == Path("/run/tachikoma-spawner/socket")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b c ", "b c"),
        ('A="b c"', "b c"),
        ("A='b \"c'", 'b "c'),
        ("A=b\\\\c", "b\\c"),
        ("A=b\\\nc", "bc"),
        ("A=b # c", "b # c"),
        ("A=", ""),
        ("; A=x\n  A=b", "b"),
    ],
)
def test_lines_of_an_environment_file_are_read_as_systemd_reads_them(layout: Layout, line: str, value: str) -> None:
    assert read(layout, f"{line}\n").variables["A"] == value


def test_a_drop_in_changes_the_unit(layout: Layout) -> None:
    found = read(layout, "A=1\n", 'User=other\nLimitNOFILE=5:9\nEnvironment=\nEnvironment="B=2 3" C=4\n')
    assert (found.user, found.open_files, found.variables) == ("other", 9, {"A": "1", "B": "2 3", "C": "4"})
    assert read(layout, "A=1\n", "LimitNOFILE=infinity\n").open_files is None
    assert find("worker") == read(layout, "A=1\n", "LimitNOFILE=infinity\n")
    (layout.settings / "other.env").write_text("A=5\n")
    found = read(layout, "A=1\n", f"EnvironmentFile=\nEnvironmentFile={layout.settings}/other.env\n")
    assert found.files == (layout.settings / "other.env",)


def test_the_submitter_reads_the_settings_of_the_orchestrator(layout: Layout) -> None:
    (layout.settings / "orchestrator.env").write_text("A=1\n")
    found = find("submitter")
    assert found is not None
    assert (found.user, str(found)) == (
        "tachikoma-orchestrator",
        f"tachikoma-submitter.service ({layout.settings}/orchestrator.env)",
    )


def test_a_file_that_cannot_be_read_is_named(layout: Layout) -> None:
    (layout.settings / "worker.env").write_bytes(b"A=\xff\n")
    with pytest.raises(ConfigurationError, match=r"cannot read the settings of tachikoma-worker\.service: .*as root"):
        find("worker")


def test_an_account_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no such user; run: systemd-sysusers"):
        Installed("a.service", "no-such-user", (), {}).become()


@pytest.mark.parametrize("refused", [False, True])
def test_a_limit_that_root_may_not_raise_stays(monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    limits: list[tuple[int, int]] = []

    def change(_: int, limit: tuple[int, int]) -> None:
        if refused and limit[1] > 77:
            raise ValueError("not allowed to raise maximum limit")
        limits.append(limit)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(resource, "setrlimit", change)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (5, 77))
    Installed("a.service", "", (), {}, 99).enter()
    assert limits == [(77, 77) if refused else (99, 99)]


def test_root_continues_as_the_user_of_the_unit_and_others_are_refused(layout: Layout) -> None:
    unit = repr(Installed("a.service", "nobody", (), {"TACHIKOMA_SLOTS": "3"}, 77))
    code = (
        "import os, resource; from tachikoma.diagnosis.installed import Installed; from pathlib import PosixPath\n"
        f"unit = {unit}; unit.enter(); unit.become()\n"
        "print(os.environ['TACHIKOMA_SLOTS'], resource.getrlimit(resource.RLIMIT_NOFILE), os.getresuid(), "
        "os.getresgid(), os.getgroups(), os.getcwd())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    if os.geteuid() != 0:
        assert "a.service runs as nobody; repeat the command as root (sudo)" in done.stderr
        return
    account = pwd.getpwnam("nobody")
    uid, gid = account.pw_uid, account.pw_gid
    assert done.stdout == f"3 (77, 77) {(uid,) * 3} {(gid,) * 3} {[gid]} /\n", done.stderr
