"""`tachikoma dev`: its options. The stack itself is tested end to end."""

from __future__ import annotations

from typing import Any

import pytest

DEFAULTS = {
    "agents": 1, "data": None, "listen": "127.0.0.1:8534", "flower": None, "schedules": None, "submitter": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ((), {}),
        (("--agents", "3", "--data", "/x", "--listen", "[::1]:0"), {"agents": 3, "data": "/x", "listen": "[::1]:0"}),
        (("--flower",), {"flower": "127.0.0.1:5555"}),
        (("--flower", "--flower-listen", "127.0.0.1:0"), {"flower": "127.0.0.1:0"}),
        # Without --flower there is none, wherever it would listen.
        (("--flower-listen", "127.0.0.1:0"), {}),
        (("--schedules", "app:app"), {"schedules": "app:app"}),
    ],
)
def test_options_reach_the_stack(
    run: Any, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], given: dict[str, Any]
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("tachikoma.dev.command.run_dev", lambda **values: seen.append(values))
    assert run("dev", *options).code == 0
    assert seen == [{**DEFAULTS, **given}]


@pytest.mark.parametrize("count", ["0", "65", "many"])
def test_the_number_of_agents_is_bounded(run: Any, count: str) -> None:
    assert run("dev", "--agents", count).code == 2
