"""The gRPC services: calls in, domain calls out."""
