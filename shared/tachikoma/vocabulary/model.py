"""The base of all values: frozen, strict about unknown names, snake_case in Python and camelCase in JSON."""

from __future__ import annotations

import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

__all__ = ["Model", "describe_validation_error"]


class Model(BaseModel):
    """What all values share: frozen, strict about unknown names, camelCase in JSON."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    def to_json(self) -> str:
        """The value as JSON with the spec's names."""
        return self.model_dump_json(by_alias=True)

    def to_dict(self) -> dict[str, Any]:
        """The value as plain JSON types with the spec's names."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Read what `to_dict` gave. Raises pydantic.ValidationError."""
        return cls.model_validate_json(json.dumps(value))


def describe_validation_error(error: ValidationError) -> str:
    """One line for people: each field that is wrong, and why."""
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {what}" if where else what)
    return "; ".join(parts)
