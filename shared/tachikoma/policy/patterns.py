"""The patterns of policy files. They match whole texts, without backtracking, in linear time.

In an element pattern, `*` matches any characters but `/`, `**` any characters, `[0-9a-f]` one character of a set, and
`{a,b}` either alternative. Wildcards never match the path segment `..`. They match a text that begins with `-` only if
the pattern does, so no argument turns into an option.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

from tachikoma.policy.effort import Effort
from tachikoma.vocabulary.pairs import parse_pair

__all__ = ["AgentSelector", "Pattern", "PatternError"]

#: Largest number of characters of a pattern.
MAX_PATTERN = 4096
#: Largest number of alternatives that the braces of a pattern may make.
MAX_ALTERNATIVES = 256

#: Tokens of the two wildcards.
_STAR = "*"
_GLOBSTAR = "**"
#: Replaces each brace, so that characters on both sides of it are not read as one token: `*{,x}*` is not `**`.
_SEAM = "\0"
#: Separator of the labels of a selector.
_OUTSIDE_BRACES = re.compile(r",(?![^{]*\})")
#: Characters at which a path may begin or end inside an argument, as in `--root=../x`.
_SEPARATORS = re.compile(r"[/=:,;\s]")


class PatternError(ValueError):
    """A pattern that cannot be understood; the message names the mistake."""


@dataclass(frozen=True, slots=True)
class _Set:
    """A set of characters: one of them matches."""

    #: First and last character of each range.
    ranges: tuple[tuple[str, str], ...]

    def __contains__(self, character: str) -> bool:
        return any(low <= character <= high for low, high in self.ranges)


#: A character, a set, or one of the two stars. A literal star is written [*], so the string "*" is always the wildcard.
_Token = str | _Set


def _expand_braces(text: str) -> list[str]:
    """Expand `a{b,c}d` into `abd` and `acd`, with a seam at each brace; braces do not nest."""
    expanded = [""]
    at = 0
    while (begin := text.find("{", at)) >= 0:
        end = text.find("}", begin)
        if end < 0 or "{" in text[begin + 1 : end] or "}" in text[at:begin]:
            raise PatternError(f"{text[:100]!r}: braces must be closed and must not nest")
        choices = text[begin + 1 : end].split(",")
        if len(expanded) * len(choices) > MAX_ALTERNATIVES:
            raise PatternError(f"{text[:100]!r}: more than {MAX_ALTERNATIVES} alternatives")
        expanded = [f"{head}{text[at:begin]}{_SEAM}{choice}{_SEAM}" for head in expanded for choice in choices]
        at = end + 1
    if "}" in text[at:]:
        raise PatternError(f"{text[:100]!r}: '}}' without '{{'")
    return [head + text[at:] for head in expanded]


def _tokens(text: str) -> tuple[_Token, ...]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        character = text[at]
        if text.startswith("***", at):
            raise PatternError(f"{text!r}: '***' has no meaning; write '*' or '**'")
        if text.startswith("**", at):
            tokens.append(_GLOBSTAR)
            at += 2
        elif character == _SEAM:
            at += 1
        elif character == "*":
            tokens.append(_STAR)
            at += 1
        elif character == "[":
            end = text.find("]", at + 2)
            if end < 0:
                raise PatternError(f"{text!r}: '[' is not closed")
            tokens.append(_set(text[at + 1 : end], text))
            at = end + 1
        else:
            tokens.append(character)
            at += 1
    return tuple(tokens)


def _set(body: str, text: str) -> _Set:
    if body[0] in "!^":
        raise PatternError(f"{text!r}: negated sets are not supported; name what is allowed")
    ranges: list[tuple[str, str]] = []
    at = 0
    while at < len(body):
        if at + 2 < len(body) and body[at + 1] == "-":
            low, high = body[at], body[at + 2]
            if low > high:
                raise PatternError(f"{text!r}: the range {low}-{high} is backwards")
            ranges.append((low, high))
            at += 3
        else:
            ranges.append((body[at], body[at]))
            at += 1
    return _Set(tuple(ranges))


def _is_character(token: _Token) -> bool:
    return isinstance(token, str) and token not in (_STAR, _GLOBSTAR)


def _matches(tokens: tuple[_Token, ...], text: str, effort: Effort | None) -> bool:
    """Match a text by following all positions of the pattern at once: at most len(text) x len(tokens) steps."""
    if tokens == (_GLOBSTAR,):
        return True
    if tokens == (_STAR,):
        return "/" not in text
    end = len(tokens)

    def closure(position: int, into: set[int]) -> None:
        # A star may match the empty text, so the position after it is reached too.
        while True:
            into.add(position)
            if position == end or tokens[position] not in (_STAR, _GLOBSTAR):
                return
            position += 1

    here: set[int] = set()
    closure(0, here)
    for character in text:
        if effort is not None:
            effort.spend(len(here))
        following: set[int] = set()
        for position in here:
            if position == end:
                continue
            token = tokens[position]
            if token is _GLOBSTAR or (token is _STAR and character != "/"):
                closure(position, following)
            elif token is _STAR:
                continue
            elif (isinstance(token, _Set) and character in token) or token == character:
                closure(position + 1, following)
        if not following:
            return False
        here = following
    return end in here


class Pattern:
    """A pattern for one text: an argument, a path, a name, a SPIFFE ID."""

    __slots__ = ("_alternatives", "_literals", "text")

    def __init__(self, text: str) -> None:
        """Compile a pattern.

        Raises:
            PatternError: the pattern cannot be understood.
        """
        if len(text) > MAX_PATTERN:
            raise PatternError(f"{text[:100]!r}… is longer than {MAX_PATTERN} characters")
        if _SEAM in text:
            raise PatternError(f"{text[:100]!r} contains a NUL character")
        self.text = text
        compiled = [_tokens(item) for item in _expand_braces(text)]
        literals: list[str] = []
        #: For each alternative: its text before the first wildcard or set, and the tokens after that text.
        alternatives: list[tuple[str, tuple[_Token, ...]]] = []
        for tokens in compiled:
            prefix = "".join(takewhile(_is_character, tokens))  # type: ignore[arg-type]
            if len(prefix) == len(tokens):
                literals.append(prefix)
            else:
                alternatives.append((prefix, tokens[len(prefix) :]))
        self._literals = frozenset(literals)
        self._alternatives = tuple(alternatives)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    @property
    def literals(self) -> frozenset[str]:
        """The texts that the pattern matches, if it has no wildcard; else empty."""
        return frozenset() if self._alternatives else self._literals

    @property
    def prefix(self) -> str:
        """The text before the first wildcard; the shortest one if there are alternatives."""
        return min((*self._literals, *(prefix for prefix, _ in self._alternatives)), key=len)

    def matches(self, text: str, effort: Effort | None = None) -> bool:
        """Return True if the pattern matches the whole text.

        Raises:
            TooMuchWork: more steps are needed than are left.
        """
        if text in self._literals:
            return True
        return any(self._matching(text, effort))

    def matches_any(self, text: str, effort: Effort | None = None) -> bool:
        """Return True if the pattern matches the whole text, where wildcards also match `..` and a leading `-`.

        This is for what is denied. Raises as `matches` does.
        """
        if effort is not None:
            effort.spend(1)
        return text in self._literals or any(
            text.startswith(prefix) and _matches(tokens, text[len(prefix) :], effort)
            for prefix, tokens in self._alternatives
        )

    def is_below(self, folder: str) -> bool:
        """Return True if everything, or one thing, that the pattern matches is below a folder."""
        above = folder.rstrip("/") + "/"
        prefixes = (*self._literals, *(prefix for prefix, _ in self._alternatives))
        return any(prefix.startswith(above) and prefix != above for prefix in prefixes)

    def _matching(self, text: str, effort: Effort | None = None) -> Iterator[str]:
        """Yield the prefix of each alternative with wildcards that matches a text; `/` for an empty prefix."""
        if not self._alternatives or (".." in text and ".." in _SEPARATORS.split(text)):
            return
        option = text.startswith("-")
        for prefix, tokens in self._alternatives:
            if option and not prefix.startswith("-"):
                continue
            if text.startswith(prefix) and _matches(tokens, text[len(prefix) :], effort):
                yield prefix or "/"

    def names(self, text: str) -> bool:
        """Return True if the pattern matches the text without a wildcard."""
        return text in self._literals

    def anchor(self, path: str, effort: Effort | None = None) -> str | None:
        """Return the folder of a path that the pattern names without wildcards.

        Returns:
            The whole path, or the folder before the first wildcard. None if the pattern does not match the path.
        """
        if self.names(path):
            return path
        anchors = [prefix.rpartition("/")[0] or "/" for prefix in self._matching(path, effort)]
        return max(anchors, key=len, default=None)


class AgentSelector:
    """A pattern for agents: for their ids, or `name=value` for their labels, separated by commas."""

    __slots__ = ("_id", "_labels", "text")

    def __init__(self, text: str) -> None:
        """Compile a selector.

        Raises:
            PatternError: the selector cannot be understood.
        """
        self.text = text
        self._id: Pattern | None = None
        self._labels: tuple[tuple[str, Pattern], ...] = ()
        if "=" not in text:
            self._id = Pattern(text)
            return
        labels = []
        for part in _OUTSIDE_BRACES.split(text):
            try:
                name, value = parse_pair(part.strip())
            except ValueError:
                name = value = ""
            if not name or any(character in "*[]{}" for character in name):
                raise PatternError(f"{text!r}: write labels as name=value, with wildcards only in the value")
            labels.append((name, Pattern(value)))
        self._labels = tuple(labels)

    def matches(self, agent: str, labels: Mapping[str, str], effort: Effort | None = None) -> bool:
        """Return True if the selector matches an agent with this id and these labels. Raises as a pattern does."""
        if self._id is not None:
            return self._id.matches(agent, effort)
        return all(name in labels and pattern.matches(labels[name], effort) for name, pattern in self._labels)
