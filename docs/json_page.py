"""Makes `json.md` and `json.schema.json` from `tachikoma.cli.documents`: each command's document, and its fields."""

from __future__ import annotations

import ast
import inspect
import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from tachikoma.cli.documents import DOCUMENTS, Document
from tachikoma.vocabulary.field_comments import comments
from tachikoma.vocabulary.model import Model

FOLDER = Path(__file__).parent
PAGE = FOLDER / "json.md"
SCHEMA = FOLDER / "json.schema.json"

HEAD = """\
# JSON

After this page you can read the output of every command in a program.

<!-- generated from tachikoma.cli.documents by `make docs`; edit the `#:` comments of the classes instead -->

```console
$ tachikoma ps -a -o json | jq -r '.[] | select(.state == "FAILED") | .id'
$ tachikoma ps -a -o name --state QUEUED | xargs -r tachikoma cancel
$ tachikoma exec -n -o json agent-1 uname -r | jq -r .stdoutText
```

| `-o` | standard output |
|---|---|
| `text` | for people; it may change in any release |
| `json` | one document, as in the table below; a stream has one object a line |
| `jsonl` | one value a line: each element of a list, or the only value |
| `name` | ids or names, one a line; commands whose output has none refuse it |

With `json` and `jsonl`, the error that ends a command is one JSON object in the last line of standard error
([ErrorDocument](#errordocument)). `cancel` prints one such line for each execution that could not be cancelled. These
values of `reason` come from the command line itself: `USAGE` (a wrong command line), `OUTPUT_FAILED` (output cannot be
written), `ABORTED` (a refused confirmation), `LEFT` (a second Ctrl-C) and `OUTPUT_UNSAVED` (`run --output-dir` lacks
output of an execution; one line for each). The exit code is the same for every value of `-o`. With `--watch`, `json`
prints the same as `jsonl`.

The same things have the same names and forms everywhere. Names are camelCase. Times are RFC 3339 in UTC. Durations are
text such as `"1m30s"`. Bytes are base64. An argv is the list of a program and its arguments. New fields may be added
in any release, so ignore those that you do not know. [json.schema.json](json.schema.json) has every class below as JSON
Schema 2020-12, in `$defs`.

## Documents

| command | document |
|---|---|
"""


def classes() -> list[type]:
    """Return the classes of all documents and the classes of their fields, sorted by name."""
    found: dict[str, type] = {}

    def add(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, Model) and kind.__name__ not in found:
            found[kind.__name__] = kind
            for field in kind.model_fields.values():
                add(field.annotation)
        elif isinstance(kind, type) and issubclass(kind, StrEnum):
            found[kind.__name__] = kind
        for part in getattr(kind, "__args__", ()):
            add(part)

    for document in DOCUMENTS:
        add(document.kind)
    return [found[name] for name in sorted(found)]


def models() -> list[type[Model]]:
    """Return the classes that are JSON objects."""
    return [kind for kind in classes() if issubclass(kind, Model)]


def schema_text() -> str:
    """Return the schema file."""
    _, definitions = models_json_schema(
        [(kind, "serialization") for kind in models()], by_alias=True, ref_template="#/$defs/{model}"
    )
    content = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Documents of the command tachikoma",
        **definitions,
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _name(kind: Any) -> str:
    arguments = getattr(kind, "__args__", ())
    if arguments and not hasattr(kind, "__metadata__"):
        return f"array of {_name(arguments[0])}"
    name = getattr(kind, "__name__", "")
    return f"[{name}](#{name.lower()})" if isinstance(kind, type) and issubclass(kind, Model) else "time"


def _row(document: Document) -> str:
    name = _name(document.kind)
    return f"| `{document.command}` | {name}{', one a line' if document.lines else ''} |\n"


def _type_of(schema: dict[str, Any]) -> str:
    """Return the type of a field for people."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if name in {kind.__name__ for kind in classes()} else name
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type_of(part) for part in schema["anyOf"]))
    if "allOf" in schema:
        return _type_of(schema["allOf"][0])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"array of {_type_of(schema.get('items', {}))}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"object of {_type_of(values)}" if isinstance(values, dict) and values else "object"
    if schema.get("format") == "date-time":
        return "time"
    if schema.get("contentEncoding") == "base64":
        return "base64"
    if isinstance(kind, list):
        return "duration"
    return str(kind)


def _comments(kind: type[Model]) -> dict[str, str]:
    """Return the comment of each field, also of those that a base class declares."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if isinstance(base, type) and issubclass(base, Model) and base is not Model:
            found |= comments(base)
    return found


def _values(kind: type[StrEnum]) -> str:
    """Return the section of an enumeration: each value with its comment."""
    source = inspect.getsource(kind).splitlines()
    lines = [f"\n## {kind.__name__}\n\n{_in_json(inspect.getdoc(kind) or '').splitlines()[0]}\n\n"]
    for node in ast.walk(ast.parse("\n".join(source))):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            comment = source[node.lineno - 2].strip()
            about = f": {_in_json(comment.removeprefix('#: '))}" if comment.startswith("#: ") else ""
            lines.append(_wrapped(f"- **`{kind[node.targets[0].id].value}`**{about}"))
    return "".join(lines)


def _in_json(text: str) -> str:
    """Return a comment with the names of JSON: null where Python has None, and camelCase names of fields."""
    names = {field: info.alias or field for kind in models() for field, info in kind.model_fields.items()}
    return re.sub(r"`([a-z_]+)`", lambda match: f"`{names.get(match[1], match[1])}`", text.replace("None", "null"))


def _section(kind: type) -> str:
    return _values(kind) if issubclass(kind, StrEnum) else _fields(kind)


def _fields(kind: type[Model]) -> str:
    schema = TypeAdapter(kind).json_schema(mode="serialization", by_alias=True)
    properties = schema.get("properties") or schema["$defs"][kind.__name__]["properties"]
    described = _comments(kind)
    first = _in_json((kind.__doc__ or "").strip().splitlines()[0])
    lines = [f"\n## {kind.__name__}\n\n{first}\n\n"]
    for field, info in kind.model_fields.items():
        name = info.serialization_alias or info.alias or field
        comment = f": {_in_json(described[field])}" if described.get(field) else ""
        lines.append(_wrapped(f"- **`{name}`** ({_type_of(properties[name])}){comment}"))
    return "".join(lines)


def _wrapped(text: str) -> str:
    """Return a list entry in lines of at most 120 columns."""
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > 120:
            lines.append(line)
            line = "  " + word
        else:
            line = f"{line} {word}" if line else word
    return "\n".join([*lines, line]) + "\n"


def json_page() -> str:
    """Return the text of the page."""
    return HEAD + "".join(map(_row, DOCUMENTS)) + "".join(map(_section, classes()))


if __name__ == "__main__":
    PAGE.write_text(json_page(), encoding="utf-8")
    SCHEMA.write_text(schema_text(), encoding="utf-8")
