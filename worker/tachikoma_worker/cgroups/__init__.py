"""Control groups: limits, usage, and killing all processes of a command at once."""
