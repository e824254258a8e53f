"""The commands that the orchestrator package adds to the CLI."""
