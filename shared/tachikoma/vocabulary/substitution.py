"""Variables of a batch's command, whose values differ between targets."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["substituted"]

#: A variable of a command, or its doubled braces, which stand for the text itself.
_VARIABLE = re.compile(r"\{(\{)?(agent|label:[^{}\s]{1,128})\}(?(1)\})")


def substituted(text: str, agent: str, labels: Mapping[str, str]) -> str:
    """Return an element of an argv with `{agent}` and `{label:NAME}` replaced; `{{agent}}` is the text `{agent}`.

    Raises:
        ValueError: the agent has no such label.
    """

    def value(match: re.Match[str]) -> str:
        doubled, name = match.groups()
        if doubled:
            return f"{{{name}}}"
        if name == "agent":
            return agent
        label = name.removeprefix("label:")
        if label not in labels:
            raise ValueError(f"the agent has no label {label!r}, which the command contains")
        return labels[label]

    return _VARIABLE.sub(value, text)
