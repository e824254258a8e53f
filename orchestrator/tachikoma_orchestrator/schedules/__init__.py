"""Schedules: their sources, their due times, and the outcome of each due time."""
