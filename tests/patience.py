"""How long a test waits for what must happen: so long that it gives up only on what never comes."""

from __future__ import annotations

__all__ = ["PATIENCE_SECONDS"]

#: A machine that runs three tests at once beside other work may hold one process up for many seconds. A test that
#: passes never waits this long.
PATIENCE_SECONDS = 60
