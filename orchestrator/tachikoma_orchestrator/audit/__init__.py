"""The audit trail in Redis and the sinks that it is shipped to."""
