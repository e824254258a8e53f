"""Masking of secrets in commands before they are recorded."""
