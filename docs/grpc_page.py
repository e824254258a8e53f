"""Makes `grpc.md` from the comments of the API definition."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tachikoma.exec import v1

PAGE = Path(__file__).parent / "grpc.md"
DEFINITION = Path(v1.__path__[0]) / "remote_execution.proto"
TEXT = runpy.run_path(str(Path(__file__).parent / "markdown_text.py"))
plain, wrapped, entry = TEXT["plain"], TEXT["wrapped"], TEXT["entry"]

HEAD = """\
# gRPC

After this page you can call Tachikoma from any language that has gRPC.

<!-- generated from remote_execution.proto by `make docs`; edit its comments instead -->

The definition is `shared/tachikoma/exec/v1/remote_execution.proto`, which the package contains too. Connect with TLS
and a client certificate: an X.509-SVID ([identity.md](identity.md)). Send the orchestrator's DNS name as the server
name, and verify its certificate with the bundle of its trust domain. Server reflection and the health service are
available.

An error is a gRPC status code with `google.rpc.ErrorInfo`, whose `reason` is stable, and with `RetryInfo` if a retry
can help. [python.md](python.md#errors) lists reasons and codes. Every request with an id can be repeated with the same
id.
"""


@dataclass
class Item:
    """A service, message or enum of the definition, or a line of one: its comment, text, and lines."""

    kind: str
    name: str
    comment: str
    text: str = ""
    items: list[Item] = field(default_factory=list)


def parse(source: str) -> Iterator[Item]:
    """Yield the services, messages and enums in their order; those within others are lines of theirs."""
    comment: list[str] = []
    open_items: list[Item] = []
    for line in source.splitlines():
        text = line.strip()
        if text.startswith("//"):
            comment.append(text.removeprefix("//").strip())
            continue
        if opened := re.match(r"(service|message|enum|oneof) (\w+) \{", text):
            item = Item(opened[1], opened[2], " ".join(comment))
            if open_items:
                open_items[-1].items.append(item)
            if not text.endswith("}"):
                open_items.append(item)
            elif not open_items:
                yield item
        elif text == "}" and open_items:
            closed = open_items.pop()
            if not open_items:
                yield closed
        elif called := re.match(r"rpc (\w+)\((.+)\) returns \((.+)\)", text):
            open_items[-1].items.append(Item("rpc", called[1], " ".join(comment), f"{called[2]} → {called[3]}"))
        elif declared := re.match(r"((?:optional |repeated )?[\w.<>, ]+?) (\w+) = (\d+)", text):
            open_items[-1].items.append(Item("field", declared[2], " ".join(comment), declared[1]))
        elif value := re.match(r"(\w+) = \d+", text):
            open_items[-1].items.append(Item("value", value[1], " ".join(comment)))
        comment = []


def type_of(text: str, known: set[str]) -> str:
    """Return the type of a field, or the types of an RPC, with links to messages and enums."""

    def link(word: re.Match[str]) -> str:
        return f"[{word[0]}](#{word[0].lower()})" if word[0] in known else word[0]

    return re.sub(r"[\w.]+", link, text.replace("<", "\\<"))


def lines_of(item: Item, known: set[str]) -> Iterator[str]:
    """Yield the entries of a message or enum; fields of a oneof follow it."""
    for line in item.items:
        if line.kind == "oneof":
            yield entry(line.name, f"{line.comment} One of the following.".strip())
            yield from lines_of(line, known)
        elif line.kind == "rpc":
            yield entry(line.name, line.comment.removeprefix(f"{line.name} "), type_of(line.text, known))
        else:
            yield entry(line.name, line.comment, type_of(line.text, known) if line.text else "")


def grpc_page() -> str:
    """Return the text of the page."""
    items = list(parse(DEFINITION.read_text(encoding="utf-8")))
    known = {item.name for item in items}
    parts = [HEAD]
    for item in items:
        parts += [f"\n## {item.name}\n\n", wrapped(plain(item.comment)), "\n" if item.items else ""]
        parts += lines_of(item, known)
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(grpc_page(), encoding="utf-8")
