"""Command patterns of policy files.

A command pattern is a line that is split into words as a shell does: one pattern for each argv element. The first
element is an absolute path. A final `...` permits any further arguments. An argument in angle brackets, `<*>`, is a
secret, which is masked wherever the command is stored or shown; `<...>` makes all further arguments secrets.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from tachikoma.policy.effort import Effort
from tachikoma.policy.patterns import Pattern, PatternError

__all__ = ["CommandPattern", "CommandPatterns"]


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
        """Return True if it certainly matches every command of a program with these argument patterns."""
        name = program if self.program.text.startswith("/") else program.rpartition("/")[2]
        if not self.program.names(name) or not self._open or len(patterns) < len(self._arguments):
            return False
        return all(own.text == other or own.names(other) for own, other in zip(self._arguments, patterns, strict=False))

    def names(self, program: str) -> bool:
        """Return True if the pattern names this program without a wildcard."""
        return self.program.names(program)

    @property
    def is_open(self) -> bool:
        """True if any further arguments are permitted."""
        return self._open

    @property
    def is_bounded(self) -> bool:
        """True if no further arguments are permitted and the first has no wildcard, so it cannot be another command."""
        return not self._open and (not self._arguments or bool(self._arguments[0].literals))

    @property
    def has_secrets(self) -> bool:
        """True if the pattern marks an argument as secret."""
        return bool(self._secret) or self._secret_rest

    def secrets(self, program: str, arguments: Sequence[str], effort: Effort | None = None) -> set[int]:
        """Return the numbers of the arguments (the first is 0) that may be secrets by this pattern.

        The command need not match the pattern, since a mistyped command contains the same secrets. An argument at the
        place of a secret counts if all arguments before it match. So does the argument after an option that precedes a
        secret in the pattern.

        Raises:
            TooMuchWork: more steps are needed than are left.
        """
        found: set[int] = set()
        if not self._is(program, effort):
            return found
        for number, argument in enumerate(arguments):
            if number in self._secret:
                found.add(number)
            elif number >= len(self._arguments):
                if self._secret_rest:
                    found.update(range(number, len(arguments)))
                break
            elif not self._arguments[number].matches(argument, effort):
                break
        options = {self._arguments[number - 1].text for number in self._secret if number}
        options = {text for text in options if text.startswith("-")}
        found.update(number + 1 for number, argument in enumerate(arguments[:-1]) if argument in options)
        return found

    def _is(self, program: str, effort: Effort | None = None) -> bool:
        name = program if self.program.text.startswith("/") else program.rpartition("/")[2]
        return self.program.matches(name, effort)

    def matches(self, program: str, arguments: Sequence[str], effort: Effort | None = None) -> bool:
        """Return True if the pattern matches this program (an absolute path) with these arguments.

        Raises:
            TooMuchWork: more steps are needed than are left.
        """
        if effort is not None:
            effort.spend(1)
        if not self._is(program, effort):
            return False
        if len(arguments) < len(self._arguments) or (len(arguments) > len(self._arguments) and not self._open):
            return False
        pairs = zip(self._arguments, arguments, strict=False)
        return all(pattern.matches(argument, effort) for pattern, argument in pairs)


C = TypeVar("C", bound=CommandPattern)


class CommandPatterns(Generic[C]):
    """A list of command patterns, indexed by the programs that they name."""

    def __init__(self, patterns: Iterable[C]) -> None:
        self._named: dict[str, list[C]] = {}
        self._others: list[C] = []
        for pattern in patterns:
            for name in pattern.program.literals:
                self._named.setdefault(name, []).append(pattern)
            if not pattern.program.literals:
                self._others.append(pattern)

    def of(self, program: str) -> Iterator[C]:
        """Yield the patterns that may match this program (an absolute path): those that name it or have wildcards."""
        for name in (program, program.rpartition("/")[2]):
            yield from self._named.get(name, ())
        yield from self._others
