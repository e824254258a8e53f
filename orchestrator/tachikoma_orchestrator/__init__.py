"""The control host's part: admission, ledger, dispatch, streaming, audit and the gRPC server."""
