"""`tachikoma manual`: the manual pages of all commands, from the same source as their help."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import EnumMeta
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any

import typer

from tachikoma.cli.commands.examples import EXAMPLES, paragraphs
from tachikoma.errors import ConfigurationError

__all__ = ["add_to", "pages"]

PROGRAM = "tachikoma"
#: Variables that every command reads, and files.
ENVIRONMENT = (
    ("TACHIKOMA_PROFILE", "Path of the client profile."),
    ("NO_COLOR", "If it is set, output has no colours."),
)
FILES = (("~/.config/tachikoma/profile.json", "The profile: addresses of the orchestrators, and your identity."),)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(manual)


def manual(
    folder: Annotated[Path, typer.Argument(help="Folder for the pages; created if missing.")],
) -> None:
    """Write a manual page for each command into a folder, for man(1).

    Packages install them in /usr/share/man/man1. Yours go to ~/.local/share/man/man1. Then run: man tachikoma-exec
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, page in pages():
            (folder / f"{name}.1").write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write manual pages to {folder}: {error.strerror}") from None


def pages() -> Iterator[tuple[str, str]]:
    """Make the page of each command that this installation can load; (name, text for man(7))."""
    # Imported here, since it imports this module by name.
    from tachikoma.cli.app import app
    from tachikoma.cli.components import COMPONENTS

    group = typer.main.get_command(app)
    yield PROGRAM, _page(PROGRAM, group, [(component.name, component.help) for component in COMPONENTS])
    for component in COMPONENTS:
        try:
            command = component.load()
        except ConfigurationError:
            continue
        yield from _pages_below(component.name, command)


def _pages_below(path: str, command: Any) -> Iterator[tuple[str, str]]:
    below = getattr(command, "commands", {})
    listed = [(f"{path} {name}", paragraphs(found.help)[0]) for name, found in below.items()]
    yield f"{PROGRAM}-{path.replace(' ', '-')}", _page(f"{PROGRAM} {path}", command, listed)
    for name, found in below.items():
        yield from _pages_below(f"{path} {name}", found)


def _page(title: str, command: Any, below: list[tuple[str, str]]) -> str:
    path = title.removeprefix(PROGRAM).strip()
    name = title.replace(" ", "-")
    first, *rest = paragraphs(command.help or "")
    lines = [
        f'.TH "{_text(name.upper())}" 1 "" "{PROGRAM} {_text(version_of("tachikoma-exec"))}" "Tachikoma"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(first.removesuffix('.'))}",
        ".SH SYNOPSIS",
        f".B {_text(title)}",
        *(f".I {_text(word)}" for word in usage(command)),
        ".SH DESCRIPTION",
    ]
    for paragraph in [first, *rest]:
        lines += [".PP", _text(paragraph)]
    lines += _section("ARGUMENTS", [(argument(found), found.help or "") for found in arguments(command)])
    lines += _section("OPTIONS", [(option(found), option_help(found)) for found in options(command)])
    if below:
        lines += _section("COMMANDS", [(f"{PROGRAM} {found}".replace(" ", "-"), text) for found, text in below])
    if examples := EXAMPLES.get(path):
        lines.append(".SH EXAMPLES")
        for purpose, line in examples:
            lines += [".PP", _text(f"{purpose}:")] if purpose else []
            lines += [".PP", ".RS 4", ".nf", _text(line), ".fi", ".RE"]
    lines += _section("ENVIRONMENT", [*ENVIRONMENT, *variables(command)])
    lines += _section("FILES", list(FILES))
    lines += _see_also(path, below)
    return "\n".join(lines) + "\n"


def _see_also(path: str, below: list[tuple[str, str]]) -> list[str]:
    above = f"{PROGRAM}-{path}".rpartition(" ")[0].replace(" ", "-") or PROGRAM if path else ""
    found = [above, *(f"{PROGRAM}-{name.replace(' ', '-')}" for name, _ in below)]
    return [".SH SEE ALSO", ",\n".join(f".BR {_text(name)} (1)" for name in found if name)]


def _section(title: str, entries: list[tuple[str, str]]) -> list[str]:
    """Return a section of terms with their descriptions; empty without terms."""
    lines = [f".SH {title}"] if entries else []
    for term, text in entries:
        lines += [".TP", f"\\fB{_text(term)}\\fR", _text(text) if text else "\\&"]
    return lines


def usage(command: Any) -> list[str]:
    words = ["[OPTIONS]"] if options(command) else []
    words += [argument(found) for found in arguments(command)]
    return [*words, "COMMAND"] if getattr(command, "commands", {}) else words


def arguments(command: Any) -> list[Any]:
    return _shown(command, "argument")


def options(command: Any) -> list[Any]:
    return _shown(command, "option")


def _shown(command: Any, kind: str) -> list[Any]:
    return [found for found in command.params if found.param_type_name == kind and not found.hidden]


def argument(found: Any) -> str:
    name = found.metavar or found.name.upper()
    name += "..." if found.nargs != 1 and not name.endswith("...") else ""
    return name if found.required else f"[{name}]"


def option(found: Any) -> str:
    names = ", ".join([*found.opts, *found.secondary_opts])
    if found.is_flag or found.count:
        return names
    kind = found.type_descriptor.annotation
    choices = "|".join(kind) if isinstance(kind, EnumMeta) else ""
    return f"{names} {found.metavar or choices or found.name.upper()}"


def option_help(found: Any) -> str:
    text = found.help or ""
    if found.multiple and "May be repeated" not in text:
        text += " May be repeated."
    default = found.default
    if (
        found.show_default
        and isinstance(default, str | int | float)
        and not isinstance(default, bool)
        and default != ""
    ):
        text += f" Default: {default}."
    return text.strip()


def variables(command: Any) -> Iterator[tuple[str, str]]:
    known = {name for name, _ in ENVIRONMENT}
    for found in options(command):
        names = [found.envvar] if isinstance(found.envvar, str) else found.envvar or []
        for name in names:
            if name not in known:
                yield name, f"The same as {found.opts[0]}."


def _text(text: str) -> str:
    """Escape a text for man(7)."""
    escaped = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga").replace('"', "\\(dq")
    )
    escaped = re.sub(r"^\.", r"\\&.", escaped)
    return "".join(letter if letter.isascii() else f"\\[u{ord(letter):04X}]" for letter in escaped)
