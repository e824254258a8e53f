"""Policy decisions, pure: the same code decides for the orchestrator and for an agent's own policy file."""
