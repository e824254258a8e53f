"""Options of commands as values: the parser knows each field, and the command gets one value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from tachikoma.errors import ConfigurationError
from tachikoma_worker.options import WorkerOptions, with_options
from tachikoma_worker.settings import WorkerSettings


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Options of a test's command."""

    name: Annotated[str | None, typer.Option(help="A name.")] = None
    several: Annotated[list[int] | None, typer.Option("--number", help="A number.")] = None
    folder: Annotated[Path | None, typer.Option()] = None
    quick: Annotated[bool, typer.Option("--quick")] = False


def run(*arguments: str) -> tuple[Sample, str]:
    app = typer.Typer()
    seen: list[Sample] = []

    @app.command()
    @with_options(Sample)
    def command(context: typer.Context, options: Sample) -> None:
        """What the command does."""
        assert context.info_name is not None
        seen.append(options)

    result = CliRunner().invoke(app, list(arguments))
    return (seen[0] if seen else Sample()), result.output


def test_options_become_fields_of_one_value() -> None:
    options, _ = run("--name", "x", "--number", "1", "--number", "2", "--folder", "/srv", "--quick")
    assert options == Sample(name="x", several=[1, 2], folder=Path("/srv"), quick=True)


def test_an_option_that_is_not_given_has_its_default() -> None:
    assert run()[0] == Sample()


def test_help_is_that_of_the_command_and_its_fields() -> None:
    _, output = run("--help")
    for text in ("What the command does.", "--number", "A name."):
        assert text in output


def test_a_wrong_value_is_refused() -> None:
    _, output = run("--number", "x")
    assert "--number" in output


def test_every_option_of_the_worker_is_a_setting_or_not_one_on_purpose() -> None:
    given = WorkerOptions().settings()
    assert set(given) <= set(WorkerSettings.model_fields)
    fields = {field.name for field in dataclasses.fields(WorkerOptions)}
    assert fields - set(given) == {"label", "capability", "sweep_up", "ready_fd"}
    assert all(value is None for value in given.values())


def test_labels_and_capabilities_become_settings() -> None:
    given = WorkerOptions(label=["env=dev", "role="], capability=["CAP_KILL"], slots=3).settings()
    assert (given["labels"], given["capabilities"], given["slots"]) == ({"env": "dev", "role": ""}, ("CAP_KILL",), 3)


def test_a_label_that_is_none_is_told() -> None:
    with pytest.raises(ConfigurationError, match="--label: 'env' is not NAME=value"):
        WorkerOptions(label=["env"]).settings()
