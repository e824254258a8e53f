"""Calls of scripts, as Redis gets them; without a Redis."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma_orchestrator.store import lua
from tachikoma_orchestrator.store.scripts import Call, Script, flat

NAMES = sorted(path.name.removesuffix(".lua") for path in files(lua).iterdir() if path.name.endswith(".lua"))
LIBRARIES = {"prelude", *(part for parts in lua.LIBRARIES.values() for part in parts)}
SCRIPTS = [name for name in NAMES if name not in LIBRARIES]


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5)))
def test_names_and_values_keep_their_order(values: dict[str, str]) -> None:
    found = flat(values)
    assert dict(zip(found[::2], found[1::2], strict=True)) == values
    assert found[::2] == list(values)


@given(st.text(), st.integers(-(2**53), 2**53), st.binary())
def test_arguments_are_one_json_text_and_payloads_stay_as_they_are(text: str, number: int, payload: bytes) -> None:
    script = Script("audit")
    call = Call(script, ["one", "two"], {"text": text, "number": number, "list": [text]}, [payload])
    name, sha1, count, *rest = call.command
    assert (name, sha1, count, rest[:2], rest[3:]) == ("EVALSHA", script.sha1, 2, ["one", "two"], [payload])
    assert json.loads(str(rest[2])) == {"text": text, "number": number, "list": [text]}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_documents_its_keys_arguments_and_result_and_reads_no_others(name: str) -> None:
    shared = "".join(
        files(lua).joinpath(f"{part}.lua").read_text() for part in ("prelude", *lua.LIBRARIES.get(name, ()))
    )
    body = files(lua).joinpath(f"{name}.lua").read_text()
    assert lua.load(name) == f"{shared}local function script()\n{body}end\nreturn {{script(), written}}\n"
    header = re.match(r"(--.*\n)+", body)
    assert header is not None
    assert [word for word in ("-- KEYS", "-- ARGV", "-- RESULT") if word not in header.group()] == []
    documented = set(re.findall(r"^--      (\w+)  ", header.group(), re.MULTILINE))
    used = set(re.findall(r"\bargs\.(\w+)", body[header.end() :]))
    assert used == documented


def test_an_unknown_script_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        Script("nothing")


def test_the_hash_is_of_the_whole_source() -> None:
    hashes: dict[str, Any] = {name: Script(name).sha1 for name in SCRIPTS}
    assert len(set(hashes.values())) == len(SCRIPTS)
    assert all(re.fullmatch("[0-9a-f]{40}", value) for value in hashes.values())
