"""Validation of JSON documents against their schemas."""

from __future__ import annotations

import json
from typing import Any

from tachikoma.cli.documents import DOCUMENTS


def violations(schema: dict[str, Any], content: Any) -> list[str]:
    """Return how a document breaks its schema, formats included; empty when it matches."""
    # Imported by the tests that need it alone: with the libraries of developers it compiles 38 grammars, for seconds,
    # in every process that collects tests.
    from jsonschema import Draft202012Validator

    checker = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return [error.message for error in checker.iter_errors(content)]


def checked(command: str, output: bytes | str) -> Any:
    """Return a document that a command printed, after checking it against the command's schema."""
    (document,) = (document for document in DOCUMENTS if document.command == command)
    content = json.loads(output)
    assert violations(document.schema(), content) == []
    return content
