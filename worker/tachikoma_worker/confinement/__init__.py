"""How a command is prepared, started and killed by the spawner."""
