"""The gRPC services: they turn each call of a client into a call of the domain.

`remote_execution.py` puts `tachikoma.exec.v1.RemoteExecution` together from one class per noun. `guard.py`
authenticates each call. `join_service.py` is the second service, for hosts without an identity.
"""
