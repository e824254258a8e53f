"""Targets: the expressions by which people name many agents, and the short form of many names."""
