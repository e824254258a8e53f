"""Schedules: where they come from, when they are due, and what became of each due time."""
