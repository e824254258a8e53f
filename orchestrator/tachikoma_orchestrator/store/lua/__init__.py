"""The scripts that change state in Redis, each atomic. Keys, arguments and results stand at the top of each."""

from importlib.resources import files

__all__ = ["load"]


def load(name: str) -> str:
    """Source of a script, by its file name without ending, with the functions that all share before it."""
    folder = files(__name__)
    return "".join(folder.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in ("prelude", name))
