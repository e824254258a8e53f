"""Modules that must stay light: what importing them loads.

The import contracts forbid these imports in the source; here an interpreter shows that nothing loads them indirectly.
"""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import tachikoma.vocabulary

# Tests here start Python, which takes most of their time.
pytestmark = pytest.mark.slow

HEAVY = ("grpc", "celery", "kombu", "redis", "sentry_sdk")
LIGHT = [
    "tachikoma.redis.keys",
    "tachikoma.redis.names",
    "tachikoma.policy.decide",
    *(f"tachikoma.vocabulary.{module.name}" for module in pkgutil.iter_modules(tachikoma.vocabulary.__path__)),
]


def loaded_by(*modules: str) -> set[str]:
    """The heavy packages that a new interpreter has loaded after importing modules."""
    code = f"import sys, {', '.join(modules)}; print(*(set({HEAVY!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


def test_names_policy_and_vocabulary_load_neither_grpc_nor_celery_nor_redis() -> None:
    assert loaded_by(*LIGHT) == set()


@pytest.mark.parametrize("module", ["tachikoma.redis.keys", "tachikoma.policy.decide", "tachikoma.vocabulary.requests"])
def test_each_of_them_alone_loads_none_of_these(module: str) -> None:
    assert loaded_by(module) == set()


def test_access_to_redis_loads_redis_and_no_grpc() -> None:
    assert loaded_by("tachikoma.redis.access") == {"redis"}


#: Runs a command line, and writes the names of the modules that it has loaded to a file.
LINE = """
import sys
target = sys.argv.pop(1)
from tachikoma.cli import main
try:
    main()
except SystemExit:
    pass
open(target, "w").write(chr(10).join(sys.modules))
"""
#: What a command must not load, by command line; the commands of the client need neither models of tables nor these.
COMMON = {*HEAVY, "tachikoma_orchestrator", "tachikoma_worker", "structlog", "joserfc", "rich"}
WITHOUT = {
    "--version": COMMON | {"pydantic", "asyncio", "cryptography", "tachikoma.client.aio", "google"},
    "--help": COMMON - {"rich"} | {"pydantic", "cryptography", "tachikoma.client.aio", "google"},
    "exec agent-1 true": COMMON - {"grpc"} | {
        "tachikoma.policy", "tachikoma.vocabulary.policies", "tachikoma.vocabulary.audit",
        "tachikoma.vocabulary.schedules", "tachikoma.vocabulary.agents", "tachikoma.client.aio", "pydantic",
    },
    "ps": COMMON - {"grpc"} | {"tachikoma.policy"},
    "status x": COMMON - {"grpc"} | {"tachikoma.policy"},
}  # fmt: skip
#: Most modules of a command, the interpreter's own included; about a tenth more than now.
MOST = {"--version": 240, "--help": 380, "exec agent-1 true": 460, "ps": 560, "status x": 560}


@pytest.mark.parametrize("line", WITHOUT)
def test_a_command_loads_only_what_it_needs(line: str, tmp_path: Path) -> None:
    names = tmp_path / "modules"
    subprocess.run(
        [sys.executable, "-c", LINE, str(names), *line.split()], capture_output=True, timeout=60, check=True,
        env={**os.environ, "TACHIKOMA_PROFILE": str(tmp_path / "none.json"), "COLUMNS": "100"},
    )  # fmt: skip
    loaded = set(names.read_text(encoding="utf-8").split())
    assert not loaded & WITHOUT[line]
    assert len(loaded) <= MOST[line], len(loaded)
