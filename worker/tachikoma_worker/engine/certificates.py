"""The check of an agent's identity at the start of its worker."""

from __future__ import annotations

from tachikoma.config import error_reporting
from tachikoma.errors import ConfigurationError
from tachikoma.identity.spiffe import InvalidIdentity, agent_id
from tachikoma.identity.svid import SvidSource
from tachikoma_worker.settings import WorkerSettings

__all__ = ["check_identity"]


def check_identity(identity: SvidSource, settings: WorkerSettings, *, remedy: str) -> None:
    """Check that an identity is valid and is that of the agent in the settings.

    Raises:
        ConfigurationError: the identity is invalid, with `remedy` in the message, or is that of another agent.
    """
    svid = identity.current()
    try:
        svid.verify()
    except InvalidIdentity as error:
        raise ConfigurationError(f"the agent's identity cannot be used: {error}{remedy}") from error
    expected = agent_id(svid.spiffe_id.trust_domain, settings.agent_id)
    if svid.spiffe_id != expected:
        raise ConfigurationError(f"the identity in {identity.place} is {svid.spiffe_id}, not {expected}")
    error_reporting.identify(svid.spiffe_id.trust_domain)
