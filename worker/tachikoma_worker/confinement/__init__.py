"""Starting commands: checking what an order asks for, and the worker's side of the spawner."""
