"""The client library: connections, calls, and the conversion to and from the wire."""
