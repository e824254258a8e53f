"""The type of settings that name a source of an identity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import AfterValidator

from tachikoma.identity.open import identity_place

__all__ = ["IdentityPlace"]

#: A setting for the source of an identity: a folder, or `unix:///path` of the Workload API.
IdentityPlace: TypeAlias = Annotated[str | Path, AfterValidator(identity_place)]
