"""Steps of a set-up: applying a plan twice changes nothing, and a dry run says what applying does."""

from __future__ import annotations

import json
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
from tachikoma.setup.steps import (
    Accounts,
    Address,
    File,
    Folder,
    Host,
    Secret,
    Step,
    Unit,
    UnitFile,
    Units,
    apply,
    pending,
)

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
    units = Units((Unit("a.service", ("x",)),), tmp_path / "started")
    assert units.pending(PLAIN) == ""
    assert units.commands() == ["systemctl daemon-reload", "systemctl enable --now a.service"]


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


WITH_SERVICES = Host(owners=False, services=True)


def test_units_are_started_once_and_restarted_when_their_files_change(systemd: Systemd, tmp_path: Path) -> None:
    host, units = WITH_SERVICES, Units((Unit("a.service"),), tmp_path / "started")
    assert list(apply([units], host)) == ["enable and start a.service"]
    assert list(apply([units], host)) == []
    systemd.stale = True
    systemd.calls.clear()
    assert list(apply([units], host)) == ["restart a.service"]
    assert ("systemctl", "restart", "a.service") in systemd.calls
    assert list(apply([units], host)) == []


def test_exactly_the_units_whose_contents_changed_are_restarted(systemd: Systemd, tmp_path: Path) -> None:
    local = tmp_path / "local.env"

    def units(text: str) -> Units:
        some = (Unit("a.service", (text,)), Unit("b.service", ("same", local)), Unit("c.service"))
        return Units(some, tmp_path / "started")

    def done(text: str) -> list[tuple[str, ...]]:
        systemd.calls.clear()
        list(apply([units(text)], WITH_SERVICES))
        return [call[2:] for call in systemd.calls if call[1] == "restart"]

    assert done("first") == []
    assert done("first") == []
    assert units("second").pending(WITH_SERVICES) == "restart a.service"
    assert done("second") == [("a.service",)]
    local.write_text("X=1")
    assert done("second") == [("b.service",)]
    assert done("second") == []
    # Units that an earlier version started are restarted once, but not one that reads nothing.
    (tmp_path / "started").unlink()
    assert done("second") == [("a.service", "b.service")]


def test_units_whose_restart_failed_are_restarted_by_the_next_setup(
    systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (Units((Unit("a.service", (text,)),), tmp_path / "started") for text in ("first", "second"))
    list(apply([first], WITH_SERVICES))

    def refuse(*argv: str, given: str = "") -> None:
        raise ConfigurationError("no")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_checked", refuse)
        with pytest.raises(ConfigurationError):
            list(apply([second], WITH_SERVICES))
    assert list(apply([second], WITH_SERVICES)) == ["restart a.service"]
    assert list(apply([second], WITH_SERVICES)) == []


def test_the_address_of_the_orchestrator_follows_the_plan_and_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    step = Address(file, "a:1", "a:2")
    assert step.pending(PLAIN) == ""
    file.write_text('{"address": "a:1,b:1", "color": "never"}')
    file.chmod(0o600)
    assert list(apply([step], PLAIN)) == [f"change the address in {file} to a:2"]
    assert json.loads(file.read_text()) == {"address": "a:2,b:1", "color": "never"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(apply([step], PLAIN)) == []
    # One that the operator chose stays.
    file.write_text('{"address": "balancer:1"}')
    assert list(apply([step], PLAIN)) == []
    file.write_text("{")
    with pytest.raises(ConfigurationError, match="cannot change the address in"):
        step.pending(PLAIN)


def test_a_kept_file_that_was_not_edited_gets_the_content_of_the_new_plan(tmp_path: Path) -> None:
    file = tmp_path / "policy"
    first, second = File(file, "ada", keep=True), File(file, "bob", keep=True, previous="ada")
    list(apply([first], PLAIN))
    assert list(apply([second], PLAIN)) == [f"change {file}"]
    assert list(apply([second], PLAIN)) == []
    file.write_text("mine")
    assert list(apply([second], PLAIN)) == []


def test_a_command_that_fails_is_named_with_its_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        module, "_run", lambda *argv, **_given: subprocess.CompletedProcess(argv, 1, "", "no such unit\n")
    )
    with pytest.raises(ConfigurationError, match="systemctl daemon-reload failed: no such unit"):
        list(apply([Units((Unit("a.service"),), tmp_path / "started")], WITH_SERVICES))
    monkeypatch.undo()
    with pytest.raises(ConfigurationError, match="cannot run /nonexistent/program"):
        module._run("/nonexistent/program")
