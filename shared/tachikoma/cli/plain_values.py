"""Values of options and arguments that need no conversion: text, and names of choices.

typer converts every value by pydantic, whose import takes longer than most commands. Text stays as it is and a choice
is looked up here. Any other value, and each wrong one, goes to typer, which reports what is wrong.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

__all__ = ["keep_plain_values"]


def keep_plain_values(parameter: Any) -> None:
    """Convert the plain values of a parameter here. A typer that converts otherwise does all of it itself."""
    # Not in each version of typer.
    if getattr(parameter, "_runtime_param", parameter) is None:
        parameter._runtime_param = _Values(parameter)


class _Values:
    """The conversion of the values of one parameter, with the method that typer calls."""

    def __init__(self, parameter: Any) -> None:
        self._parameter = parameter
        self._kind: Any = parameter.type_descriptor.annotation

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value of a parameter. Raises typer's own errors about a wrong one."""
        several = self._parameter.multiple or self._parameter.nargs == -1
        if value is None:
            return () if several else None
        if self._kind is str and isinstance(value, str):
            return value
        if self._kind == list[str] and isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
            return list(value)
        if isinstance(self._kind, type) and issubclass(self._kind, Enum):
            for member in self._kind:
                if value is member or (type(value) is str and value == member.value):
                    return member
        self._parameter._runtime_param = None
        return self._parameter.get_runtime_param().coerce(value, param=param, ctx=ctx)
