"""Makes `python.md` from the public names of the package: signatures, docstrings, and the `#:` comments of fields."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import textwrap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import tachikoma
from tachikoma import TachikomaError

PAGE = Path(__file__).parent / "python.md"
TEXT = runpy.run_path(str(Path(__file__).parent / "markdown_text.py"))
plain, wrapped, entry = TEXT["plain"], TEXT["wrapped"], TEXT["entry"]
#: Classes that are shown with their methods.
WITH_METHODS = {"AsyncClient", "AsyncSession", "Profile", "ExecResponse", "BatchUpdate", "BatchRequest"}

HEAD = """\
# Python

After this page you can use every public name of the package `tachikoma`.

<!-- generated from the package by `make docs`; edit its docstrings and `#:` comments instead -->

```python
from tachikoma import Client, ExecRequest

with Client() as client:
    response = client.execute(ExecRequest(agent_id="agent-1", command=["uname", "-r"], timeout="30s"))
    print(response.check().text)
```

`Client` has the methods of `AsyncClient` without `await`, and `Session` those of `AsyncSession`. Without arguments a
client reads the profile that `tachikoma login` or `tachikoma dev` wrote. Names that are not on this page may change in
any release. The values are frozen: a change is a new object.
"""


def groups() -> Iterator[tuple[str, list[str]]]:
    """Yield the public names by what they are for, as the comments in the package group them."""
    source = inspect.getsource(tachikoma).split("_MODULES = {")[1].split("\n}")[0]
    for part in re.split(r"^    # ", source, flags=re.MULTILINE)[1:]:
        title, _, rest = part.partition("\n")
        yield title, re.findall(r'^    "(\w+)":', rest, re.MULTILINE)


class _Bare(ast.NodeTransformer):
    """Replaces `Annotated[X, …]` by `X`: bounds are in the comments."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """Return the first argument of `Annotated`."""
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id == "Annotated" and isinstance(node.slice, ast.Tuple):
            return node.slice.elts[0]
        return node


def members(kind: type) -> Iterator[tuple[str, str, str]]:
    """Yield name, type and `#:` comment of each field or value that a class declares itself."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines = source.splitlines()
    (declared,) = ast.parse(source).body
    assert isinstance(declared, ast.ClassDef)
    for node in declared.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, annotation = node.target.id, ast.unparse(_Bare().visit(node.annotation))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and issubclass(kind, Enum):
            name, annotation = node.targets[0].id, ""
        else:
            continue
        comment: list[str] = []
        above = node.lineno - 2
        while (text := lines[above].strip()).startswith("#:"):
            comment.insert(0, text.removeprefix("#:").strip())
            above -= 1
        if not name.startswith("_") and "ClassVar" not in annotation and name != "model_config":
            yield name, annotation, " ".join(comment)


def documentation(text: str) -> str:
    """Return a docstring as Markdown: its paragraphs, and a list for `Args:`, `Raises:` and the like."""
    parts = []
    for block in re.split(r"\n\s*\n", text.strip()):
        title, _, rest = block.partition("\n")
        if re.fullmatch(r"(Args|Raises|Attributes|Returns|Yields):", title) and rest:
            entries = re.split(r"\n(?=\S)", textwrap.dedent(rest))
            lines = [
                entry(*found.split(":", 1)) if re.match(r"\w+:", found) else wrapped(plain(found)) for found in entries
            ]
            parts.append(f"{title}\n\n" + "".join(lines))
        else:
            parts.append(wrapped(plain(block)))
    return "\n".join(parts)


def signature(name: str, function: Any) -> str:
    """Return a method as its caller writes it, with the types as they are in the source."""
    shown, star = [], False
    found = inspect.signature(function)
    for parameter in list(found.parameters.values())[1:]:
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            star = True
            shown.append("*")
        text = parameter.name + (f": {parameter.annotation}" if parameter.annotation is not parameter.empty else "")
        if parameter.default is not parameter.empty:
            default = parameter.default
            text += f" = {default.value!r}" if isinstance(default, Enum) else f" = {default!r}"
        shown.append(text)
    called = "async " if inspect.iscoroutinefunction(function) else ""
    returned = "" if found.return_annotation in (found.empty, "None") else f" -> {found.return_annotation}"
    line = f"{called}{name}({', '.join(shown)}){returned}"
    if len(line) > TEXT["COLUMNS"]:
        line = f"{called}{name}(\n" + "".join(f"    {part},\n" for part in shown) + f"){returned}"
    return f"```text\n{line}\n```\n"


def methods(kind: type) -> Iterator[str]:
    """Yield a section of each public method with a docstring, in alphabetic order."""
    for name in sorted(dir(kind)):
        found = inspect.getattr_static(kind, name)
        if name.startswith("_") or not inspect.isfunction(found) or not found.__doc__:
            continue
        if not found.__module__.startswith("tachikoma."):
            continue
        yield f"\n#### {kind.__name__}.{name}\n\n{signature(name, found)}\n{documentation(inspect.getdoc(found) or '')}"


def section(name: str) -> str:
    """Return the section of one name."""
    found = getattr(tachikoma, name)
    parts = [f"\n### {name}\n\n"]
    if not isinstance(found, type):
        return "".join([*parts, documentation(inspect.getdoc(found) or "")])
    # Without the fields that `help()` adds: they follow.
    parts.append(documentation(inspect.cleandoc(str(vars(found).get("__doc__") or ""))))
    if issubclass(found, TachikomaError):
        return "".join([*parts, f"\nReason `{found.reason}`, gRPC status `{found.code}`.\n"])
    if entries := [entry(*line[::2], f"`{line[1]}`" if line[1] else "") for line in members(found)]:
        parts += ["\nValues:\n\n" if issubclass(found, Enum) else "\nFields:\n\n", *entries]
    if name in WITH_METHODS:
        parts += methods(found)
    return "".join(parts)


def python_page() -> str:
    """Return the text of the page."""
    assert set(tachikoma.__all__) == {name for _, names in groups() for name in names}
    parts = [HEAD]
    for title, names in groups():
        parts.append(f"\n## {title.capitalize()}\n")
        parts += map(section, names)
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(python_page(), encoding="utf-8")
