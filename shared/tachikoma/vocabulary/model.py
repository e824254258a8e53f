"""The base of all values: frozen, strict about unknown names, snake_case in Python and camelCase in JSON."""

from __future__ import annotations

import json
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.field_comments import DocumentedFields

__all__ = ["OMITTED_IF_NONE", "CallersModel", "Model", "describe_validation_error"]

#: A later field of a signed request or grant. It is not written while it is None, so that older programs, which refuse
#: unknown fields, read the messages that do not need it (docs/decisions/0031).
OMITTED_IF_NONE = Field(exclude_if=lambda value: value is None)


def _own_description(schema: dict[str, Any], kind: type[BaseModel]) -> None:
    """Describe a class in a JSON schema by its own docstring: the schema has the fields."""
    if "description" in schema:
        schema["description"] = cleandoc(str(kind.__doc__))


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
        json_schema_extra=_own_description,
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Add the comments of the fields to the docstring, so that `help()` shows them."""
        if vars(cls).get("__doc__"):
            cls.__doc__ = DocumentedFields.of(cls, Model)

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


class CallersModel(Model):
    """A value that callers of the library write. A wrong one is an `InvalidRequest`, with the names of Python.

    Only the constructor raises it. `model_validate`, which reads messages and files, raises pydantic.ValidationError
    as for every model.
    """

    if not TYPE_CHECKING:

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                described = describe_validation_error(error, type(self))
                raise InvalidRequest(f"invalid {type(self).__name__}: {described}") from None

        # pydantic's own mark: validation of messages does not go through this constructor.
        __init__.__pydantic_base_init__ = True


def describe_validation_error(error: ValidationError, kind: type[BaseModel] | None = None) -> str:
    """Return one line for people that names each wrong field and the reason.

    Args:
        error: the error.
        kind: the model that was built in Python, whose attributes are named; None for the names in JSON.
    """
    names = {} if kind is None else _attributes(kind)
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        # Below the second level are keys and positions of the caller's own values.
        known = [names.get(str(part), str(part)) for part in item["loc"][:2]]
        where = ".".join([*known, *map(str, item["loc"][2:])])
        what = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {what}" if where else what)
    return "; ".join(parts)


def _attributes(kind: type[BaseModel]) -> dict[str, str]:
    """Return the attribute of each name in JSON, of a model and of the models that its fields contain."""
    names = {}
    for name, field in kind.model_fields.items():
        names[field.alias or name] = name
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                names |= _attributes(part)
    return names
