"""Agents: registry, enrolment, certificates, revocation."""
