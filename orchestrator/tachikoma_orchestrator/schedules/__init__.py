"""Schedules: their sources, their scheduled times, and the outcome of each scheduled time."""
