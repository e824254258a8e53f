"""YAML files that people write: read into models, with the place of each mistake; and watched for changes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, get_args

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.model import Model

__all__ = ["Document", "FileWatch", "Location", "digest", "dotted", "read_document", "read_files"]

#: Largest file.
MAX_FILE_BYTES = 4 * 1024 * 1024

Location = tuple[str | int, ...]
M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True)
class Document(Generic[M]):
    """A file that was read."""

    #: For messages.
    name: str
    content: M
    tree: CommentedMap

    def position(self, location: Location) -> str:
        """file:line:column of a place in it, as near as YAML tells."""
        return _position(self.tree, location, self.name)


def _yaml_files(path: Path) -> list[Path]:
    """The files a path stands for: itself, or those of a folder that end in .yaml or .yml, but not in .test.yaml."""
    if not path.is_dir():
        return [path]
    return sorted(
        file for file in path.iterdir() if file.suffix in (".yaml", ".yml") and not file.stem.endswith(".test")
    )


def _read_file(path: Path, what: str) -> str:
    """The text of a file; `what` it is, for messages.

    Raises:
        ConfigurationError: it cannot be read, or is too large.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigurationError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the {what} {path}: {error}") from error


def read_files(path: Path, what: str) -> list[tuple[str, str]]:
    """Name and text of a file, or of all files of a folder that end in .yaml or .yml, but not in .test.yaml.

    Raises:
        ConfigurationError: there is none, or one cannot be read; `what` they are is for the message.
    """
    texts = [(str(file), _read_file(file, what)) for file in _yaml_files(path)]
    if not texts:
        raise ConfigurationError(f"there is no {what} in {path}; their names end in .yaml")
    return texts


def digest(texts: Sequence[tuple[str, str]]) -> str:
    """SHA-256 over what files hold, in hexadecimal; their names do not matter."""
    found = hashlib.sha256()
    for _, text in texts:
        found.update(hashlib.sha256(text.encode()).digest())
    return found.hexdigest()


def read_document(text: str, name: str, model: type[M]) -> Document[M]:
    """Read a text that holds one model; `name` is for messages.

    Raises:
        ConfigurationError: it is wrong; the message names file, line, column and field of each mistake.
    """
    try:
        tree = YAML(typ="rt").load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigurationError(f"{where}: not YAML: {error.problem or error.context}") from None
    except YAMLError as error:
        raise ConfigurationError(f"{name}: not YAML: {error}") from None
    if not isinstance(tree, CommentedMap):
        required = next(info.alias or field for field, info in model.model_fields.items() if info.is_required())
        raise ConfigurationError(f"{name}:1:1: must be a mapping with the key {required!r}")
    try:
        return Document(name, model.model_validate(tree), tree)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_mistakes(error, tree, name, model))) from None


def dotted(location: Location) -> str:
    """A place in a document, for people: `policies[0].name`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _position(tree: Any, location: Location, name: str) -> str:
    line, column = 0, 0
    node = tree
    for part in location:
        try:
            if isinstance(node, CommentedMap) and part in node:
                line, column = node.lc.key(part)
            elif isinstance(node, CommentedSeq) and isinstance(part, int):
                line, column = node.lc.item(part)
            else:
                break
            node = node[part]
        except (KeyError, IndexError, TypeError, AttributeError):
            break
    return f"{name}:{line + 1}:{column + 1}"


def _mistakes(error: ValidationError, tree: CommentedMap, name: str, model: type[Model]) -> Iterator[str]:
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        location = tuple(item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown field{_suggestion(str(location[-1]), _model_at(model, location[:-1]))}"
        elif item["type"] == "missing":
            message = "is missing"
        yield f"{_position(tree, location, name)}: {dotted(location)}: {message}"


def _model_at(model: type[Model], location: Sequence[str | int]) -> type[Model]:
    """The model whose fields stand at a place in a document."""
    for part in location:
        for name, info in model.model_fields.items():
            if part in (name, info.alias):
                model = next(_models_in(info.annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[Model]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _suggestion(field: str, model: type[Model]) -> str:
    known = [info.alias or name for name, info in model.model_fields.items()]
    close = get_close_matches(field, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


class _Loaded(Protocol):
    """What a watched file holds."""

    @classmethod
    def load(cls, path: Path) -> Any:
        """Read it. Raises ConfigurationError."""


T = TypeVar("T", bound=_Loaded)


class FileWatch(Generic[T]):
    """What a file holds, replaced as a whole when the file changes and is right."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        """Load the file; raises as `kind.load` does."""
        self.path = path
        self._kind = kind
        self._seen = self._signature()
        self.current: T = kind.load(path)
        #: Since when it is in force.
        self.since = datetime.now(UTC)
        #: Why the file as it is now is not in force, or empty.
        self.error = ""

    def reload(self) -> bool:
        """Look at the file, and take it when it changed and is right.

        Returns:
            Whether something changed: what is in force, or the error that keeps the old one.
        """
        signature = self._signature()
        if signature == self._seen:
            return False
        self._seen = signature
        try:
            self.current = self._kind.load(self.path)
        except ConfigurationError as error:
            self.error = str(error)
        else:
            self.error = ""
            self.since = datetime.now(UTC)
        return True

    def _signature(self) -> tuple[tuple[str, int, int, int], ...]:
        found = []
        with suppress(OSError):
            for file in _yaml_files(self.path):
                stat = file.stat()
                found.append((str(file), stat.st_mtime_ns, stat.st_ino, stat.st_size))
        return tuple(found)
