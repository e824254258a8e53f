"""Validation of JSON documents against their schemas."""

from __future__ import annotations

from typing import Any


def violations(schema: dict[str, Any], content: Any) -> list[str]:
    """Return how a document breaks its schema, formats included; empty when it matches."""
    # Imported by the tests that need it alone: with the libraries of developers it compiles 38 grammars, for seconds,
    # in every process that collects tests.
    from jsonschema import Draft202012Validator

    checker = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return [error.message for error in checker.iter_errors(content)]
