"""Agents: registry, enrolment, joining, certificates, revocation."""
