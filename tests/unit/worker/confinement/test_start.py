"""What a failed step of the spawner means for an order. Starts are tested in tests/confinement."""

from __future__ import annotations

import errno

import pytest

from tachikoma_worker.confinement.account import Account
from tachikoma_worker.confinement.protocol import SpawnFailed, Step
from tachikoma_worker.confinement.refusals import CannotExecute, Refused
from tachikoma_worker.confinement.start import explain

USER = Account("app", 1000, 1000, "/home/app", (1000,))


def explained(step: Step, error: int) -> Refused | CannotExecute:
    return explain(SpawnFailed(step, error), "/bin/x", "/srv", USER)


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (Step.WORK_DIR, errno.ENOENT, "cannot enter the directory '/srv' as app: No such file or directory"),
        (Step.WORK_DIR_ROOT, errno.EACCES, "cannot enter the directory '/srv' as app: Permission denied"),
        (Step.WORK_DIR, errno.EXDEV, "it leads out of the directory that policy names"),
        (Step.WORK_DIR, errno.EPERM, "another user could have placed a symbolic link on the way; request the"),
        (Step.WORK_DIR_ROOT, errno.EPERM, "let only root or app own the link and write to its folder"),
        (Step.SWAPPED, errno.ESTALE, "exchanged while it was checked"),
        (Step.EXECUTE, errno.E2BIG, "too long for this host"),
        (Step.CGROUP, errno.EBUSY, "cannot join the cgroup"),
        (Step.USER, errno.EPERM, "cannot become app"),
        (Step.GROUPS, errno.EPERM, "cannot become app"),
        (Step.CAPABILITIES, errno.EPERM, "cannot give up capabilities"),
        (Step.TERMINAL, errno.ENOSPC, "cannot open a terminal: No space left"),
        (Step.RESOURCES, errno.EMFILE, "cannot be started: resources: Too many open files"),
    ],
)
def test_a_step_that_fails_refuses_the_order(step: Step, error: int, message: str) -> None:
    found = explained(step, error)
    assert isinstance(found, Refused)
    assert message in str(found)


@pytest.mark.parametrize(
    ("step", "error", "code"),
    [
        (Step.REACH, errno.EACCES, 126),
        (Step.EXECUTE, errno.ENOENT, 127),
        (Step.EXECUTE, errno.EACCES, 126),
        (Step.EXECUTE, errno.ENOEXEC, 126),
    ],
)
def test_a_program_that_cannot_be_executed_has_the_exit_code_of_shells(step: Step, error: int, code: int) -> None:
    found = explained(step, error)
    assert isinstance(found, CannotExecute)
    assert found.exit_code == code


@pytest.mark.parametrize("step", list(Step))
@pytest.mark.parametrize("error", [0, errno.EPERM, 133, 9999])
def test_every_step_and_error_has_a_meaning(step: Step, error: int) -> None:
    assert str(explained(step, error))
