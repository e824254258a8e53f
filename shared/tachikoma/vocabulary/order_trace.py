"""The trace that a signed order names."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tachikoma.vocabulary.types import Milliseconds

__all__ = ["OrderTrace"]


class OrderTrace(BaseModel):
    """The trace of an order. An agent adds its spans to it; nothing else depends on it."""

    # A newer writer may add fields that this version ignores.
    model_config = ConfigDict(frozen=True, extra="ignore")

    #: The `traceparent` of the agent's spans.
    parent: str
    #: Time of the signature, in milliseconds since the epoch. The order waits from then on.
    signed_ms: Milliseconds
