"""The scripts that change state in Redis, each atomic. Each begins with its keys, arguments and results."""

from importlib.resources import files

__all__ = ["load"]


def load(name: str) -> str:
    """Return the source of a script, by its file name without the ending, with the shared prelude before it."""
    folder = files(__name__)
    return "".join(folder.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in ("prelude", name))
