"""YAML files that people write, read into models with the place of each mistake."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.scanner import RoundTripScanner, ScannerError

from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.model import Model

__all__ = ["Document", "Location", "digest", "dotted", "read_document", "read_files", "yaml_files"]

#: Largest number of bytes of a file.
MAX_FILE_BYTES = 4 * 1024 * 1024
#: Largest number of levels of brackets and braces. The parser's time grows with their third power.
MAX_FLOW_DEPTH = 50

#: A place in a document: names of fields and numbers of entries.
Location = tuple[str | int, ...]
M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True)
class Document(Generic[M]):
    """A file that was read."""

    #: Name of the file, for messages.
    name: str
    #: The validated content.
    content: M
    #: The YAML tree, which knows lines and columns.
    tree: CommentedMap

    def position(self, location: Location) -> str:
        """Return file:line:column of a place, as exactly as YAML knows it."""
        return _position(self.tree, location, self.name)


class _Scanner(RoundTripScanner):
    """A scanner that refuses deeply nested brackets and braces."""

    def fetch_flow_collection_start(self, TokenClass: Any, to_push: str) -> None:  # noqa: N803
        if len(self.flow_context) >= MAX_FLOW_DEPTH:
            raise ScannerError(None, None, "nested too deeply", self.reader.get_mark())
        super().fetch_flow_collection_start(TokenClass, to_push)


class _Composer(Composer):
    """A composer that refuses keys that are no scalars: the time for nested keys doubles with each level."""

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node: MappingNode = super().compose_mapping_node(anchor)
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise ComposerError(None, None, "a key must be a text", key.start_mark)
        return node


def yaml_files(path: Path) -> list[Path]:
    """Return the file itself, or the files of a folder that end in .yaml or .yml, but not in .test.yaml."""
    if not path.is_dir():
        return [path]
    return sorted(
        file for file in path.iterdir() if file.suffix in (".yaml", ".yml") and not file.stem.endswith(".test")
    )


def _read_file(path: Path, what: str) -> str:
    """Return the text of a file; `what` names its kind in messages.

    Raises:
        ConfigurationError: the file cannot be read, or is too large.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigurationError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the {what} {path}: {error}") from error


def read_files(path: Path, what: str) -> list[tuple[str, str]]:
    """Return name and text of a file, or of the files of a folder that end in .yaml or .yml, but not in .test.yaml.

    Args:
        path: the file or folder.
        what: the kind of the files, for messages.

    Raises:
        ConfigurationError: there is no such file, or one cannot be read.
    """
    texts = [(str(file), _read_file(file, what)) for file in yaml_files(path)]
    if not texts:
        raise ConfigurationError(f"there is no {what} in {path}; their names end in .yaml")
    return texts


def digest(texts: Sequence[tuple[str, str]]) -> str:
    """Return the SHA-256 of the texts of files, in hexadecimal; their names do not matter."""
    found = hashlib.sha256()
    for _, text in texts:
        found.update(hashlib.sha256(text.encode()).digest())
    return found.hexdigest()


def read_document(text: str, name: str, model: type[M]) -> Document[M]:
    """Read a text that contains one model; `name` is for messages.

    Raises:
        ConfigurationError: the text is wrong; the message names file, line, column and field of each mistake.
    """
    try:
        yaml = YAML(typ="rt")
        yaml.Scanner, yaml.Composer = _Scanner, _Composer
        tree = yaml.load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigurationError(f"{where}: not YAML: {error.problem or error.context}") from None
    except YAMLError as error:
        raise ConfigurationError(f"{name}: not YAML: {error}") from None
    except RecursionError:
        raise ConfigurationError(f"{name}: nested too deeply") from None
    # The parser lets errors of some values pass, for example of dates that do not exist.
    except Exception as error:
        raise ConfigurationError(f"{name}: not YAML: {error!r}") from None
    if not isinstance(tree, CommentedMap):
        required = next(info.alias or field for field, info in model.model_fields.items() if info.is_required())
        raise ConfigurationError(f"{name}:1:1: must be a mapping with the key {required!r}")
    try:
        return Document(name, model.model_validate(tree), tree)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_mistakes(error, tree, name, model))) from None
    except RecursionError:
        raise ConfigurationError(f"{name}: nested too deeply") from None


def dotted(location: Location) -> str:
    """Return a place in a document for people: `policies[0].name`."""
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
    """Return the model whose fields are at a place in a document."""
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
