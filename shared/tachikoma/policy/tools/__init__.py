"""What-if tools over decisions: expected decisions in files, and replays of the audit trail."""
