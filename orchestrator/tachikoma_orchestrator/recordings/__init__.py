"""Recordings of interactive executions: who writes them, where they are stored, and who plays them."""
