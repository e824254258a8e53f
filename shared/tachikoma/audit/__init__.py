"""Audit log files: the hash chain and its export."""
