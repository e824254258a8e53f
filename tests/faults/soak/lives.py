"""A Redis that comes back with an older state, while everything else runs on."""

from __future__ import annotations

import os
import shutil
import time

from soak.scene import Scene, fault
from tachikoma import ExecState

__all__: list[str] = []

#: Age from which on a state is too old: agents retain sent output for 60 s.
MOST_SECONDS = 40
#: Final states that only an orchestrator may know, and another fault may have killed it.
_WITHOUT_RECEIPT = {ExecState.CANCELLED, ExecState.EXPIRED, ExecState.LOST, ExecState.REJECTED}


#: Only `make soak` has this fault: in a short run it would leave little else to compare.
WEIGHT = 1.5 if os.environ.get("TACHIKOMA_TEST_LIVES") else 0


@fault(WEIGHT)
def go_back(scene: Scene) -> None:
    """Copy the files of Redis; a while later, kill it and start it with the copy."""
    files, older = scene.world.data / "redis", scene.world.data / "older"
    if "redis" in scene.undo or "older" in scene.undo:
        return
    with scene.world.stopped("redis"):
        # A child that rewrites a file runs on; the temporary file becomes one of Redis' when the parent renames it.
        shutil.copytree(files, older, ignore=shutil.ignore_patterns("temp-*"))
    copied = time.monotonic()

    def undo() -> None:
        if time.monotonic() - copied > MOST_SECONDS:
            shutil.rmtree(older)
            return
        if "redis" in scene.undo:
            # It was stopped meanwhile.
            scene.undo.pop("redis")()
        # What callers wait for may be gone.
        scene.hurt(scene.callers.under_way.copy())
        scene.hurt(job.id for job in scene.callers.answered() if _WITHOUT_RECEIPT & set(job.told))
        scene.world.kill("redis")
        shutil.rmtree(files)
        older.rename(files)
        scene.world.redis.start()
        scene.forgot = True
        scene.note("went back", "redis")

    scene.undo["older"] = undo
