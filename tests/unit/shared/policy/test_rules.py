"""Each rule alone, and that the rules decide on every field of a policy and of a request."""

from __future__ import annotations

from typing import Any

import pytest

from tachikoma.policy.compiled import CompiledPolicy
from tachikoma.policy.rules import (
    RULES,
    Address,
    Case,
    Command,
    Duration,
    Environment,
    Interactive,
    Interpreter,
    Rule,
    Timeout,
    Tty,
    User,
    WorkDir,
    refusing_rule,
)
from tachikoma.vocabulary.policies import ExecPolicy
from tachikoma.vocabulary.requests import ExecRequest


def case(policy: dict[str, Any], *command: str, address: str = "", **request: Any) -> Case:
    compiled = CompiledPolicy(ExecPolicy(name="p", subjects=("**",), agents=("*",), **policy))
    argv = command or ("/bin/true",)
    return Case(compiled, ExecRequest(agent_id="a", command=argv, **request), [argv[0]], argv[0], address)


def refusal(rule: Rule, seen: Case) -> str:
    """Why a rule refuses, or "" if it permits."""
    return "" if rule.permits(seen) else rule.refusal(seen)


TRUE: dict[str, Any] = {"allowed_commands": ("/bin/true", "/bin/sh ...")}


@pytest.mark.parametrize(
    ("rule", "permitted", "refused", "text"),
    [
        (Command(), case(TRUE), case(TRUE, "/bin/true", "x"), "does not allow the command '/bin/true' with these"),
        (
            Interpreter(),
            case({**TRUE, "allow_interpreters": True}, "/bin/sh", "-c", "x"),
            case(TRUE, "/bin/sh", "-c", "x"),
            "does not allow '/bin/sh', which can run any other program",
        ),
        (
            Address(),
            case({"allowed_networks": ("10.0.0.0/8",)}, address="10.1.2.3"),
            case({"allowed_networks": ("10.0.0.0/8",)}, address="11.1.2.3"),
            "does not allow requests from 11.1.2.3",
        ),
        (
            Address(),
            case({}),
            case({"allowed_networks": ("10.0.0.0/8",)}),
            "does not allow requests from an unknown address",
        ),
        (
            User(),
            case({"allowed_users": ("web*",)}, user="web-1"),
            case({"allowed_users": ("web*",)}, user="root"),
            "does not allow the user 'root'",
        ),
        (User(), case({}), case({}, user="root"), "does not allow the user 'root'"),
        (
            WorkDir(),
            case({"allowed_work_dirs": ("/srv/**",)}, work_dir="/srv/x"),
            case({"allowed_work_dirs": ("/srv/**",)}, work_dir="/etc"),
            "does not allow the working directory '/etc'",
        ),
        (
            Environment(),
            case({"allowed_environment": ("APP_*",)}, environment={"APP_MODE": "x"}),
            case({"allowed_environment": ("APP_*",)}, environment={"APP_MODE": "x", "OTHER": "y"}),
            "does not allow the variable 'OTHER'",
        ),
        (
            Environment(),
            case({}),
            case({"allowed_environment": ("**",)}, environment={"LD_PRELOAD": "x"}),
            "cannot allow the variable: LD_PRELOAD is never",
        ),
        (
            Timeout(),
            case({"max_timeout": "10m"}, timeout="10m"),
            case({"max_timeout": "10m"}, timeout="10m1s"),
            "allows at most 10m, not 10m1s",
        ),
        (
            Duration(),
            case({"max_duration": "2h"}, timeout="2h", interactive=True),
            case({"max_duration": "2h"}, timeout="2h1s", interactive=True),
            "allows interactive executions of at most 2h, not 2h1s",
        ),
        (
            Interactive(),
            case({"allow_interactive": True}, interactive=True),
            case({}, interactive=True),
            "does not allow interactive executions",
        ),
        (Tty(), case({"allow_tty": True}, tty=True), case({}, tty=True), "does not allow terminals"),
    ],
)
def test_a_rule_permits_or_says_why_not(rule: Rule, permitted: Case, refused: Case, text: str) -> None:
    assert refusal(rule, permitted) == ""
    assert refusal(rule, refused).startswith(text)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.field not in ("allowedCommands", "allowInterpreters")])
def test_a_request_that_asks_for_nothing_special_is_permitted(rule: Rule) -> None:
    assert rule.permits(case({}))


def test_the_first_refusing_rule_is_named_in_the_order_of_the_list() -> None:
    assert [rule.field for rule in RULES] == [
        *("allowedCommands", "allowInterpreters", "allowedNetworks", "allowedUsers", "allowedWorkDirs"),
        *("allowedEnvironment", "maxTimeout", "maxDuration", "allowInteractive", "allowTty"),
    ]
    everything = {"user": "root", "work_dir": "/etc", "environment": {"X": "y"}, "timeout": 7 * 86400, "tty": True}
    granted: dict[str, Any] = {}
    for field, value in (
        ("allowedCommands", {"allowed_commands": ("/bin/sh",)}),
        ("allowInterpreters", {"allow_interpreters": True, "allowed_networks": ("10.0.0.0/8",)}),
        ("allowedNetworks", {"allowed_networks": ()}),
        ("allowedUsers", {"allowed_users": ("root",)}),
        ("allowedWorkDirs", {"allowed_work_dirs": ("/etc",)}),
        ("allowedEnvironment", {"allowed_environment": ("X",)}),
        ("maxTimeout", {"max_timeout": 7 * 86400, "max_duration": 60}),
        ("maxDuration", {"max_duration": None}),
        ("allowInteractive", {"allow_interactive": True}),
        ("allowTty", {"allow_tty": True}),
    ):
        rule = refusing_rule(case(granted, "/bin/sh", interactive=True, **everything))
        assert rule is not None
        assert rule.field == field
        granted |= value
    assert refusing_rule(case(granted, "/bin/sh", interactive=True, **everything)) is None


@pytest.mark.parametrize(("interactive", "permitted"), [(True, True), (False, False)])
def test_the_duration_of_interactive_requests_replaces_the_longest_timeout(interactive: bool, permitted: bool) -> None:
    policy = {"max_timeout": "10m", "max_duration": "8h"}
    assert Timeout().permits(case(policy, timeout="2h", interactive=interactive)) is permitted


#: Fields of a policy that no rule reads, and what reads them.
NO_RULE = {
    "name": "names the policy",
    "subjects": "CompiledPolicy.applies_to",
    "agents": "CompiledPolicy.applies_to",
    "deniedCommands": "a denial, which wins over every grant",
    "executableSha256": "the grant",
    "limits": "the grant",
    "output": "the grant",
    "capabilities": "the grant",
    "killGrace": "the grant",
    "idleTimeout": "the grant",
    "detachedTimeout": "the grant",
    "isolation": "the grant",
    "tmp": "the grant",
    "hostAccess": "the decision",
    "rateLimit": "admission",
    "maxTargets": "admission",
    "maxTargetsPercent": "admission",
    "requireApproval": "the decision",
    "requireApprovalAbove": "the decision",
    "approvers": "the decision",
    "observers": "the decision",
    "record": "the decision",
    "recordInput": "the decision",
    "players": "the decision",
    "approvalTimeout": "the decision",
}


def test_every_field_of_a_policy_is_decided_by_a_rule_or_elsewhere() -> None:
    fields = {info.alias for info in ExecPolicy.model_fields.values()}
    assert {rule.field for rule in RULES} | set(NO_RULE) == fields
    assert not {rule.field for rule in RULES} & set(NO_RULE)


#: The rule for each field of a request, or why it needs none.
DECIDED_BY = {
    "command": "allowedCommands",
    "user": "allowedUsers",
    "work_dir": "allowedWorkDirs",
    "environment": "allowedEnvironment",
    "timeout": "maxTimeout",
    "interactive": "allowInteractive",
    "tty": "allowTty",
    "agent_id": "CompiledPolicy.applies_to",
    "requested_by": "CompiledPolicy.applies_to",
    "id": "a name",
    "request_time": "a claim of the requester",
    "stdin": "data",
    "limits": "they only lower those of the policy",
    "isolation": "it only raises that of the policy",
    "terminal": "a property of the terminal that allowTty permits",
}


def test_every_field_of_a_request_is_decided_on() -> None:
    assert set(DECIDED_BY) == set(ExecRequest.model_fields)


def test_a_case_keeps_programs_in_search_order_and_drops_interpreters() -> None:
    policy = CompiledPolicy(
        ExecPolicy(name="p", subjects=("**",), agents=("*",), allowed_commands=("/bin/x", "/usr/bin/*", "/bin/sh"))
    )
    seen = Case(policy, ExecRequest(agent_id="a", command=("x",)), ["/usr/bin/x", "/sbin/x", "/bin/x", "/bin/sh"])
    assert [(executable.path, executable.named) for executable in seen.matching] == [
        ("/usr/bin/x", False),
        ("/bin/x", True),
        ("/bin/sh", True),
    ]
    assert [executable.path for executable in seen.executables] == ["/usr/bin/x", "/bin/x"]


@pytest.mark.parametrize(
    ("patterns", "name", "permitted"),
    [
        (("*",), "APP_MODE", True),
        (("APP_*",), "APP_PATH", True),
        (("*",), "APP_PATH", False),
        (("*",), "DBUS_SYSTEM_BUS_ADDRESS", False),
        (("DBUS_*",), "DBUS_SYSTEM_BUS_ADDRESS", False),
        (("DBUS_*", "DBUS_SYSTEM_BUS_ADDRESS"), "DBUS_SYSTEM_BUS_ADDRESS", True),
        (("{APP_*,*}",), "THEIR_EDITOR", False),
        (("{MANPAGER,X}",), "MANPAGER", True),
        (("LD_PRELOAD",), "LD_PRELOAD", False),
        (("BASH_ENV", "*"), "BASH_ENV", False),
        (("PAGER",), "PAGER", True),
        (("{EDITOR,VISUAL}",), "VISUAL", True),
        (("GIT_SSH_COMMAND", "*"), "GIT_SSH_COMMAND", True),
        (("PYTHONPATH",), "PYTHONPATH", True),
        (("*",), "PAGER", False),
        (("GIT_*",), "GIT_SSH_COMMAND", False),
        (("PAGE*", "[E]DITOR"), "EDITOR", False),
        (("XDG_*",), "XDG_CONFIG_HOME", False),
    ],
)
def test_a_variable_that_steers_programs_needs_its_whole_name(
    patterns: tuple[str, ...], name: str, permitted: bool
) -> None:
    found = case({"allowed_environment": patterns}, environment={name: "x"})
    assert (found.refused_variable == "") is permitted


@pytest.mark.parametrize(
    ("entry", "command", "values", "permitted"),
    [
        ("/usr/bin/systemctl {status,restart} {nginx,app-*}.service", "systemctl restart nginx.service", {}, True),
        ("/usr/bin/systemctl ...", "systemctl edit nginx", {}, False),
        ("/usr/bin/systemctl restart ...", "systemctl restart nginx", {}, False),
        ("/usr/bin/systemctl * nginx", "systemctl edit nginx", {}, False),
        ("/usr/bin/* ...", "busctl status", {}, False),
        ("/usr/bin/ip addr show", "ip addr show", {}, True),
        ("/usr/bin/ssh-keygen -lf *", "ssh-keygen -lf x", {}, True),
        ("/usr/bin/ssh-keygen ...", "ssh-keygen -D x", {}, False),
        ("/usr/bin/journalctl -u nginx ...", "journalctl -u nginx -n 5", {}, True),
        ("/usr/bin/journalctl -u nginx ...", "journalctl -u nginx", {"tty": True}, False),
        ("/usr/bin/editor x", "editor x", {}, False),
        ("/usr/bin/vim.basic x", "vim.basic x", {}, False),
        ("/usr/bin/uptime ...", "uptime -p", {}, True),
    ],
)
def test_a_program_that_can_run_others_is_granted_by_its_kind(
    entry: str, command: str, values: dict[str, Any], permitted: bool
) -> None:
    program, *arguments = command.split()
    for allow in (False, True):
        policy = {"allowed_commands": (entry,), "allow_interpreters": allow}
        found = case(policy, f"/usr/bin/{program}", *arguments, **values)
        assert found.matching
        assert bool(found.executables) is (permitted or allow)
