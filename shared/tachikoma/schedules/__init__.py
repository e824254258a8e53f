"""Schedules as they are written in files, and their scheduled times."""
