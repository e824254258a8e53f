"""Denied commands, which match generously: a spelling that a program may read as a denied argument is denied.

A granted argument matches as it is written. A denied argument matches each meaning that an argument may have for a
program: itself, the value of an option, a part between separators, and each of them as a path. Paths are resolved
lexically, in the working directory too. Arguments may be in any order, with others between them. A folder above a
denied path is denied as well, since commands walk through folders.

Only names are compared. Symbolic links, other names of the same option, and encodings that only the program knows are
not found. So a deny of arguments never replaces a list of allowed ones.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence

from tachikoma.policy.command_patterns import CommandPattern
from tachikoma.policy.effort import Effort
from tachikoma.policy.patterns import Pattern, PatternError

__all__ = ["DeniedArguments", "DeniedCommand", "normalized"]

#: Characters at which a value may begin or end inside an argument.
_SEPARATORS = re.compile(r"""[\s=:,;@"'()<>|&{}\[\]]""")
#: Suffixes of one argument that are taken as values: after its first separators, and after its first letters.
MAX_SUFFIXES = 8
#: Short options in one word, as in -rf.
_CLUSTER = re.compile(r"-([A-Za-z0-9]+)")
#: The name of a long option.
_LONG = re.compile(r"--?([A-Za-z0-9][\w-]*)")


def normalized(path: str) -> str:
    """Return an absolute path without `//`, `.`, `..` and a final slash, resolved lexically."""
    return posixpath.normpath("/" + path.lstrip("/"))


class DeniedArguments:
    """The arguments of a request, with every meaning that they may have."""

    def __init__(self, arguments: Sequence[str], work_dirs: Iterable[str] = (), effort: Effort | None = None) -> None:
        """Collect the meanings.

        Args:
            arguments: the argv without the program.
            work_dirs: directories that the command may start in; none if they are unknown.
            effort: the steps that are left.

        Raises:
            TooMuchWork: the arguments have more meanings than steps are left.
        """
        known = [normalized(path) for path in work_dirs if path]
        # An unknown directory is taken for the root: there, any number of `..` leads to the same path.
        folders = known or ["/"]
        spend = (effort or Effort()).spend
        #: The arguments and their parts, as they are written.
        self.words: set[str] = set()
        #: The same as absolute paths.
        self.paths: set[str] = set()
        #: The working directories that are known: a command may read them without an argument that names them.
        self.work_dirs = frozenset(known)
        #: The letters of all short options.
        self.letters: set[str] = set()
        #: The names of all long options.
        self.names: set[str] = set()
        for text in _joined(arguments):
            for word in _meanings(text):
                spend(len(word) + 1)
                self.words.add(word)
                self._add_paths(word, folders)
            if cluster := _CLUSTER.match(text):
                self.letters.update(cluster.group(1))
            if name := _LONG.match(text):
                self.names.add(name.group(1))

    def _add_paths(self, word: str, folders: Sequence[str]) -> None:
        if not word:
            return
        if word.startswith("/"):
            self.paths.add(normalized(word))
            return
        self.words.add(posixpath.normpath(word))
        self.paths.update(normalized(f"{folder}/{word}") for folder in folders)


def _joined(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, and each option joined with the argument after it: that may be its value."""
    yield from arguments
    for option, value in itertools.pairwise(arguments):
        if option.startswith("-"):
            yield f"{option}={value}"


def _meanings(text: str) -> Iterator[str]:
    """Yield an argument, its parts between separators, and the values that it may contain."""
    yield text
    found = list(_SEPARATORS.finditer(text))
    begin = 0
    for separator in found:
        yield text[begin : separator.start()]
        begin = separator.end()
    if found:
        yield text[begin:]
        # A value may itself contain separators.
        for separator in found[:MAX_SUFFIXES]:
            yield text[separator.end() :]
        # dd if=//dev/sda: the path inside is normalized, the text before it remains.
        first = found[0].end()
        if text[first:].startswith("/"):
            yield text[:first] + normalized(text[first:])
    if text.startswith("-") and not text.startswith("--"):
        # -f/etc/x and -xzf/etc/x: the value follows its letter.
        for at in range(2, min(len(text), 2 + MAX_SUFFIXES)):
            yield text[at:]


class DeniedCommand(CommandPattern):
    """A pattern for commands that are refused, even if a policy grants them."""

    __slots__ = ("_wanted",)

    def __init__(self, text: str) -> None:
        """Compile a pattern. Raises as `CommandPattern` does."""
        super().__init__(text, deny=True)
        self._wanted = tuple(_DeniedArgument(pattern.text) for pattern in self._arguments)

    @property
    def has_arguments(self) -> bool:
        """True if it denies only some arguments of the program."""
        return bool(self._wanted)

    @property
    def undecidable(self) -> tuple[str, ...]:
        """The reasons, for people, why the pattern cannot deny such arguments reliably; empty if it can."""
        return tuple(why for wanted in self._wanted if (why := wanted.undecidable))

    def denies_program(self, program: str, effort: Effort | None = None) -> bool:
        """Return True if it denies this program (an absolute path) with some arguments or with all."""
        name = program if self.program.text.startswith("/") else program.rpartition("/")[2]
        return self.program.matches_any(name, effort)

    def denies(self, program: str, arguments: DeniedArguments, effort: Effort | None = None) -> bool:
        """Return True if it denies this program (an absolute path) with these arguments.

        Raises:
            TooMuchWork: the steps do not suffice to decide.
        """
        return self.denies_program(program, effort) and all(wanted.met_by(arguments, effort) for wanted in self._wanted)


class _DeniedArgument:
    """One argument of a denied command."""

    def __init__(self, text: str) -> None:
        #: The reason why the pattern cannot deny such an argument reliably; "" if it can.
        self.undecidable = ""
        self._option, value = _split_option(text)
        #: For words as they are written; None for an option whose value is denied.
        self._written: Pattern | None = None if self._option and value else Pattern(text)
        self._paths: tuple[Pattern, ...] = ()
        #: True if a folder above the denied path is denied too.
        self._absolute = (value or text).startswith("/")
        if self._option:
            self.undecidable = f"the option {self._option} may have other names"
        if not self._option or value:
            self._paths = tuple(_path_patterns(value or text))
            if any(part in (".", "..") for part in re.split("[/{},]", value or text)):
                self.undecidable = f"{text!r} contains a '.' or '..', which is compared only as it is written"

    def met_by(self, arguments: DeniedArguments, effort: Effort | None) -> bool:
        """Return True if one of the arguments may be equivalent to this one."""
        if self._option and self._written is None:
            return self._has_option(arguments) and self._has_path(arguments, effort)
        assert self._written is not None
        if not self._written.literals.isdisjoint(arguments.words):
            return True
        if self._option and self._has_option(arguments):
            return True
        if not self._written.literals and any(self._written.matches_any(word, effort) for word in arguments.words):
            return True
        return self._has_path(arguments, effort)

    def _has_option(self, arguments: DeniedArguments) -> bool:
        """Return True if the option is given: by its name, by the beginning of its name, or by its letters."""
        name = self._option.lstrip("-")
        if self._option.startswith("--"):
            return any(name.startswith(given) for given in arguments.names)
        return name in arguments.names or (name.isalnum() and arguments.letters.issuperset(name))

    def _has_path(self, arguments: DeniedArguments, effort: Effort | None) -> bool:
        def matches(pattern: Pattern, path: str) -> bool:
            return pattern.matches_any(path, effort) or pattern.matches_any(f"{path}/", effort)

        for pattern in self._paths:
            if any(matches(pattern, path) for path in arguments.paths):
                return True
            if self._absolute and (
                any(pattern.is_below(path) for path in arguments.paths)
                or any(matches(pattern, path) for path in arguments.work_dirs)
            ):
                return True
        return False


def _split_option(text: str) -> tuple[str, str]:
    """Split `--file=/etc/x` or `-f/etc/x` into option and value; ("", "") for other texts."""
    match = re.fullmatch(r"(--?[A-Za-z0-9][\w-]*)(?:=(.+)|(/.*))?", text, re.DOTALL)
    return (match.group(1), match.group(2) or match.group(3) or "") if match else ("", "")


def _path_patterns(text: str) -> Iterator[Pattern]:
    """Yield the patterns of the paths that a text may name; a text without a leading slash may name their last part."""
    if not text:
        return
    if text.startswith("/"):
        plain = not re.search(r"[{}\[\]]", text)
        yield Pattern(normalized(text) if plain else re.sub("/{2,}", "/", text))
        return
    if text.startswith("**"):
        yield Pattern(text)
    if not text.startswith("-"):
        try:
            yield Pattern(f"{{/,/**/}}{text}")
        except PatternError:
            # It has too many alternatives with braces before it; both patterns have as many as the text alone.
            yield Pattern(f"/{text}")
            yield Pattern(f"/**/{text}")
