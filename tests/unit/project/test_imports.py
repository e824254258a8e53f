"""Modules that must stay light: what importing them loads.

The import contracts forbid these imports in the source; here an interpreter shows that nothing loads them indirectly.
"""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import tachikoma.vocabulary

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
