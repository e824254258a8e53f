"""Makes `cli.md`: each command with its arguments, options and examples, from the same source as its help."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tachikoma.cli.commands import manual
from tachikoma.cli.commands.examples import EXAMPLES, paragraphs
from tachikoma.cli.components import COMPONENTS

PAGE = Path(__file__).parent / "cli.md"
TEXT = runpy.run_path(str(Path(__file__).parent / "markdown_text.py"))
plain, wrapped, entry = TEXT["plain"], TEXT["wrapped"], TEXT["entry"]

HEAD = """\
# Command line

After this page you know every command of `tachikoma`, its options and their defaults.

<!-- generated from the commands by `make docs`; edit their help and `shared/cli/commands/examples.py` instead -->

`tachikoma COMMAND --help` prints the same, and `tachikoma manual FOLDER` writes it as manual pages. Options that are
also settings are explained in [settings.md](settings.md), the output of `-o json` in [json.md](json.md). Put `--`
before a command that has options of its own.

| command | does |
|---|---|
"""


def commands() -> Iterator[tuple[str, Any]]:
    """Yield each command with the words that call it, those of a group after the group."""

    def below(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield path, command
        for name, found in getattr(command, "commands", {}).items():
            yield from below(f"{path} {name}", found)

    for component in sorted(COMPONENTS, key=lambda component: component.name):
        yield from below(component.name, component.load())


def section(path: str, command: Any) -> str:
    """Return the section of one command."""
    first, *rest = paragraphs(command.help or "")
    lines = [f"\n## tachikoma {path}\n\n"]
    lines += ["\n".join(wrapped(plain(text)) for text in (first, *rest))]
    lines += [f"\n```text\n{' '.join(['tachikoma', path, *manual.usage(command)])}\n```\n"]
    entries = [entry(manual.argument(found), found.help or "") for found in manual.arguments(command)]
    for found in manual.options(command):
        variables = [found.envvar] if isinstance(found.envvar, str) else found.envvar or []
        setting = f" Setting: `{variables[0]}`." if variables else ""
        entries.append(entry(manual.option(found), manual.option_help(found) + setting))
    for name, found in getattr(command, "commands", {}).items():
        entries.append(entry(f"{path} {name}", paragraphs(found.help or "")[0]))
    if entries:
        lines += ["\n", *entries]
    if examples := EXAMPLES.get(path):
        shown = "\n".join(f"# {purpose}\n$ {line}" if purpose else f"$ {line}" for purpose, line in examples)
        lines += [f"\n```console\n{shown}\n```\n"]
    return "".join(lines)


def cli_page() -> str:
    """Return the text of the page."""
    found = list(commands())
    rows = [
        f"| [`{path}`](#tachikoma-{path.replace(' ', '-')}) | {plain(paragraphs(command.help or '')[0])} |\n"
        for path, command in found
    ]
    return HEAD + "".join(rows) + "".join(section(path, command) for path, command in found)


if __name__ == "__main__":
    PAGE.write_text(cli_page(), encoding="utf-8")
