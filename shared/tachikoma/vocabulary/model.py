"""The base of all values: frozen, strict about unknown names, snake_case in Python and camelCase in JSON."""

from __future__ import annotations

import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

__all__ = ["Model", "describe_validation_error"]


class Model(BaseModel):
    """A frozen value that rejects unknown fields, and has camelCase names in JSON."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        # Most processes use a few of the models. The schema of each is built when it is first used.
        defer_build=True,
    )

    def to_json(self) -> str:
        """Return the value as JSON with the names of the specification."""
        return self.model_dump_json(by_alias=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the value as plain JSON types with the names of the specification."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Build a value from the result of `to_dict`. Raises pydantic.ValidationError."""
        return cls.model_validate_json(json.dumps(value))


def describe_validation_error(error: ValidationError) -> str:
    """Return one line for people that names each wrong field and the reason."""
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {what}" if where else what)
    return "; ".join(parts)
