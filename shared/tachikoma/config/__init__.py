"""Configuration and plumbing that every process shares: settings, files, logs, error reports, tasks."""
