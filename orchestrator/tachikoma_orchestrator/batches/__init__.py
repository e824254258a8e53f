"""Batches: one command on many agents, from its frozen list of targets to the last answer."""
