"""The processes, each put together from its parts: the gRPC server and the submitter."""
