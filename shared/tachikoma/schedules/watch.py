"""The active schedules of a process, replaced when their file changes."""

from __future__ import annotations

from pathlib import Path

from tachikoma.config.file_watch import FileWatch
from tachikoma.schedules.file import ScheduleSet

__all__ = ["ScheduleWatch"]


class ScheduleWatch(FileWatch[ScheduleSet]):
    """The active schedules, replaced as a whole when their file changes and has no mistake."""

    def __init__(self, path: Path) -> None:
        """Load the file; raises as `ScheduleSet.load` does."""
        super().__init__(path, ScheduleSet)
