"""Recordings of interactive executions: writing, storage, and playing."""
