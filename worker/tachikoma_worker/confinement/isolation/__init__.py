"""The isolation of commands: levels, users of requesters, and what the host can enforce."""
