"""The operator's choices, which a file keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma_orchestrator.commands.setup.choices import Choices


def test_given_choices_win_over_those_of_the_last_setup_and_those_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "setup.toml"
    first = Choices.read(file, host="a.example.org", operator="ada", port=None)
    assert (first.trust_domain, first.port, first.server_name) == ("example.org", 8534, "orchestrator.example.org")
    file.write_text(first.model_copy(update={"port": 9000}).text())
    second = Choices.read(file, operator="bob")
    assert (second.host, second.operator, second.port) == ("a.example.org", "bob", 9000)
    file.write_text(second.text())
    assert Choices.read(file) == second


def test_redis_is_on_this_host_or_an_existing_one() -> None:
    own = Choices(host="a.example.org", trust_domain="example.org", operator="ada")
    assert (own.own_redis, own.reached_redis) == (True, "rediss://a.example.org:6379")
    other = own.model_copy(update={"redis_url": "rediss://r:1"})
    assert (other.own_redis, other.reached_redis) == (False, "rediss://r:1")


@pytest.mark.parametrize(
    "wrong", [{"host": "a b"}, {"operator": "../root"}, {"trust_domain": "A"}, {"port": 0}, {"port": "x"}]
)
def test_a_wrong_choice_is_named(wrong: dict[str, str | int], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="setup: "):
        Choices.read(tmp_path / "none", **{"host": "a.example.org", "operator": "ada", **wrong})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "setup.toml").write_text("host = [")
    with pytest.raises(ConfigurationError, match=r"setup\.toml"):
        Choices.read(tmp_path / "setup.toml")
