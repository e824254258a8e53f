"""The processes, each wired from its parts: the gRPC server and the submitter."""
