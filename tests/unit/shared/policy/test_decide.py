"""Decisions, and the file they come from."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.errors import ConfigurationError, InvalidRequest
from tachikoma.policy.decide import PolicySet
from tachikoma.policy.decision import Decision, may_observe
from tachikoma.vocabulary.requests import ExecRequest, make_request

ALICE = "spiffe://tachikoma.local/user/alice"
SEARCH = ("/usr/local/bin", "/usr/bin", "/bin")
#: Links of the kernel to the files of the process that follows them (proc(5)).
OWN_PROC = "/proc/self"


def policies(*entries: dict[str, Any], operators: Sequence[str] = ()) -> PolicySet:
    """A set of policies, as a file would give it (JSON is YAML); each is for everybody and every agent."""
    filled = [
        {"name": f"p{number}", "subjects": ["**"], "agents": ["*"], **entry} for number, entry in enumerate(entries)
    ]
    return PolicySet.parse(json.dumps({"operators": list(operators), "policies": filled}), "policy.yaml")


def decide(entry: PolicySet | dict[str, Any], *command: str, subject: str = ALICE, **values: Any) -> Decision:
    chosen = entry if isinstance(entry, PolicySet) else policies(entry)
    request = ExecRequest(**{"agent_id": "web-1", "command": command, "timeout": "1m", **values})
    return chosen.decide(request, subject, SEARCH)


# --- networks ---------------------------------------------------------------------------------------------------------


NETWORKS = {"allowedCommands": ["/bin/true"], "allowedNetworks": ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]}


def decide_from(entry: PolicySet | dict[str, Any], address: str) -> Decision:
    chosen = entry if isinstance(entry, PolicySet) else policies(entry)
    request = ExecRequest(agent_id="web-1", command=("/bin/true",))
    return chosen.decide(request, ALICE, SEARCH, address=address)


@pytest.mark.parametrize("address", ["10.0.0.0", "10.255.255.255", "192.0.2.7", "2001:db8::1"])
def test_a_request_from_an_allowed_network_is_allowed(address: str) -> None:
    assert decide_from(NETWORKS, address).allowed


@pytest.mark.parametrize("address", ["9.255.255.255", "11.0.0.0", "192.0.2.8", "2001:db9::1", "::ffff:10.0.0.1", "::"])
def test_a_request_from_another_network_is_denied_by_that_rule(address: str) -> None:
    decision = decide_from(NETWORKS, address)
    assert (decision.allowed, decision.rule) == (False, "allowedNetworks")
    assert decision.reason == f"policy p0 does not allow requests from {address}"


@pytest.mark.parametrize("address", ["", "unknown", "10.0.0.1:80", "10.0.0.1\n", " 10.0.0.1", "010.0.0.1", "10.1"])
def test_an_address_that_is_not_known_is_in_no_network(address: str) -> None:
    assert decide_from(NETWORKS, address).rule == "allowedNetworks"
    assert decide_from({"allowedCommands": ["/bin/true"]}, address).allowed


def test_one_policy_must_allow_network_and_command_together() -> None:
    here, there = {**NETWORKS, "allowedCommands": ["/bin/false"]}, {**NETWORKS, "allowedNetworks": ["198.51.100.0/24"]}
    assert decide_from(policies(here, there), "10.0.0.1").rule == "allowedNetworks"
    assert decide_from(policies(here, there), "198.51.100.1").allowed


def test_a_denied_command_is_denied_from_everywhere() -> None:
    chosen = policies(NETWORKS, {"allowedNetworks": ["198.51.100.0/24"], "deniedCommands": ["/bin/true"]})
    assert decide_from(chosen, "10.0.0.1").rule == "deniedCommands: /bin/true"


@given(
    st.ip_addresses(), st.ip_addresses().flatmap(lambda ip: st.tuples(st.just(ip), st.integers(0, ip.max_prefixlen)))
)
def test_a_network_means_its_addresses_and_no_other(address: Any, chosen: tuple[Any, int]) -> None:
    network = ip_network(chosen, strict=False)
    entry = {"allowedCommands": ["/bin/true"], "allowedNetworks": [str(network)]}
    assert decide_from(entry, str(address)).allowed == (address in network)
    assert decide_from(entry, str(chosen[0])).allowed


# --- default deny -----------------------------------------------------------------------------------------------------


def test_nothing_is_allowed_without_a_policy() -> None:
    decision = decide(policies(), "/bin/true")
    assert not decision.allowed
    assert (decision.policy, decision.rule, decision.executables) == ("", "default", ())
    assert ALICE in decision.reason


def test_a_policy_that_lists_nothing_allows_nothing() -> None:
    decision = decide({}, "/bin/true")
    assert (decision.allowed, decision.rule) == (False, "allowedCommands")


def test_a_granted_request_names_policy_and_executable() -> None:
    decision = decide({"name": "web", "allowedCommands": ["/bin/true"]}, "/bin/true")
    assert decision.allowed
    assert decision.policy.startswith("web@")
    assert decision.executables == ("/bin/true",)
    assert decision.timeout == timedelta(minutes=1)


@pytest.mark.parametrize(
    ("subject", "allowed"),
    [
        ("spiffe://tachikoma.local/user/alice", True),
        ("spiffe://tachikoma.local/user/bob", True),
        ("spiffe://tachikoma.local/user/alice/x", False),
        ("spiffe://tachikoma.local/user/", True),
        ("spiffe://tachikoma.local/service/alice", False),
        ("spiffe://other.local/user/alice", False),
        ("spiffe://tachikoma.local.evil/user/alice", False),
        ("spiffe://evil/tachikoma.local/user/alice", False),
        ("spiffe://tachikoma.local/user/..", False),
        ("xspiffe://tachikoma.local/user/alice", False),
    ],
)
def test_a_policy_is_for_its_subjects_only(subject: str, allowed: bool) -> None:
    entry = {"subjects": ["spiffe://tachikoma.local/user/*"], "allowedCommands": ["/bin/true"]}
    assert decide(entry, "/bin/true", subject=subject).allowed == allowed


@pytest.mark.parametrize(("agent", "allowed"), [("web-1", True), ("web-", True), ("web", False), ("xweb-1", False)])
def test_a_policy_is_for_its_agents_only(agent: str, allowed: bool) -> None:
    entry = {"agents": ["web-*"], "allowedCommands": ["/bin/true"]}
    assert decide(entry, "/bin/true", agent_id=agent).allowed == allowed


# --- the adversarial cases of facts/security.md -----------------------------------------------------------------------

#: One careful policy.
CAREFUL: dict[str, Any] = {
    "allowedCommands": [
        "/usr/bin/uptime -p",
        "/usr/bin/systemctl restart nginx.service",
        "/usr/bin/tail -n [0-9] /var/log/**",
        "/usr/bin/rm -- /srv/tmp/*",
        "/usr/bin/app app-[0-9]",
    ],
    "allowedUsers": ["web"],
    "allowedWorkDirs": ["/srv/**"],
    "allowedEnvironment": ["APP_*", "LANG"],
}


@pytest.mark.parametrize(
    "command",
    [
        ["/usr/bin/uptime", "-p"],
        ["uptime", "-p"],
        ["/usr/bin/systemctl", "restart", "nginx.service"],
        ["/usr/bin/tail", "-n", "5", "/var/log/nginx/access.log"],
        ["/usr/bin/rm", "--", "/srv/tmp/x"],
        ["/usr/bin/app", "app-7"],
    ],
)
def test_what_the_careful_policy_means_is_allowed(command: list[str]) -> None:
    decision = decide(CAREFUL, *command)
    assert decision.allowed
    assert all(path.startswith("/usr/bin/") for path in decision.executables)


@pytest.mark.parametrize(
    "command",
    [
        # the path, written in other ways
        ["/usr/bin/uptime\n", "-p"],
        ["\n/usr/bin/uptime", "-p"],
        ["/usr/bin/upt\u0456me", "-p"],  # a Cyrillic i
        ["/usr/bin/uptime\u200b", "-p"],
        ["//usr/bin/uptime", "-p"],
        ["/usr//bin/uptime", "-p"],
        ["/usr/bin/../bin/uptime", "-p"],
        ["/usr/bin/./uptime", "-p"],
        ["./uptime", "-p"],
        ["../usr/bin/uptime", "-p"],
        ["usr/bin/uptime", "-p"],
        ["/usr/bin/uptime/", "-p"],
        ["/usr/bin/UPTIME", "-p"],
        ["/USR/bin/uptime", "-p"],
        ["UPTIME", "-p"],
        ["/bin/uptime", "-p"],
        ["/usr/local/bin/uptime", "-p"],
        ["/usr/bin/uptime -p"],
        ["uptime -p"],
        [f"{OWN_PROC}/cwd/usr/bin/uptime", "-p"],
        ["/".join((OWN_PROC, "root", "usr/bin/uptime")), "-p"],
        [f"{OWN_PROC}/exe", "-p"],
        ["/lib64/ld-linux-x86-64.so.2", "/usr/bin/uptime", "-p"],
        ["ld-linux-x86-64.so.2", "/usr/bin/uptime", "-p"],
        [".", "-p"],
        ["..", "-p"],
        # arguments: too many, too few, others
        ["/usr/bin/uptime"],
        ["/usr/bin/uptime", "-p", "-p"],
        ["/usr/bin/uptime", "-p", ""],
        ["/usr/bin/uptime", ""],
        ["/usr/bin/uptime", "-P"],
        ["/usr/bin/uptime", " -p"],
        ["/usr/bin/systemctl", "restart", "nginx.service;id"],
        ["/usr/bin/systemctl", "restart", "xnginx.service"],
        ["/usr/bin/systemctl", "restart", "nginxAservice"],
        ["/usr/bin/systemctl", "restart", "nginx.service\n"],
        ["/usr/bin/systemctl", "restart", "nginx.service", "sshd.service"],
        ["/usr/bin/systemctl", "restart nginx.service"],
        ["/usr/bin/systemctl", "--root=/x", "restart", "nginx.service"],
        ["/usr/bin/tail", "-n", "\u0665", "/var/log/x"],  # an Arabic digit
        ["/usr/bin/tail", "-n", "55", "/var/log/x"],
        ["/usr/bin/tail", "-n", "5", "/var/log/../../etc/shadow"],
        ["/usr/bin/tail", "-n", "5", "/var/log/.."],
        ["/usr/bin/tail", "-n", "5", "/var/logs/x"],
        ["/usr/bin/tail", "-n", "5", "/etc/shadow"],
        ["/usr/bin/tail", "-n", "5", "-f"],
        ["/usr/bin/tail", "-n", "5", "--follow=/var/log/x"],
        ["/usr/bin/rm", "/srv/tmp/x"],
        ["/usr/bin/rm", "--", "-rf"],
        ["/usr/bin/rm", "--", "/srv/tmp/../x"],
        ["/usr/bin/rm", "--", "/srv/tmp/a/b"],
        ["/usr/bin/app", "app-$(id)"],
        ["/usr/bin/app", "app-*"],
        ["/usr/bin/app", "app-"],
        # other programs
        ["/bin/sh", "-c", "/usr/bin/uptime -p"],
        ["env", "uptime", "-p"],
    ],
    ids=lambda command: " ".join(command).encode("unicode_escape").decode(),
)
def test_what_the_careful_policy_does_not_mean_is_refused(command: list[str]) -> None:
    decision = decide(CAREFUL, *command)
    assert not decision.allowed
    assert decision.executables == ()
    assert decision.reason


@pytest.mark.parametrize("command", [["/usr/bin/uptime\0", "-p"], ["", "-p"], [], ["/usr/bin/uptime", "-p\0"]])
def test_some_never_come_so_far(command: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        make_request({"agent_id": "web-1", "command": command})


@pytest.mark.parametrize("user", ["#-1", "-1", "0", "#0", "4294967295"])
def test_a_user_by_number_never_comes_so_far(user: str) -> None:
    with pytest.raises(InvalidRequest):
        make_request({"agent_id": "web-1", "command": ["/usr/bin/uptime", "-p"], "user": user})


@pytest.mark.parametrize(("user", "allowed"), [("", True), ("web", True), ("root", False), ("web-x", False)])
def test_a_user_must_be_listed(user: str, allowed: bool) -> None:
    assert decide(CAREFUL, "/usr/bin/uptime", "-p", user=user).allowed == allowed


def test_without_users_only_the_agents_own_is_allowed() -> None:
    entry = {"allowedCommands": ["/bin/true"]}
    assert decide(entry, "/bin/true").allowed
    assert decide(entry, "/bin/true", user="web").rule == "allowedUsers"


@pytest.mark.parametrize(
    ("work_dir", "allowed"),
    [
        ("", True),
        ("/srv/app", True),
        ("/srv/app/a b", True),
        ("/srv", False),
        ("/", False),
        ("/srvx/app", False),
        ("/srv/../etc", False),
        ("/srv/app/..", False),
        ("/srv/app/", False),
        ("/srv//app", False),
        ("//srv/app", False),
        ("/srv/./app", False),
        ("/proc/self/cwd", False),
    ],
)
def test_a_working_directory_must_be_listed_and_plainly_written(work_dir: str, allowed: bool) -> None:
    assert decide(CAREFUL, "/usr/bin/uptime", "-p", work_dir=work_dir).allowed == allowed


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("APP_MODE", True),
        ("LANG", True),
        ("LD_PRELOAD", False),
        ("LD_LIBRARY_PATH", False),
        ("GLIBC_TUNABLES", False),
        ("BASH_FUNC_ls%%", False),
        ("TZ", False),
        ("app_mode", False),
        ("XAPP_MODE", False),
        ("LANG\n", False),
        ("", False),
    ],
)
def test_a_variable_must_be_listed(name: str, allowed: bool) -> None:
    if not name:
        with pytest.raises(InvalidRequest):
            make_request({"agent_id": "a", "command": ["x"], "environment": {name: "x"}})
        return
    decision = decide(CAREFUL, "/usr/bin/uptime", "-p", environment={"APP_X": "1", name: "C.UTF-8"})
    assert decision.allowed == allowed
    assert allowed or decision.rule == "allowedEnvironment"


@pytest.mark.parametrize("name", ["PATH", "HOME", "USER", "LOGNAME"])
def test_what_the_agent_sets_nobody_else_sets(name: str) -> None:
    entry = {"allowedCommands": ["/bin/true"], "allowedEnvironment": ["**", name]}
    assert decide(entry, "/bin/true", environment={name: "x"}).rule == "allowedEnvironment"


def test_a_timeout_longer_than_the_policys_is_refused_and_told() -> None:
    entry = {"allowedCommands": ["/bin/true"], "maxTimeout": "5m"}
    assert decide(entry, "/bin/true", timeout="5m").allowed
    decision = decide(entry, "/bin/true", timeout="5m1us")
    assert (decision.allowed, decision.rule) == (False, "maxTimeout")
    assert "at most 5m" in decision.reason


@pytest.mark.parametrize(("longest", "given"), [("5m", "5m"), ("24h", "1h"), (None, "1h")])
def test_a_request_without_timeout_gets_the_policys_at_most_an_hour(longest: str | None, given: str) -> None:
    entry = {"allowedCommands": ["/bin/true"], **({"maxTimeout": longest} if longest else {})}
    expected = ExecRequest(agent_id="a", command=["x"], timeout=given).timeout
    assert decide(entry, "/bin/true", timeout=None).timeout == expected


@pytest.mark.parametrize(("field", "rule"), [("interactive", "allowInteractive"), ("tty", "allowTty")])
def test_interaction_must_be_allowed(field: str, rule: str) -> None:
    entry = {"allowedCommands": ["/bin/true"]}
    assert decide(entry, "/bin/true", **{field: True}).rule == rule
    assert decide({**entry, rule: True}, "/bin/true", **{field: True}).allowed


BOSS = "spiffe://tachikoma.local/user/boss"
APPROVED = {"allowedCommands": ["/bin/true"], "requireApproval": True, "approvers": [BOSS, ALICE]}


def test_what_needs_an_approval_names_those_who_may_give_it() -> None:
    decision = decide({**APPROVED, "approvalTimeout": "5m"}, "/bin/true")
    assert (decision.allowed, decision.approvers) == (True, (BOSS, ALICE))
    assert decision.approval_timeout == timedelta(minutes=5)
    assert decide({"allowedCommands": ["/bin/true"], "approvers": [BOSS]}, "/bin/true").approvers == ()


def test_observers_are_those_of_the_policy_that_grants_an_interactive_request() -> None:
    entry = {"allowedCommands": ["/bin/true"], "allowInteractive": True, "observers": [BOSS]}
    decision = decide(entry, "/bin/true", interactive=True)
    assert decision.observers == (BOSS,)
    assert may_observe(decision.observers, BOSS)
    assert not may_observe(decision.observers, ALICE)
    assert decide(entry, "/bin/true").observers == ()
    assert decide({**entry, "observers": []}, "/bin/true", interactive=True).observers == ()
    with pytest.raises(ConfigurationError, match=r"observers\[0\]: "):
        policies({**entry, "observers": ["a{b"]})


def test_nobody_approves_their_own_request_or_without_being_named() -> None:
    decision = decide(APPROVED, "/bin/true")
    assert decision.approvable_by(BOSS, ALICE)
    assert not decision.approvable_by(ALICE, ALICE)
    assert not decision.approvable_by("spiffe://tachikoma.local/user/bob", ALICE)
    everybody = decide({**APPROVED, "approvers": ["**"]}, "/bin/true")
    assert everybody.approvable_by("spiffe://tachikoma.local/user/bob", ALICE)
    assert not everybody.approvable_by("", ALICE)
    assert not decide({"allowedCommands": ["/bin/true"]}, "/bin/true").approvable_by(BOSS, ALICE)


def test_a_policy_that_grants_it_all_without_an_approval_is_enough() -> None:
    free = {"name": "z-free", "allowedCommands": ["/bin/true"]}
    asking = {"name": "a-asking", **APPROVED}
    for both in (policies(free, asking), policies(asking, free)):
        assert decide(both, "/bin/true").policy.startswith("z-free@")
        assert decide(both, "/bin/true").approvers == ()


def test_an_approval_that_nobody_could_give_is_a_mistake() -> None:
    with pytest.raises(ConfigurationError, match="requireApproval is set, but approvers is empty"):
        policies({"allowedCommands": ["/bin/true"], "requireApproval": True})
    with pytest.raises(ConfigurationError, match=r"approvers\[0\]: "):
        policies({**APPROVED, "approvers": ["a{b"]})
    with pytest.raises(ConfigurationError, match="approvalTimeout"):
        policies({**APPROVED, "approvalTimeout": "0s"})


def test_approvers_that_are_never_asked_are_hardly_meant() -> None:
    found = policies({"allowedCommands": ["/bin/true"], "approvers": [BOSS]}).warnings()
    assert any("approvers has no effect: requireApproval is not set" in warning for warning in found)


# --- denied commands --------------------------------------------------------------------------------------------------

#: Everything but some; how the development stack is set up.
OPEN: dict[str, Any] = {"allowedCommands": ["/** ..."], "deniedCommands": ["rm", "/sbin/reboot", "git push"]}


@pytest.mark.parametrize(
    "command",
    [
        ["rm"],
        ["rm", "-rf", "/"],
        ["/bin/rm", "x"],
        ["/usr/bin/rm", "x"],
        ["/opt/evil/rm", "x"],
        ["/sbin/reboot"],
        ["/sbin/reboot", "now"],
        ["git", "push"],
        ["/usr/bin/git", "push", "origin", "main"],
    ],
)
def test_a_denied_command_is_refused_whatever_allows_it(command: list[str]) -> None:
    decision = decide(OPEN, *command)
    assert not decision.allowed
    assert decision.rule.startswith("deniedCommands: ")


@pytest.mark.parametrize("command", [["/bin/true"], ["true"], ["git", "pull"], ["/bin/rmdir", "x"], ["rmdir", "x"]])
def test_what_is_not_denied_is_still_allowed(command: list[str]) -> None:
    assert decide({**OPEN, "allowInterpreters": True}, *command).allowed


def test_a_bare_name_is_refused_when_any_place_of_it_is_denied() -> None:
    entry = {"allowedCommands": ["/** ..."], "deniedCommands": ["/usr/bin/x"]}
    assert not decide(entry, "x").allowed
    assert not decide(entry, "/usr/bin/x").allowed
    assert decide(entry, "/bin/x").allowed


def test_a_denial_of_one_policy_wins_over_the_grant_of_another() -> None:
    chosen = policies({"allowedCommands": ["/** ..."]}, {"deniedCommands": ["rm"]})
    assert not decide(chosen, "rm", "x").allowed


def test_a_denial_for_somebody_else_does_not_concern_us() -> None:
    chosen = policies(
        {"allowedCommands": ["/** ..."]}, {"subjects": ["spiffe://tachikoma.local/user/bob"], "deniedCommands": ["rm"]}
    )
    assert decide(chosen, "rm", "x").allowed


@pytest.mark.parametrize("program", [".", ".."])
def test_a_dot_is_no_program(program: str) -> None:
    assert not decide(OPEN, program).allowed


# --- bare names -------------------------------------------------------------------------------------------------------


def test_a_bare_name_is_granted_only_where_the_policy_says_in_search_order() -> None:
    entry = {"allowedCommands": ["/bin/x", "/usr/bin/x"]}
    assert decide(entry, "x").executables == ("/usr/bin/x", "/bin/x")
    assert decide({"allowedCommands": ["/bin/x"]}, "x").executables == ("/bin/x",)
    assert decide({"allowedCommands": ["/opt/x"]}, "x").executables == ()


# --- which policy is named --------------------------------------------------------------------------------------------


def test_the_policy_that_came_closest_is_named() -> None:
    chosen = policies(
        {"name": "aaa", "allowedCommands": ["/bin/false"]},
        {"name": "mmm", "allowedCommands": ["/bin/true"], "maxTimeout": "1s"},
        {"name": "zzz", "allowedCommands": ["/bin/false"]},
    )
    decision = decide(chosen, "/bin/true")
    assert (decision.rule, decision.policy.partition("@")[0]) == ("maxTimeout", "mmm")


def test_a_changed_policy_has_another_label_and_the_same_one_the_same() -> None:
    entry = {"name": "web", "allowedCommands": ["/bin/true"]}
    first = decide(entry, "/bin/true").policy
    assert decide(dict(reversed(entry.items())), "/bin/true").policy == first
    assert decide({**entry, "maxTimeout": "2m"}, "/bin/true").policy != first


def test_operators_are_those_listed() -> None:
    chosen = policies(operators=["spiffe://tachikoma.local/user/{alice,bob}"])
    assert chosen.is_operator(ALICE)
    assert not chosen.is_operator("spiffe://tachikoma.local/user/carol")
    assert not policies().is_operator(ALICE)


# --- properties -------------------------------------------------------------------------------------------------------

#: A small world, in which requests and policies often meet. No wildcards: what they mean is tested with the patterns.
USERS = ["web", "db"]
DIRECTORIES = ["/srv", "/tmp"]
NAMES = ["A", "B"]
PROGRAMS = ["/bin/x", "/usr/bin/x", "/bin/y"]
ARGUMENTS = ["", " a", " a b"]
SUBJECTS = [ALICE, "spiffe://tachikoma.local/user/bob"]
AGENTS = ["web-1", "web-2"]
LINES = [program + arguments for program in PROGRAMS for arguments in ARGUMENTS]
DENIALS = [*LINES, "x", "y", "x a"]


def some(values: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), unique=True)


ENTRIES = st.fixed_dictionaries(
    {
        "subjects": st.lists(st.sampled_from(SUBJECTS), min_size=1, unique=True),
        "agents": st.lists(st.sampled_from(AGENTS), min_size=1, unique=True),
        "allowedCommands": some(LINES),
        "deniedCommands": st.lists(st.sampled_from(DENIALS), max_size=1),
        "allowedUsers": some(USERS),
        "allowedWorkDirs": some(DIRECTORIES),
        "allowedEnvironment": some(NAMES),
        "maxTimeout": st.sampled_from(["1m", "1h"]),
        "allowTty": st.booleans(),
        "allowInteractive": st.booleans(),
        "requireApproval": st.booleans(),
        "approvers": st.just([BOSS]),
    }
)
REQUESTS = st.fixed_dictionaries(
    {
        "id": st.just("e"),
        "agent_id": st.sampled_from(AGENTS),
        "command": st.tuples(st.sampled_from([*PROGRAMS, "x", "y"]), st.sampled_from([(), ("a",), ("a", "b")])).map(
            lambda parts: (parts[0], *parts[1])
        ),
        "user": st.sampled_from(["", "", *USERS]),
        "work_dir": st.sampled_from(["", "", *DIRECTORIES]),
        "environment": st.dictionaries(st.sampled_from(NAMES), st.just("1"), max_size=1),
        "timeout": st.sampled_from([None, "1m", "2m"]),
        "tty": st.booleans(),
        "interactive": st.booleans(),
    }
).map(lambda values: ExecRequest(**values))


def wholly_granted(entry: dict[str, Any], request: ExecRequest, subject: str) -> list[str]:
    """The paths one policy grants the whole request for, by membership alone."""
    if subject not in entry["subjects"] or request.agent_id not in entry["agents"]:
        return []
    if (request.tty and not entry["allowTty"]) or (request.interactive and not entry["allowInteractive"]):
        return []
    if request.user and request.user not in entry["allowedUsers"]:
        return []
    if request.work_dir and request.work_dir not in entry["allowedWorkDirs"]:
        return []
    if not set(request.environment) <= set(entry["allowedEnvironment"]):
        return []
    if request.timeout == timedelta(minutes=2) and entry["maxTimeout"] == "1m":
        return []
    return [path for path in paths(request) if " ".join([path, *request.command[1:]]) in entry["allowedCommands"]]


def paths(request: ExecRequest) -> list[str]:
    program = request.command[0]
    return [program] if "/" in program else [f"{folder}/{program}" for folder in SEARCH]


def denied(entry: dict[str, Any], request: ExecRequest, subject: str) -> bool:
    if subject not in entry["subjects"] or request.agent_id not in entry["agents"]:
        return False
    for line in entry["deniedCommands"]:
        program, *arguments = line.split()
        for path in paths(request):
            name = path if "/" in program else path.rpartition("/")[2]
            if name == program and list(request.command[1 : 1 + len(arguments)]) == arguments:
                return True
    return False


@given(st.lists(ENTRIES, max_size=4), REQUESTS, st.sampled_from(SUBJECTS))
def test_a_request_is_allowed_exactly_when_one_policy_wholly_grants_it_and_none_denies_it(
    entries: list[dict[str, Any]], request: ExecRequest, subject: str
) -> None:
    decision = policies(*entries).decide(request, subject, SEARCH)
    grants = [granted for entry in entries if (granted := wholly_granted(entry, request, subject))]
    assert decision.allowed == (bool(grants) and not any(denied(entry, request, subject) for entry in entries))
    if decision.allowed:
        assert list(decision.executables) in grants
        assert decision.timeout == (request.timeout or decision.timeout) > timedelta(0)
        free = [entry for entry in entries if not entry["requireApproval"]]
        assert bool(decision.approvers) != any(wholly_granted(entry, request, subject) for entry in free)
    else:
        assert decision.executables == ()


@given(st.lists(ENTRIES, min_size=1, max_size=4), REQUESTS, st.sampled_from(SUBJECTS), st.data())
def test_one_more_denial_never_allows_more(
    entries: list[dict[str, Any]], request: ExecRequest, subject: str, data: st.DataObject
) -> None:
    before = policies(*entries).decide(request, subject, SEARCH)
    chosen = data.draw(st.integers(0, len(entries) - 1))
    more = [*entries[chosen]["deniedCommands"], data.draw(st.sampled_from([*DENIALS, "*", "/**", "x *", "x -*"]))]
    after = policies(*entries[:chosen], {**entries[chosen], "deniedCommands": more}, *entries[chosen + 1 :]).decide(
        request, subject, SEARCH
    )
    assert before.allowed or not after.allowed
    assert not after.allowed or after.executables in _grants(entries, request, subject)


def _grants(entries: list[dict[str, Any]], request: ExecRequest, subject: str) -> list[tuple[str, ...]]:
    return [tuple(wholly_granted(entry, request, subject)) for entry in entries]


@given(st.lists(ENTRIES, max_size=4), REQUESTS, st.sampled_from(SUBJECTS), st.randoms(use_true_random=False))
def test_the_order_of_policies_does_not_matter(
    entries: list[dict[str, Any]], request: ExecRequest, subject: str, shuffle: random.Random
) -> None:
    named = [{"name": f"n{number}", **entry} for number, entry in enumerate(entries)]
    before = policies(*named).decide(request, subject, SEARCH)
    shuffle.shuffle(named)
    after = policies(*named).decide(request, subject, SEARCH)
    assert before == after


def test_nor_does_it_matter_for_what_is_told_of_a_denial() -> None:
    one = {"name": "one", "allowedCommands": ["/** ..."], "deniedCommands": ["rm"]}
    two = {"name": "two", "deniedCommands": ["/bin/rm"]}
    assert decide(policies(one, two), "/bin/rm") == decide(policies(two, one), "/bin/rm")


@given(st.lists(ENTRIES, max_size=3), REQUESTS, st.sampled_from(SUBJECTS))
def test_deciding_twice_gives_the_same(entries: list[dict[str, Any]], request: ExecRequest, subject: str) -> None:
    chosen = policies(*entries)
    assert chosen.decide(request, subject, SEARCH) == chosen.decide(request, subject, SEARCH)


# --- what runs whatever it is told to ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [
        *("/bin/sh", "bash", "/usr/bin/env", "busybox", "find", "xargs", "/usr/bin/python3.11", "perl5.36.0", "sudo"),
        *("/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1", "x86_64-linux-gnu-gcc-12", "tar", "git", "nice"),
    ],
)
def test_interpreters_and_launchers_need_a_word_of_their_own(program: str) -> None:
    decision = decide({"allowedCommands": ["/** ..."]}, program, "rm")
    assert (decision.allowed, decision.rule) == (False, "allowInterpreters")
    assert "can run any other program" in decision.reason
    assert decide({"allowedCommands": ["/** ..."], "allowInterpreters": True}, program, "rm").allowed


@pytest.mark.parametrize("program", ["/usr/bin/uptime", "ls", "journalctl", "/opt/shell/app", "pythonic", "findmnt"])
def test_what_only_sounds_like_one_does_not(program: str) -> None:
    assert decide({"allowedCommands": ["/** ..."]}, program).allowed


def test_a_grant_takes_every_denied_command_of_its_subject_along() -> None:
    found = policies(
        {"name": "one", "allowedCommands": ["/bin/true"], "deniedCommands": ["rm"]},
        {"name": "two", "allowedCommands": ["/bin/false"], "deniedCommands": ["reboot", "rm"]},
        {"name": "other", "subjects": ["nobody"], "deniedCommands": ["halt"]},
    )
    grant = decide(found, "/bin/true").grant
    assert grant is not None
    assert grant.denied == ("reboot", "rm")
    assert not grant.interpreters


@pytest.mark.slow
def test_the_matching_work_of_all_policies_is_bounded_together() -> None:
    """A hundred policies and one argument of 120 kB: the request is denied by count, not after seconds of work."""
    entry = "  - {{name: p{}, subjects: ['**'], agents: ['*'], allowedCommands: ['/bin/x *a*b*c{}']}}\n"
    policies = PolicySet.parse("policies:\n" + "".join(entry.format(n, n) for n in range(100)), "p.yaml")
    for argument in ("x" * 120_000, "a" * 120_000, "abc" * 40_000):
        request = ExecRequest(agent_id="web-1", command=("/bin/x", argument))
        decision = policies.decide(request, "spiffe://x/user/a", ())
        assert (decision.allowed, decision.rule) == (False, "matching")
        assert "takes more than 1000000 steps" in decision.reason
        assert policies.is_large(request)
    small = ExecRequest(agent_id="web-1", command=("/bin/x", "abc7"))
    assert policies.decide(small, "spiffe://x/user/a", ()).allowed
    assert not policies.is_large(small)


@pytest.mark.parametrize(
    ("command", "work_dir", "allowed"),
    [
        ("cat /srv/x", "", True),
        ("cat x", "/srv", True),
        ("cat x", "", True),
        ("cat -A /etc/x", "", False),
        ("cat -- /etc/x", "", False),
        ("cat //etc/x", "", False),
        ("cat /etc/../etc/x", "", False),
        ("cat /dev/null /etc/x", "", False),
        ("cat x", "/etc", False),
        ("cat ../etc/x", "/srv", False),
    ],
)
def test_a_denied_argument_is_denied_in_every_spelling(command: str, work_dir: str, allowed: bool) -> None:
    policies = PolicySet.parse(
        "policies: [{name: p, subjects: ['**'], agents: ['*'], allowedCommands: ['/bin/cat ...'], "
        "allowedWorkDirs: ['/**'], deniedCommands: ['cat /etc/**']}]",
        "p.yaml",
    )
    request = ExecRequest(agent_id="a", command=tuple(command.split()), work_dir=work_dir)
    assert policies.decide(request, "spiffe://x/user/a", ("/bin",)).allowed is allowed


def test_too_many_marked_arguments_are_all_masked() -> None:
    policies = PolicySet.parse(
        "policies: [{name: p, subjects: ['**'], agents: ['*'], allowedCommands: ['/bin/x *a*b* <*>']}]", "p.yaml"
    )
    assert policies.secrets(("/bin/x", "aab", "s", "t"), ()) == {2}
    assert policies.secrets(("/bin/x", "a" * 120_000, "s", "t"), ()) == {1, 2, 3}


# --- requests that were admitted --------------------------------------------------------------------------------------


LOGIN: dict[str, Any] = {"allowedNetworks": ["10.0.0.0/8"], "allowInteractive": True}


def decide_again(entry: PolicySet, *command: str, granted_by: str, address: str = "10.1.2.3") -> Decision:
    request = ExecRequest(agent_id="web-1", command=command, timeout="1m", interactive=True)
    return entry.decide(request, ALICE, SEARCH, address=address, granted_by=granted_by)


@pytest.fixture
def login() -> PolicySet:
    return policies(LOGIN | {"allowedCommands": ["/usr/bin/deploy --password={first,second} shop"]})


def test_a_masked_word_is_no_loss_of_a_right_while_the_policy_is_unchanged(login: PolicySet) -> None:
    (policy,) = login.policies
    masked = ("deploy", "--password=***", "shop")
    assert not decide(login, *masked, interactive=True).allowed
    assert decide_again(login, *masked, granted_by=policy.label).allowed
    # Its other rules apply as before.
    denied = decide_again(login, *masked, granted_by=policy.label, address="192.0.2.7")
    assert (denied.allowed, denied.rule) == (False, "allowedNetworks")


def test_a_masked_word_needs_the_policy_that_granted_the_request(login: PolicySet) -> None:
    masked = ("deploy", "--password=***", "shop")
    assert not decide_again(login, *masked, granted_by="p0@000000000000").allowed
    other = policies(LOGIN | {"allowedCommands": ["/usr/bin/deploy --password={first,third} shop"]})
    assert not decide_again(other, *masked, granted_by=login.policies[0].label).allowed
    elsewhere = policies(LOGIN | {"allowedCommands": ["/usr/bin/deploy --password={a,b} shop"], "agents": ["db-*"]})
    assert not decide_again(elsewhere, *masked, granted_by=elsewhere.policies[0].label).allowed


def test_a_command_without_masked_words_is_decided_as_it_is(login: PolicySet) -> None:
    label = login.policies[0].label
    assert decide_again(login, "deploy", "--password=first", "shop", granted_by=label).allowed
    assert not decide_again(login, "deploy", "--password=third", "shop", granted_by=label).allowed


def test_a_denied_command_is_denied_again_whatever_is_masked() -> None:
    found = policies(
        {"allowedCommands": ["/usr/bin/deploy --password={a,b} shop"], "allowInteractive": True},
        {"deniedCommands": ["/usr/bin/deploy ..."]},
    )
    granting = next(policy.label for policy in found.policies if policy.allowed)
    denied = decide_again(found, "deploy", "--password=***", "shop", granted_by=granting)
    assert (denied.allowed, denied.rule.partition(":")[0]) == (False, "deniedCommands")
