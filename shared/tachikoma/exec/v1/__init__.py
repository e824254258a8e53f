"""Version 1 of the gRPC API: `remote_execution.proto` and what `make proto` generates from it."""
