"""People as operators see them: enrolment and revocation."""

from __future__ import annotations

from pydantic import Field

from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.types import Timestamp

__all__ = ["UserEnrolment", "UserInfo"]


class UserInfo(Model):
    """A person with an identity from a token, or a revoked one."""

    #: Name of the person: the last part of spiffe://<trust domain>/user/<name>.
    name: str
    #: Time of the last login with a token; None if there was none since the revocation.
    joined: Timestamp | None = None
    #: SPIFFE ID of the operator who created that token; empty for none.
    enrolled_by: str = ""
    #: Address from which the person logged in; empty for none.
    address: str = ""
    #: True if every certificate of the person is refused.
    revoked: bool = False
    #: SPIFFE ID of the operator who revoked the person; empty if not revoked.
    revoked_by: str = ""
    #: The operator's reason; empty if not revoked.
    revoke_reason: str = ""


class UserEnrolment(Model):
    """A token with which one person may log in."""

    #: Name of the person.
    name: str
    #: The token for `tachikoma login`. Any holder may log in with it, once. `repr()` leaves it out.
    token: str = Field(repr=False)
    #: Time at which the token expires.
    expires: Timestamp
