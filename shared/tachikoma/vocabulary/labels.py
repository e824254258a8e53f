"""Labels that operators bind to agents, and changes to them as people write them: `role=db`, `site-`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field

from tachikoma.vocabulary.pairs import parse_pair

__all__ = ["LABEL_NAME", "MAX_LABELS", "BoundLabels", "LabelChange"]

#: Largest number of labels of an agent.
MAX_LABELS = 64

#: Regular expression of the name of a label.
LABEL_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?"
_NAME = re.compile(LABEL_NAME)
_VALUE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{0,128}")


def _checked(labels: dict[str, str]) -> dict[str, str]:
    for name, value in labels.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name[:40]!r} is no name of a label: at most 128 letters, digits, and . _ / - inside")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the value of the label {name!r} is longer than 128 characters or has control characters")
    return labels


#: Labels of one agent, by name. Commands contain the values, so they have no control characters.
BoundLabels = Annotated[dict[str, str], Field(max_length=MAX_LABELS), AfterValidator(_checked)]


class LabelChange(NamedTuple):
    """A change to the labels of one agent."""

    #: Labels with their new values.
    bind: dict[str, str]
    #: Names of labels that are removed.
    remove: tuple[str, ...]

    @classmethod
    def parse(cls, texts: Iterable[str]) -> LabelChange:
        """Read `NAME=VALUE`, which binds a label, and `NAME-`, which removes it.

        Raises:
            ValueError: a text is neither, or a label is named twice.
        """
        bind: dict[str, str] = {}
        remove: list[str] = []
        for text in texts:
            if "=" in text:
                name, value = parse_pair(text)
            elif text.endswith("-") and len(text) > 1:
                name, value = text[:-1], None
            else:
                raise ValueError(f"{text[:80]!r} is neither NAME=VALUE to bind a label nor NAME- to remove one")
            if name in bind or name in remove:
                raise ValueError(f"the label {name[:80]!r} is named twice")
            if value is None:
                remove.append(name)
            else:
                bind[name] = value
        return cls(bind, tuple(remove))

    def applied_to(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Return labels after the change, sorted by name."""
        changed = {**labels, **self.bind}
        return {name: changed[name] for name in sorted(changed) if name not in self.remove}

    def words(self) -> str:
        """Return the change as people write it."""
        return " ".join(
            [*(f"{name}={value}" for name, value in self.bind.items()), *(f"{name}-" for name in self.remove)]
        )
