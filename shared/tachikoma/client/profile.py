"""The client profile: the address of the orchestrator, and the identity to use.

A JSON file in the user's configuration folder (XDG), or the file that `TACHIKOMA_PROFILE` names. `tachikoma dev` writes
it.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from tachikoma.client import PROFILE_VARIABLE
from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.addresses import identity_place
from tachikoma.vocabulary.field_comments import DocumentedFields

__all__ = ["PROFILE_VARIABLE", "Profile", "check_writable", "default_identity_path", "default_profile_path"]


def default_profile_path() -> Path:
    """Return the path of the user's profile; an environment variable may set it."""
    configured = os.environ.get(PROFILE_VARIABLE)
    return Path(configured) if configured else platformdirs.user_config_path("tachikoma") / "profile.json"


def default_identity_path(trust_domain: str) -> Path:
    """Return the folder of the user's identity in a trust domain."""
    return platformdirs.user_data_path("tachikoma") / "identities" / trust_domain


#: The attributes by their names in the file.
_NAMES = {
    "address": "address", "serverName": "server_name", "identity": "identity", "trustDomain": "trust_domain",
}  # fmt: skip
#: Those that each profile has.
_REQUIRED = ("address", "serverName")


# No model of pydantic, whose import would take most of the time of a short command.
@dataclass(frozen=True, slots=True)
class Profile:
    """The address of an orchestrator, and the identity of its client."""

    #: host:port of the orchestrator's gRPC server, or of several with commas. The first one that accepts is used.
    address: str
    #: DNS name in the orchestrator's certificate; no other certificate of the trust domain has it.
    server_name: str
    #: Folder with svid.pem, svid_key.pem and svid_bundle.pem, or unix:///path of the SPIFFE Workload API. None: the
    #: Workload API that SPIFFE_ENDPOINT_SOCKET names.
    identity: str | Path | None = None
    #: Trust domain of the orchestrator; empty if it is the client's own.
    trust_domain: str = ""

    def __post_init__(self) -> None:
        """Make a path of the name of a folder."""
        if self.identity is not None:
            object.__setattr__(self, "identity", identity_place(self.identity))

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
            return cls._of(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ConfigurationError(
                f"there is no client profile at {path}; log in with a token "
                f"(`tachikoma login`), start `tachikoma dev`, or set {PROFILE_VARIABLE} to the profile you were given"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"cannot read the client profile {path}: {error}") from error
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"the client profile {path} is not JSON: {error}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"the client profile {path}: {error}") from None

    @classmethod
    def _of(cls, content: object) -> Profile:
        """Return the profile that a file contains. Raises ValueError if it has a mistake; the message names it."""
        if not isinstance(content, dict):
            raise ValueError("must be a JSON object")
        values: dict[str, str] = {}
        for name, value in content.items():
            if name not in _NAMES:
                raise ValueError(f"{name[:80]!r} is no field; the fields are {', '.join(_NAMES)}")
            if isinstance(value, str):
                values[_NAMES[name]] = value
            elif name != "identity" or value is not None:
                raise ValueError(f"{name}: must be text")
        missing = [name for name in _REQUIRED if _NAMES[name] not in values]
        if missing:
            raise ValueError(f"{' and '.join(missing)}: must be set")
        return cls(**values)

    def save(self, path: Path) -> None:
        """Write the profile, as a whole or not at all.

        Raises:
            ConfigurationError: it cannot be written.
        """
        content = {name: getattr(self, attribute) for name, attribute in _NAMES.items()}
        content["identity"] = None if self.identity is None else str(self.identity)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise ConfigurationError(f"cannot write the client profile {path}: {error.strerror}") from error


def check_writable(path: Path) -> None:
    """Create the folder of a profile and check that the profile can be written there.

    Raises:
        ConfigurationError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # A file is made, since os.access knows neither full nor all kinds of read-only file systems.
        tried = path.with_name(f".{path.name}.{os.getpid()}")
        tried.touch()
        tried.unlink()
    except OSError as error:
        raise ConfigurationError(f"cannot write the client profile {path}: {error.strerror}") from error


Profile.__doc__ = DocumentedFields.of(Profile)
