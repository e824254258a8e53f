"""The sinks of the audit trail: files with a hash chain, syslog, standard output."""
