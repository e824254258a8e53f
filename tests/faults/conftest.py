"""Faults: processes that are killed or stopped, networks that break, disks that are full, clocks that are wrong."""

from __future__ import annotations

import sys
from pathlib import Path

# Test folders are no packages; what they share is imported by its plain name.
sys.path.insert(0, str(Path(__file__).parent))
