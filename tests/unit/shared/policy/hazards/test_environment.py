"""Variables that no request may set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.policy.hazards.environment import forbidden, steers_programs


@pytest.mark.parametrize("name", ["APP_MODE", "LANG", "LC_ALL", "TERM", "TZ", "X", "A1_B"])
def test_an_ordinary_variable_may_be_set(name: str) -> None:
    assert forbidden(name, "de_DE.UTF-8") == ""


@pytest.mark.parametrize("name", ["PATH", "HOME", "USER", "LOGNAME"])
def test_the_agent_sets_its_own(name: str) -> None:
    assert forbidden(name, "x") == f"{name} is set by the agent"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "LD_PRELOAD",
            "LD_AUDIT",
            "BASH_ENV",
            "IFS",
            "PYTHONPATH",
            "PERL5LIB",
            "NODE_OPTIONS",
            "GIT_SSH",
            "HTTPS_PROXY",
        ),
        *("KRB5_CONFIG", "GLIBC_TUNABLES", "SSL_CERT_FILE", "EDITOR", "XDG_CONFIG_HOME", "SPIFFE_ENDPOINT_SOCKET"),
    ],
)
def test_what_steers_programs_is_never_passed_on(name: str) -> None:
    assert forbidden(name, "x").startswith(f"{name} is never passed on: it can change what a program loads")


@pytest.mark.parametrize("name", ["lower", "", "1A", "A-B", "A B", "Ä", "A" * 65, "BASH_FUNC_x%%", "http_proxy"])
def test_other_names_are_refused(name: str) -> None:
    assert forbidden(name, "x")


@pytest.mark.parametrize("value", ["/etc/shadow", "%s", "C/../x"])
def test_a_locale_cannot_name_a_file(value: str) -> None:
    for name in ("LANG", "TERM", "TZ", "LC_ALL"):
        assert forbidden(name, value) == f"the value of {name} must not contain '/' or '%': it could name a file"
    assert forbidden("APP_MODE", value) == ""


@given(st.text(max_size=12), st.text(max_size=12))
def test_only_capital_letters_digits_and_underscores_are_ever_permitted(name: str, value: str) -> None:
    if not forbidden(name, value):
        assert name.isascii()
        assert name.replace("_", "A").isalnum()
        assert name == name.upper()


@pytest.mark.parametrize(
    "name",
    [
        "DBUS_SYSTEM_BUS_ADDRESS", "MANPAGER", "MANOPT", "GREP_OPTIONS", "PGSERVICEFILE", "GCC_EXEC_PREFIX", "VIMINIT",
        "SUDO_ASKPASS", "LUA_PATH", "R_PROFILE", "AWS_CONFIG_FILE", "TAR_OPTIONS", "NOTIFY_SOCKET", "TEXINPUTS",
        "UNHEARD_OF_PATH", "SOME_PLUGIN", "THEIR_EDITOR", "X_COMMAND", "NEW_ASKPASS",
    ],
)  # fmt: skip
def test_a_variable_by_which_programs_find_code_steers_them(name: str) -> None:
    assert forbidden(name, "x") == ""
    assert steers_programs(name)


@pytest.mark.parametrize("name", ["APP_MODE", "LANG", "LC_ALL", "TZ", "DEBUG", "COLUMNS", "APP_X", "NO_COLOR", "LEVEL"])
def test_an_ordinary_variable_does_not(name: str) -> None:
    assert not steers_programs(name)


@pytest.mark.parametrize("name", ["APP_PATH", "APP_CONFIG", "APP_HOME"])
def test_the_variables_of_an_application_are_its_own(name: str) -> None:
    assert steers_programs(name)
    assert not steers_programs(name, "APP_")
    assert steers_programs("DBUS_SESSION_BUS_ADDRESS", "DBUS_")
