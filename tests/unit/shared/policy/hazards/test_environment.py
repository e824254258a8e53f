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
        "LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "MALLOC_TRACE", "DYLD_INSERT_LIBRARIES", "GLIBC_TUNABLES",
        "GCONV_PATH", "LOCPATH", "RES_OPTIONS", "BASH_ENV", "ENV", "IFS", "SHELLOPTS", "PS4", "PROMPT_COMMAND",
        "ZDOTDIR", "SPIFFE_ENDPOINT_SOCKET", "CELERY_BROKER_URL",
    ],
)  # fmt: skip
def test_what_makes_any_program_run_other_code_is_never_passed_on(name: str) -> None:
    assert forbidden(name, "x") == (f"{name} is never passed on: it can change what any program loads, reads or starts")


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
        "PAGER", "EDITOR", "VISUAL", "BROWSER", "SHELL", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_EXTERNAL_DIFF", "LESSOPEN",
        "PYTHONPATH", "PYTHONSTARTUP", "PERL5LIB", "NODE_OPTIONS", "NODE_ENV", "RUBYOPT", "JAVA_TOOL_OPTIONS",
        "CLASSPATH", "HTTPS_PROXY", "SSL_CERT_FILE", "XDG_CONFIG_HOME", "KRB5_CONFIG", "DOCKER_HOST", "SYSTEMD_EDITOR",
        "KUBECONFIG", "SSH_AUTH_SOCK", "OPENSSL_CONF", "TMPDIR",
        "TERMINFO", "NPM_CONFIG_PREFIX", "CURL_HOME", "APP_HTTPS_PROXY",
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


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("DBUS_SESSION_BUS_ADDRESS", "DBUS_"), ("GIT_SSH_COMMAND", "GIT_"), ("PAGER", "PAG"), ("PAGER", "PAGER"),
        ("PYTHONPATH", "PYTHON"), ("APP_HTTPS_PROXY", "APP_"), ("XDG_CONFIG_HOME", "XDG_CONFIG_"), ("EDITOR", ""),
    ],
)  # fmt: skip
def test_no_wildcard_grants_a_name_of_a_program_in_common_use(name: str, written: str) -> None:
    assert steers_programs(name, written)
