"""The client library: connections, calls, and the conversion to and from the wire."""

from typing import Final

__all__ = ["PROFILE_VARIABLE"]

#: The environment variable with the path of the profile. It is here, since the command line needs it without a client.
PROFILE_VARIABLE: Final = "TACHIKOMA_PROFILE"
