"""The patterns of policy files. They match whole texts, without backtracking, in linear time.

In an element pattern, `*` matches any characters but `/`, `**` any characters, `[0-9a-f]` one character of a set, and
`{a,b}` either alternative. Wildcards never match the path segment `..`. They match a text that begins with `-` only if
the pattern does, so no argument turns into an option.

A command pattern is a line that is split into words as a shell does: one pattern for each argv element. The first
element is an absolute path. A final `...` permits any further arguments. An argument in angle brackets, `<*>`, is a
secret, which is masked wherever the command is stored or shown; `<...>` makes all further arguments secrets.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from tachikoma.vocabulary.pairs import parse_pair

__all__ = ["AgentSelector", "CommandPattern", "CommandPatterns", "Pattern", "PatternError"]

#: Most characters of a pattern.
MAX_PATTERN = 4096
#: Most alternatives that the braces of a pattern may make.
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


def _matches(tokens: tuple[_Token, ...], text: str) -> bool:
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

    def matches(self, text: str) -> bool:
        """Return True if the pattern matches the whole text."""
        if text in self._literals:
            return True
        return any(self._matching(text))

    def _matching(self, text: str) -> Iterator[str]:
        """Yield the prefix of each alternative with wildcards that matches a text; `/` for an empty prefix."""
        if ".." in text and ".." in _SEPARATORS.split(text):
            return
        option = text.startswith("-")
        for prefix, tokens in self._alternatives:
            if option and not prefix.startswith("-"):
                continue
            if text.startswith(prefix) and _matches(tokens, text[len(prefix) :]):
                yield prefix or "/"

    def names(self, text: str) -> bool:
        """Return True if the pattern matches the text without a wildcard."""
        return text in self._literals

    def anchor(self, path: str) -> str | None:
        """Return the folder of a path that the pattern names without wildcards.

        Returns:
            The whole path, or the folder before the first wildcard. None if the pattern does not match the path.
        """
        if self.names(path):
            return path
        anchors = [prefix.rpartition("/")[0] or "/" for prefix in self._matching(path)]
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

    def matches(self, agent: str, labels: Mapping[str, str]) -> bool:
        """Return True if the selector matches an agent with this id and these labels."""
        if self._id is not None:
            return self._id.matches(agent)
        return all(name in labels and pattern.matches(labels[name]) for name, pattern in self._labels)


class CommandPattern:
    """A pattern for an argv: program and arguments."""

    __slots__ = ("_arguments", "_open", "_secret", "_secret_rest", "program", "text")

    def __init__(self, text: str, *, deny: bool = False) -> None:
        """Compile a pattern.

        Args:
            text: the line of the policy file.
            deny: True for a denied command. Such a pattern may name a program without its folder, and always permits
                further arguments.

        Raises:
            PatternError: the pattern cannot be understood.
        """
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise PatternError(f"{text!r}: {error}") from None
        self.text = text
        self._secret_rest = bool(words) and words[-1] == "<...>"
        rest = bool(words) and words[-1] in ("...", "<...>")
        self._open = deny or rest
        if rest:
            words.pop()
        if not words:
            raise PatternError(f"{text!r}: names no program")
        if "..." in words or "<...>" in words:
            raise PatternError(f"{text!r}: '...' is allowed only at the end")
        if not words[0].startswith("/") and not (deny and "/" not in words[0]):
            raise PatternError(f"{text!r}: the program must be an absolute path")
        self.program = Pattern(words[0])
        arguments, secret = [], set()
        for number, word in enumerate(words[1:]):
            if len(word) > 2 and word[0] == "<" and word[-1] == ">":
                secret.add(number)
                word = word[1:-1]
            arguments.append(Pattern(word))
        self._arguments = tuple(arguments)
        self._secret = frozenset(secret)

    def covers(self, program: str, patterns: Sequence[str]) -> bool:
        """Return True if it certainly matches every command that a program with these argument patterns matches."""
        name = program if self.program.text.startswith("/") else program.rpartition("/")[2]
        if not self.program.names(name) or not self._open or len(patterns) < len(self._arguments):
            return False
        return all(own.text == other or own.names(other) for own, other in zip(self._arguments, patterns, strict=False))

    def names(self, program: str) -> bool:
        """Return True if the pattern names this program without a wildcard."""
        return self.program.names(program)

    @property
    def has_secrets(self) -> bool:
        """True if the pattern marks an argument as secret."""
        return bool(self._secret) or self._secret_rest

    def secrets(self, program: str, arguments: Sequence[str]) -> set[int]:
        """Return the numbers of the arguments (the first is 0) that may be secrets by this pattern.

        The command need not match the pattern, since a mistyped command contains the same secrets. An argument at the
        place of a secret counts if all arguments before it match. So does the argument after an option that precedes a
        secret in the pattern.
        """
        found: set[int] = set()
        if not self._is(program):
            return found
        for number, argument in enumerate(arguments):
            if number in self._secret:
                found.add(number)
            elif number >= len(self._arguments):
                if self._secret_rest:
                    found.update(range(number, len(arguments)))
                break
            elif not self._arguments[number].matches(argument):
                break
        options = {self._arguments[number - 1].text for number in self._secret if number}
        options = {text for text in options if text.startswith("-")}
        found.update(number + 1 for number, argument in enumerate(arguments[:-1]) if argument in options)
        return found

    def _is(self, program: str) -> bool:
        return self.program.matches(program if self.program.text.startswith("/") else program.rpartition("/")[2])

    def matches(self, program: str, arguments: Sequence[str]) -> bool:
        """Return True if the pattern matches this program (an absolute path) with these arguments."""
        if not self._is(program):
            return False
        if len(arguments) < len(self._arguments) or (len(arguments) > len(self._arguments) and not self._open):
            return False
        return all(pattern.matches(argument) for pattern, argument in zip(self._arguments, arguments, strict=False))


class CommandPatterns:
    """A list of command patterns, indexed by the programs that they name."""

    def __init__(self, patterns: Iterable[CommandPattern]) -> None:
        self._named: dict[str, list[CommandPattern]] = {}
        self._others: list[CommandPattern] = []
        for pattern in patterns:
            for name in pattern.program.literals:
                self._named.setdefault(name, []).append(pattern)
            if not pattern.program.literals:
                self._others.append(pattern)

    def matching(self, program: str, arguments: Sequence[str]) -> Iterator[CommandPattern]:
        """Yield the patterns that match this program (an absolute path) with these arguments."""
        for name in (program, program.rpartition("/")[2]):
            for pattern in self._named.get(name, ()):
                if pattern.matches(program, arguments):
                    yield pattern
        for pattern in self._others:
            if pattern.matches(program, arguments):
                yield pattern
