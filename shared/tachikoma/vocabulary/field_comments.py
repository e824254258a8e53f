"""Documentation of fields: the `#:` comments of a class, read from its source at the first use."""

from __future__ import annotations

from typing import SupportsIndex

__all__ = ["DocumentedFields", "comments"]


class DocumentedFields(str):
    """The docstring of a class; `help()` shows the comments of its fields after it.

    `help()` passes each docstring through `inspect.cleandoc`, which calls `expandtabs` first. So the source is read
    only when the documentation is shown.
    """

    _owner: type
    _base: type

    @classmethod
    def of(cls, owner: type, base: type = object) -> DocumentedFields:
        """Make the docstring of a class.

        Args:
            owner: the class.
            base: the class below which fields are inherited.
        """
        docs = cls(owner.__doc__ or "")
        docs._owner, docs._base = owner, base
        return docs

    def expandtabs(self, tabsize: SupportsIndex = 8) -> str:
        """Return the docstring and the fields."""
        found: dict[str, str] = {}
        for kind in reversed(self._owner.__mro__):
            if issubclass(kind, self._base) and kind is not self._base:
                found |= comments(kind)
        text = super().expandtabs(tabsize)
        if not found:
            return text
        # The first line of a docstring has no margin, all others have that of the class.
        margin = " " * 4
        lines = [f"{margin * 2}{name}: {about}" if about else f"{margin * 2}{name}" for name, about in found.items()]
        return "\n".join([text.rstrip(), "", f"{margin}Attributes:", *lines])


def comments(kind: type) -> dict[str, str]:
    """Return the `#:` comment of each field that a class itself declares; empty for a field without one.

    Without the source of the class there are no fields.
    """
    # Imported here: few programs read the documentation.
    import ast
    import inspect

    try:
        source = inspect.getsource(inspect.getmodule(kind) or kind)
    except (OSError, TypeError):
        return {}
    lines = source.splitlines()
    declared = [
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    ]
    found = {}
    for node in declared[0].body if declared else ():
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and not node.target.id.startswith("_")
            and not ast.unparse(node.annotation).startswith("ClassVar")
        ):
            block: list[str] = []
            above = node.lineno - 2
            while (text := lines[above].strip()).startswith("#:"):
                block.insert(0, text.removeprefix("#:").strip())
                above -= 1
            found[node.target.id] = " ".join(block)
    return found
