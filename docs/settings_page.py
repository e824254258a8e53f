"""Makes `settings.md` from the settings classes: names, kinds, defaults, and the `#:` comment of each field."""

from __future__ import annotations

import importlib
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from tachikoma.config.settings import PartSettings, variable
from tachikoma.vocabulary.field_comments import comments

PAGE = Path(__file__).parent / "settings.md"
PACKAGES = ("tachikoma", "tachikoma_orchestrator", "tachikoma_worker")
COLUMNS = 120

HEAD = """\
# Settings

<!-- generated from the settings classes by `make docs`; edit the `#:` comments of their fields instead -->

Every part reads its settings from environment variables. Some are options of its command too:
`tachikoma worker --help`. Durations are written as `90s`, `10m`, `24h` or `30d`. Lists are written `a,b`, mappings
`role=web,site=a`; both may also be JSON.

- **`TACHIKOMA_SETTINGS`**: path, not set by default. File of settings in [TOML](https://toml.io). The name of a setting
  there is that of its variable without `TACHIKOMA_`, in lower case. An option wins over the environment, and the
  environment over the file. An unknown name in the file is an error.

```toml
agent_id = "web-1"
redis_url = "rediss://redis.example.org:6379"
slots = 16
labels = {role = "web", site = "a"}
```

```console
$ tachikoma config show worker      # each setting, its value, and where that comes from
$ tachikoma config check worker     # what is wrong, missing or unknown; exits 1 if the part could not start
```

On a host where the part is installed, both take the settings of its unit
([deployment.md](deployment.md#what-is-wrong)).
"""

#: Sections in their order: class, title, and the command that reads it.
SECTIONS = {
    "RedisSettings": ("Redis", "Read by every part that uses Redis."),
    "OrchestratorSettings": ("Orchestrator", "Read by `tachikoma orchestrator` and `tachikoma submitter`."),
    "SubmitterSettings": ("Submitter", "Read by `tachikoma submitter`, beside the orchestrator's."),
    "WorkerSettings": ("Worker", "Read by `tachikoma worker`."),
    "FlowerSettings": ("Flower", "Read by `tachikoma flower`."),
    "BeatSettings": ("Beat", "Read by `tachikoma beat`."),
    "BackupSettings": ("Redis backup", "Read by `tachikoma redis backup`, beside those of Redis."),
    "CheckSettings": ("Redis check", "Read by `tachikoma redis check`, beside those of Redis."),
    "ErrorReportingSettings": ("Sentry", "Read by every long-running part ([sentry.md](sentry.md))."),
}

CLIENT = """\
## Client

Read by every command that calls an orchestrator, and by the library.

- **`TACHIKOMA_PROFILE`**: path. Profile with the orchestrator's address and the client's identity; option `--profile`.
- **`TACHIKOMA_POLICY`**: path. Policy file that the commands of `tachikoma policy` work on; option `--policy`.
- **`TRACEPARENT`**: the trace that the calls of a client belong to ([traces.md](traces.md)).
- **`SPIFFE_ENDPOINT_SOCKET`**: address of the SPIFFE Workload API, for every part without an `IDENTITY` setting.
- **`OTEL_…`**: the variables of OpenTelemetry, for every part that should record traces ([traces.md](traces.md)).
"""


def settings_classes() -> list[type[BaseSettings]]:
    """Return every settings class of the packages, base classes first.

    Raises:
        KeyError: a class has no section above.
    """
    for name in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
            if module.name.endswith(".__main__"):
                continue
            importlib.import_module(module.name)

    def below(kind: type[BaseSettings]) -> Iterator[type[BaseSettings]]:
        for found in kind.__subclasses__():
            if found.__module__.partition(".")[0] in PACKAGES and found is not PartSettings:
                yield found
            yield from below(found)

    found = {kind.__name__: kind for kind in below(BaseSettings)}
    if missing := found.keys() ^ SECTIONS.keys():
        raise KeyError(f"docs/settings_page.py: SECTIONS and the settings classes differ in {sorted(missing)}")
    return [found[name] for name in SECTIONS]


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_kind(part) for part in arguments if part is not NoneType)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return "list"
    if origin is dict or "Labels" in str(annotation):
        return "mapping"
    if origin is not None and arguments:
        return _kind(arguments[0])
    if not isinstance(annotation, type):
        return "text"
    for base, text in (
        (bool, "true or false"), (int, "number"), (timedelta, "duration"), (PurePath, "path"), (SecretStr, "secret"),
    ):  # fmt: skip
        if issubclass(annotation, base):
            return text
    if annotation.__name__ == "HostPort":
        return "host:port"
    if annotation.__name__ == "HostPorts":
        return "host:port, or several with commas"
    return "mapping" if hasattr(annotation, "model_fields") else "text"


def _bounds(info: FieldInfo) -> str:
    least = next((bound.ge for bound in info.metadata if isinstance(bound, Ge)), None)
    most = next((bound.le for bound in info.metadata if isinstance(bound, Le)), None)
    if least is None and most is None:
        return ""
    return f" from {least:,}" + (f" to {most:,}" if most is not None else "")


def _duration(value: timedelta) -> str:
    seconds = int(value.total_seconds())
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if value is None or value in ("", (), {}):
        return "not set by default"
    if isinstance(value, timedelta):
        return f"default `{_duration(value)}`"
    if isinstance(value, bool):
        return f"default `{str(value).lower()}`"
    if isinstance(value, int):
        return f"default {value:,}"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return f"default `{','.join(map(str, value))}`"
    if hasattr(value, "model_dump_json"):
        return f"default `{value.model_dump_json(by_alias=True)}`"
    return f"default `{value}`"


def _variable_of(kind: type[BaseSettings], name: re.Match[str]) -> str:
    """Return the variable of a field that a comment names; other words in backticks stay."""
    return f"`{variable(kind, name[1])}`" if name[1] in kind.model_fields else name[0]


def entry(kind: type[BaseSettings], field: str, comment: str) -> str:
    """Return the list item of one setting."""
    info = kind.model_fields[field]
    comment = re.sub(r"`(\w+)`", lambda name: _variable_of(kind, name), comment)
    text = f"**`{variable(kind, field)}`**: {_kind(info.annotation)}{_bounds(info)}, {_default(info)}. {comment}"
    return textwrap.fill(
        re.sub(r"\s+", " ", text).strip(), COLUMNS, initial_indent="- ", subsequent_indent="  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def settings_page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for kind in settings_classes():
        title, reader = SECTIONS[kind.__name__]
        entries = "\n".join(entry(kind, field, comment) for field, comment in comments(kind).items())
        parts.append(f"## {title}\n\n{reader}\n\n{entries}\n")
    return "\n".join([*parts, CLIENT])


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
