"""A Redis that comes back with an older state, while everything else runs on."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from contextlib import suppress
from typing import Any

import psutil
from redis.exceptions import RedisError
from support import wait_until

from patience import PATIENCE_SECONDS
from soak.scene import Scene, fault
from tachikoma import ExecState
from tachikoma.redis import keys

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
    before = {job.id for job in scene.callers.answered()}
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
        noticed = scene.dice.random() < 0.5
        # What callers wait for may be gone.
        scene.hurt(scene.callers.under_way.copy())
        answered = [job for job in scene.callers.answered() if job.id not in before]
        # An execution ends as LOST if its agent is silent for the lease and nobody else remembers its end. Where other
        # faults go on, they may take the memory of all orchestrators.
        scene.hurt(job.id for job in answered if _WITHOUT_RECEIPT & set(job.told) or not noticed)
        _kill_with_children(scene)
        shutil.rmtree(files)
        older.rename(files)
        scene.world.redis.start()
        scene.forgot = True
        scene.note("went back", "redis, noticed" if noticed else "redis")
        if noticed:
            # An agent whose clock is far behind takes the record of the life for one from the future.
            clocks = [f"clock of {agent}" for agent in scene.world.agent_ids]
            for name in (*scene.world.orchestrators, *scene.world.agent_ids, *clocks):
                if name in scene.undo:
                    scene.undo.pop(name)()
            wait_until(lambda: _is_noticed(scene), "every agent has written its reports again")

    scene.undo["older"] = undo


def _kill_with_children(scene: Scene) -> None:
    """Kill Redis, and its child that rewrites a file, which would go on in the folder."""
    children = psutil.Process(scene.world.pid("redis")).children()
    scene.world.kill("redis")
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=PATIENCE_SECONDS)


def _is_noticed(scene: Scene) -> bool:
    """Return whether the life of Redis is recorded, and all agents have reported in it."""
    scene.restart_ended()
    with suppress(RedisError), scene.world.direct() as redis:
        token, replid = redis.get(keys.LIFE), redis.info("replication")["master_replid"]
        if token is None or _payload(token)["replid"] != replid:
            return False
        beats = [redis.get(keys.info(agent)) for agent in scene.world.agent_ids]
        return all(beat is not None and json.loads(beat)["life"] == token.decode() for beat in beats)
    return False


def _payload(token: bytes) -> dict[str, Any]:
    part = token.split(b".")[1]
    payload: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)))
    return payload
