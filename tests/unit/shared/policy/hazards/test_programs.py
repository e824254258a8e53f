"""Which programs can run other programs."""

from __future__ import annotations

import pytest

from tachikoma.policy.hazards import programs
from tachikoma.policy.hazards.interpreters import is_interpreter
from tachikoma.policy.hazards.programs import ProgramKind, kind_of


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/bin/sh", ProgramKind.RUNNER),
        ("/usr/bin/editor", ProgramKind.RUNNER),
        ("/usr/bin/vim.basic", ProgramKind.RUNNER),
        ("/usr/bin/vim.tiny", ProgramKind.RUNNER),
        ("/usr/bin/nvim-0.9", ProgramKind.RUNNER),
        ("/usr/bin/sensible-pager", ProgramKind.RUNNER),
        ("/usr/bin/systemctl", ProgramKind.BY_ARGUMENTS),
        ("/usr/bin/busctl", ProgramKind.BY_ARGUMENTS),
        ("/sbin/ip", ProgramKind.BY_ARGUMENTS),
        ("/usr/bin/ssh-keygen", ProgramKind.BY_ARGUMENTS),
        ("/sbin/mkfs.ext4", ProgramKind.BY_ARGUMENTS),
        ("/usr/bin/journalctl", ProgramKind.ON_TERMINAL),
        ("/usr/bin/uptime", ProgramKind.SAFE),
        ("/opt/app/bin/serve", ProgramKind.UNKNOWN),
        ("", ProgramKind.UNKNOWN),
    ],
)
def test_a_program_is_known_by_its_last_name(path: str, kind: ProgramKind) -> None:
    assert kind_of(path) is kind


def test_a_program_is_of_one_kind_only() -> None:
    lists = [programs._RUNNERS, programs._BY_ARGUMENTS, programs._ON_TERMINAL, programs._SAFE]
    names = [name for names in lists for name in names]
    assert len(names) == len(set(names))
    assert not [name for names in lists[1:] for name in names if is_interpreter(name)]
