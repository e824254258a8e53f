"""Steps of a set-up: applying a plan twice changes nothing, and a dry run says what applying does."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.errors import ConfigurationError
from tachikoma.setup import steps as module
from tachikoma.setup.steps import Accounts, File, Folder, Host, Secret, Step, UnitFile, Units, apply, pending

PLAIN = Host(owners=False, services=False)
NAMES = st.sampled_from(["a", "b", "c"])
MODES = st.sampled_from([0o600, 0o644, 0o700, 0o755])


@st.composite
def plans(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """Plans in which each path occurs once."""
    names = draw(st.lists(NAMES, unique=True, max_size=3))
    kinds = {
        "folder": lambda: ("folder", draw(MODES)),
        "file": lambda: ("file", (draw(st.text(st.characters(codec="utf-8", exclude_characters="\r"))), draw(MODES))),
        "secret": lambda: ("secret", None),
        "kept": lambda: ("kept", draw(st.text("abc"))),
    }
    return [(name, kinds[draw(st.sampled_from(sorted(kinds)))]()) for name in names]


def steps_of(plan: list[tuple[str, Any]], folder: Path) -> list[Step]:
    made: list[Step] = []
    for name, (kind, value) in plan:
        path = folder / name / "x"
        if kind == "folder":
            made.append(Folder(path, value | 0o700))
        elif kind == "file":
            made.append(File(path, value[0], value[1]))
        elif kind == "secret":
            made.append(Secret(path))
        else:
            made.append(File(path, value, keep=True))
    return made


def content(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below a folder, with the times of changes."""
    return {
        str(path): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


@given(plan=plans())
def test_a_dry_run_changes_nothing_and_says_what_applying_does_and_applying_twice_does_it_once(
    plan: list[tuple[str, Any]],
) -> None:
    with TemporaryDirectory() as place:
        folder = Path(place)
        steps = steps_of(plan, folder)
        announced = [words for _, words in pending(steps, PLAIN)]
        assert content(folder) == {}
        assert list(apply(steps, PLAIN)) == announced
        before = content(folder)
        assert list(apply(steps, PLAIN)) == []
        assert list(pending(steps, PLAIN)) == []
        assert content(folder) == before


def test_what_belongs_to_the_operator_stays_and_what_belongs_to_the_plan_is_put_back(tmp_path: Path) -> None:
    steps: list[Step] = [File(tmp_path / "kept", "first", keep=True), File(tmp_path / "planned", "first")]
    list(apply(steps, PLAIN))
    for name in ("kept", "planned"):
        (tmp_path / name).write_text("changed")
    assert list(apply(steps, PLAIN)) == [f"change {tmp_path / 'planned'}"]
    assert ((tmp_path / "kept").read_text(), (tmp_path / "planned").read_text()) == ("changed", "first")


def test_a_secret_is_random_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    steps: list[Step] = [Secret(tmp_path / "a"), Secret(tmp_path / "b")]
    list(apply(steps, PLAIN))
    first, second = ((tmp_path / name).read_text() for name in "ab")
    assert len(first.strip()) == 64
    assert first != second
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_step_that_fails_names_the_cause_and_those_before_it_stay(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    steps: list[Step] = [File(tmp_path / "first", "x"), Folder(tmp_path / "file" / "below")]
    with pytest.raises(ConfigurationError, match="cannot set up this host"):
        list(apply(steps, PLAIN))
    assert (tmp_path / "first").read_text() == "x"


def test_an_owner_that_does_not_exist_is_named(tmp_path: Path) -> None:
    host = Host(owners=True, services=False)
    with pytest.raises(ConfigurationError, match="no user 'nobody-of-this-name'"):
        list(apply([File(tmp_path / "x", "", owner="nobody-of-this-name")], host))
    assert not (tmp_path / "x").exists()
    assert Accounts(("nobody-of-this-name",), "").pending(host) == "create the accounts nobody-of-this-name"
    assert Accounts(("nobody-of-this-name",), "").pending(PLAIN) == ""


def test_below_another_root_neither_owners_nor_units_are_touched(tmp_path: Path) -> None:
    assert Host.real(tmp_path) == PLAIN
    assert Units(("a.service",)).pending(PLAIN) == ""
    assert Units(("a.service",)).commands() == ["systemctl daemon-reload", "systemctl enable --now a.service"]


def test_accounts_are_described_to_sysusers_on_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[tuple[str, ...], str]] = []

    def run(*argv: str, given: str = "") -> subprocess.CompletedProcess[str]:
        calls.append((argv, given))
        return subprocess.CompletedProcess(argv, 0, "", "")

    monkeypatch.setattr(module, "_run", run)
    Accounts(("a",), "u a -\n").apply(PLAIN)
    assert calls == [(("systemd-sysusers", "-"), "u a -\n")]


def test_a_unit_is_written_unless_a_package_has_the_same(tmp_path: Path) -> None:
    unit = UnitFile(tmp_path / "etc/a.service", "new", tmp_path / "lib/a.service")
    assert list(apply([unit], PLAIN)) == [f"write {unit.path}"]
    assert list(apply([unit], PLAIN)) == []
    # A package with another file does not matter, one with the same replaces it.
    unit.package.parent.mkdir()
    unit.package.write_text("old")
    assert list(apply([unit], PLAIN)) == []
    unit.package.write_text("new")
    assert list(apply([unit], PLAIN)) == [f"remove {unit.path}, since {unit.package} is the same"]
    assert not unit.path.exists()
    assert list(apply([unit], PLAIN)) == []


class Systemd:
    """systemctl, with one unit."""

    def __init__(self) -> None:
        self.enabled = self.active = False
        self.stale = False
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, *argv: str, given: str = "") -> subprocess.CompletedProcess[str]:
        self.calls.append(argv)
        verb, code, out = argv[1], 0, ""
        if verb == "is-active":
            code = 0 if self.active else 3
        elif verb == "is-enabled":
            code = 0 if self.enabled else 1
        elif verb == "show":
            out = "yes\n" if self.stale else "no\n"
        elif verb == "daemon-reload":
            self.stale = False
        elif verb == "enable":
            self.enabled = self.active = True
        return subprocess.CompletedProcess(argv, code, out, "")


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    fake = Systemd()
    monkeypatch.setattr(module, "_run", fake)
    return fake


def test_units_are_started_once_and_restarted_when_their_files_change(systemd: Systemd) -> None:
    host, units = Host(owners=False, services=True), Units(("a.service",))
    assert list(apply([units], host)) == ["enable and start a.service"]
    assert list(apply([units], host)) == []
    systemd.stale = True
    systemd.calls.clear()
    assert list(apply([units], host)) == ["enable and start a.service"]
    assert ("systemctl", "restart", "a.service") in systemd.calls
    assert list(apply([units], host)) == []


def test_a_command_that_fails_is_named_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "_run", lambda *argv, **_given: subprocess.CompletedProcess(argv, 1, "", "no such unit\n")
    )
    with pytest.raises(ConfigurationError, match="systemctl daemon-reload failed: no such unit"):
        list(apply([Units(("a.service",))], Host(owners=False, services=True)))
    monkeypatch.undo()
    with pytest.raises(ConfigurationError, match="cannot run /nonexistent/program"):
        module._run("/nonexistent/program")
