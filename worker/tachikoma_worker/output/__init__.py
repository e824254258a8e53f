"""Output of commands: from the pipe to the spool on disk, and from there to Redis."""
