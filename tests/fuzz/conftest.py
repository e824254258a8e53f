"""Fuzzing: no input ends a process or keeps it busy, however it was made."""

from __future__ import annotations

import sys
from pathlib import Path

# Test folders are no packages; what they share is imported by its plain name.
sys.path.insert(0, str(Path(__file__).parent))
