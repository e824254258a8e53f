"""The scripts that change state in Redis, each atomic. Each begins with its keys, arguments and results."""

from importlib.resources import files

__all__ = ["load"]


def load(name: str) -> str:
    """Return the source of a script by its file name without the ending.

    The shared prelude comes before it. The script itself is a function, whose result is returned together with the
    last event that it appended.
    """
    folder = files(__name__)
    prelude, body = (folder.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in ("prelude", name))
    return f"{prelude}local function script()\n{body}end\nreturn {{script(), written}}\n"
