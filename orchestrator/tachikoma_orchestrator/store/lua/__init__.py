"""The scripts that change state in Redis, each atomic. Each begins with its keys, arguments and results."""

from importlib.resources import files

__all__ = ["LIBRARIES", "load"]

#: Libraries of functions that a script uses besides the prelude, by the name of the script.
LIBRARIES = {
    "admit": ("batches", "dispatching"),
    "dispatch": ("dispatching",),
    **dict.fromkeys(
        (
            "transition",
            "restore",
            "recall",
            "batch_submit",
            "batch_approve",
            "batch_release",
            "batch_halt",
            "batch_target",
        ),
        ("batches",),
    ),
}


def load(name: str) -> str:
    """Return the source of a script by its file name without `.lua`.

    The shared prelude and its libraries come before it. The script itself is a function, whose result is returned
    together with the last event that it appended.
    """
    folder = files(__name__)
    *shared, body = (
        folder.joinpath(f"{part}.lua").read_text(encoding="utf-8")
        for part in ("prelude", *LIBRARIES.get(name, ()), name)
    )
    return f"{''.join(shared)}local function script()\n{body}end\nreturn {{script(), written}}\n"
