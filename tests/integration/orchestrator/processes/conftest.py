"""Settings of processes that run in the test itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from authority import Authority

NAME = "orchestrator.test"
POLICY = """
policies:
  - name: all
    subjects: ["spiffe://tachikoma.local/user/*"]
    agents: ["**"]
    allowedCommands: ["/** ..."]
"""


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def given(redis_url: str, redis: Any, authority: Authority, tmp_path: Path) -> dict[str, Any]:
    """Settings of an orchestrator over the Redis of the test, with a policy that allows everything."""
    authority.write(tmp_path / "identity", "spiffe://tachikoma.local/service/orchestrator", dns=(NAME,))
    (tmp_path / "policy.yaml").write_text(POLICY)
    return {
        "redis_url": redis_url,
        "identity": str(tmp_path / "identity"),
        "policy": tmp_path / "policy.yaml",
        "listen": "127.0.0.1:0",
        "audit_durable": False,
        "stop_grace": "0s",
    }
