"""Admission and approval: from a request to an accepted execution or an audited refusal."""
