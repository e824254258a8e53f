"""Settings from options, environment variables and a settings file."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from tachikoma.config.settings import (
    SETTINGS_VARIABLE,
    Address,
    OptionalAddress,
    Origin,
    PartSettings,
    origins,
    read_settings,
)
from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.types import Duration


class Limit(BaseModel):
    """A mapping with named fields."""

    size: int = 1
    wait: Duration = timedelta(seconds=1)


class Settings(PartSettings):
    """The settings of this test."""

    listen: Address
    metrics: OptionalAddress = None
    size: int = 1
    labels: Annotated[dict[str, str], Field(max_length=3)] = Field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    limit: Limit = Limit()


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*(field.upper() for field in Settings.model_fields), "SETTINGS"):
        monkeypatch.delenv(f"TACHIKOMA_{name}", raising=False)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "settings.toml"
    monkeypatch.setenv(SETTINGS_VARIABLE, str(path))
    return path


def read(**options: object) -> Settings:
    return read_settings(Settings, "test", **options)


def refusal(**options: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(**options)
    return str(caught.value)


def test_an_option_wins_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    file.write_text('listen = "c:3"\nsize = 3\nlabels = {role = "db"}\n')
    monkeypatch.setenv("TACHIKOMA_LISTEN", "a:1")
    monkeypatch.setenv("TACHIKOMA_SIZE", "2")
    settings = read(listen="b:2", size=None)
    assert (settings.listen.host, settings.listen.port, settings.size) == ("b", 2, 2)
    assert settings.labels == {"role": "db"}
    found = origins(Settings, listen="b:2", size=None)
    assert [found[name] for name in ("listen", "size", "labels", "metrics")] == [*Origin][:4]


def test_an_optional_address_may_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHIKOMA_METRICS", "")
    assert read(listen="a:1").metrics is None
    monkeypatch.setenv("TACHIKOMA_METRICS", "127.0.0.1:9100")
    metrics = read(listen="a:1").metrics
    assert metrics is not None
    assert metrics.port == 9100


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("role=web", {"role": "web"}),
        ("role=web,site=a", {"role": "web", "site": "a"}),
        (" role=web , site=a=b ,", {"role": "web", "site": "a=b"}),
        ("role=", {"role": ""}),
        ('{"role": "web, or db"}', {"role": "web, or db"}),
        ("", {}),
    ],
)
def test_a_mapping_is_written_as_pairs_or_as_json(
    monkeypatch: pytest.MonkeyPatch, text: str, labels: dict[str, str]
) -> None:
    monkeypatch.setenv("TACHIKOMA_LABELS", text)
    assert read(listen="a:1").labels == labels


@pytest.mark.parametrize(
    ("text", "entries"),
    [("CAP_A", ("CAP_A",)), (" CAP_A, CAP_B ", ("CAP_A", "CAP_B")), ('["a,b"]', ("a,b",)), ("", ()), (",", ())],
)
def test_a_list_is_written_with_commas_or_as_json(
    monkeypatch: pytest.MonkeyPatch, text: str, entries: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TACHIKOMA_CAPABILITIES", text)
    assert read(listen="a:1").capabilities == entries


def test_a_mapping_with_named_fields_is_written_as_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHIKOMA_LIMIT", "size=5,wait=90s")
    assert read(listen="a:1").limit == Limit(size=5, wait=timedelta(seconds=90))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("LABELS", "role", "TACHIKOMA_LABELS: 'role' is not NAME=value"),
        ("LABELS", "a=1,=2", "TACHIKOMA_LABELS: '=2' is not NAME=value"),
        ("LABELS", '{"a": 1', "TACHIKOMA_LABELS: Expecting"),
        ("LABELS", '{"a": {}}', "TACHIKOMA_LABELS (--label), a: Input should be a valid string"),
        ("CAPABILITIES", "[1", "TACHIKOMA_CAPABILITIES: Expecting"),
        ("SIZE", "many", "TACHIKOMA_SIZE (--size): Input should be a valid integer"),
        ("LIMIT", "size=x", "TACHIKOMA_LIMIT, size: Input should be a valid integer"),
    ],
)
def test_a_mistake_names_the_variable_and_the_option(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, reason: str
) -> None:
    monkeypatch.setenv(f"TACHIKOMA_{name}", text)
    assert refusal(listen="a:1", labels=None, size=None).startswith(f"test settings: {reason}")


def test_every_mistake_is_named() -> None:
    assert refusal(size="x", listen=None) == (
        "test settings: TACHIKOMA_LISTEN is not set; set it or give --listen; TACHIKOMA_SIZE (--size): Input should be "
        "a valid integer, unable to parse string as an integer"
    )
    assert refusal(listen="no port").startswith("test settings: TACHIKOMA_LISTEN (--listen): 'no port' has no port")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("size = ", "is not TOML"),
        ("x = " + "[" * 5000, "is not TOML"),
        ("\xff", "is not TOML"),
        ('listen = "a:1"\nlisten = "a:2"', "is not TOML"),
        ('listen = "a:1"\nsize = "x"', "size in "),
        ('listen = "a:1"\nlisen = "b:2"', "there is no setting lisen; did you mean listen?"),
        ('listen = "a:1"\n[worker]\nsize = 2', "there is no setting worker"),
        ("size = 2", "TACHIKOMA_LISTEN is not set"),
    ],
)
def test_a_wrong_settings_file_is_refused(file: Path, content: str, reason: str) -> None:
    file.write_bytes(content.encode("latin-1"))
    assert reason in refusal()


def test_a_missing_settings_file_is_refused(file: Path) -> None:
    assert refusal(listen="a:1") == (
        f"cannot read the settings file {file} (TACHIKOMA_SETTINGS): No such file or directory"
    )
    file.touch()
    assert read(listen="a:1").size == 1


def test_settings_of_error_reports_may_be_in_each_file(file: Path) -> None:
    file.write_text('listen = "a:1"\nsentry_environment = "test"\n')
    assert read().listen.port == 1


@given(st.text(alphabet=st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TACHIKOMA_LABELS", text)
        patch.setenv("TACHIKOMA_CAPABILITIES", text)
        try:
            settings = read(listen="a:1")
        except ConfigurationError as error:
            assert "TACHIKOMA_" in str(error)  # noqa: PT017 (either outcome is right)
        else:
            assert all(isinstance(entry, str) for entry in settings.capabilities)
