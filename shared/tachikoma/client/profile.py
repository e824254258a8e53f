"""The client profile: the address of the orchestrator, and the identity to use.

A JSON file in the user's configuration folder (XDG), or the file that `TACHIKOMA_PROFILE` names. `tachikoma dev` writes
it.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
from pydantic import ValidationError

from tachikoma.client import PROFILE_VARIABLE
from tachikoma.errors import ConfigurationError
from tachikoma.identity.open import IdentityPlace
from tachikoma.vocabulary.model import Model, describe_validation_error

__all__ = ["PROFILE_VARIABLE", "Profile", "default_identity_path", "default_profile_path"]


def default_profile_path() -> Path:
    """Return the path of the user's profile; an environment variable may set it."""
    configured = os.environ.get(PROFILE_VARIABLE)
    return Path(configured) if configured else platformdirs.user_config_path("tachikoma") / "profile.json"


def default_identity_path(trust_domain: str) -> Path:
    """Return the folder of the user's identity in a trust domain."""
    return platformdirs.user_data_path("tachikoma") / "identities" / trust_domain


class Profile(Model):
    """The address of an orchestrator, and the identity of its client."""

    #: host:port of the orchestrator's gRPC server, or of several with commas. The first one that accepts is used.
    address: str
    #: DNS name in the orchestrator's certificate; no other certificate of the trust domain has it.
    server_name: str
    #: Folder with svid.pem, svid_key.pem and svid_bundle.pem, or unix:///path of the SPIFFE Workload API. None: the
    #: Workload API that SPIFFE_ENDPOINT_SOCKET names.
    identity: IdentityPlace | None = None
    #: Trust domain of the orchestrator; empty if it is the client's own.
    trust_domain: str = ""

    @classmethod
    def load(cls, path: Path | None = None) -> Profile:
        """Read a profile.

        Args:
            path: the file; None for the user's own.

        Raises:
            ConfigurationError: the file is missing or has a mistake.
        """
        path = path or default_profile_path()
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigurationError(
                f"there is no client profile at {path}; log in with a token "
                f"(`tachikoma login`), start `tachikoma dev`, or set {PROFILE_VARIABLE} to the profile you were given"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"cannot read the client profile {path}: {error}") from error
        except ValidationError as error:
            raise ConfigurationError(f"the client profile {path}: {describe_validation_error(error)}") from None

    def save(self, path: Path) -> None:
        """Write the profile, as a whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(self.model_dump_json(indent=2, by_alias=True) + "\n", encoding="utf-8")
        temporary.replace(path)
