"""The gRPC API; `tachikoma.exec.v1` is generated from `v1/remote_execution.proto`."""
