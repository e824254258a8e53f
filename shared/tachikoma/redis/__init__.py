"""Names, users and connections in Redis."""
