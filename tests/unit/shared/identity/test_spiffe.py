"""SPIFFE IDs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId, agent_id, schedule_id, service_id, user_id

DOMAIN = "tachikoma.local"
ALICE = f"spiffe://{DOMAIN}/user/alice"
#: Like "alice", but its first letter is Cyrillic.
CYRILLIC = "\u0430lice"


@pytest.mark.parametrize(
    ("text", "trust_domain", "path"),
    [
        ("spiffe://tachikoma.local/user/alice", "tachikoma.local", "/user/alice"),
        ("spiffe://a/b", "a", "/b"),
        ("spiffe://a-b_c.d1/A/b-_.c/1", "a-b_c.d1", "/A/b-_.c/1"),
        ("spiffe://a/...", "a", "/..."),
        ("spiffe://1.2.3.4/x", "1.2.3.4", "/x"),
        ("spiffe://" + "a" * 255 + "/x", "a" * 255, "/x"),
        ("spiffe://a/" + "x" * 2037, "a", "/" + "x" * 2037),
    ],
)
def test_an_id_is_read(text: str, trust_domain: str, path: str) -> None:
    parsed = SpiffeId.parse(text)
    assert (parsed.trust_domain, parsed.path, str(parsed)) == (trust_domain, path, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe",
        "spiffe:",
        "spiffe:/a/b",
        "spiffe://",
        "spiffe:///user/alice",
        "https://tachikoma.local/user/alice",
        "SPIFFE://tachikoma.local/user/alice",
        "Spiffe://tachikoma.local/user/alice",
        " spiffe://tachikoma.local/user/alice",
        # nobody
        "spiffe://tachikoma.local",
        "spiffe://tachikoma.local/",
        # line ends, before and behind
        "spiffe://tachikoma.local/user/alice\n",
        "spiffe://tachikoma.local/user/alice\r\n",
        "spiffe://tachikoma.local\n/user/alice",
        "\nspiffe://tachikoma.local/user/alice",
        "spiffe://tachikoma.local/user\n/alice",
        # trust domains
        "spiffe://Tachikoma.local/user/alice",
        "spiffe://TACHIKOMA.LOCAL/user/alice",
        "spiffe://tachikoma.local:443/user/alice",
        "spiffe://alice@tachikoma.local/user/alice",
        "spiffe://tachi%6boma.local/user/alice",
        "spiffe://[::1]/user/alice",
        "spiffe://t\u00e4chikoma.local/user/alice",
        "spiffe://" + "a" * 256 + "/x",
        # segments
        "spiffe://tachikoma.local/user/",
        "spiffe://tachikoma.local//user/alice",
        "spiffe://tachikoma.local/user//alice",
        "spiffe://tachikoma.local/.",
        "spiffe://tachikoma.local/..",
        "spiffe://tachikoma.local/user/./alice",
        "spiffe://tachikoma.local/user/../alice",
        "spiffe://tachikoma.local/agent/x/../../user/alice",
        "spiffe://tachikoma.local/user/al ice",
        "spiffe://tachikoma.local/user/al%69ce",
        "spiffe://tachikoma.local/user/alice\0",
        "spiffe://tachikoma.local/user/alice\u200b",
        f"spiffe://tachikoma.local/user/{CYRILLIC}",
        "spiffe://tachikoma.local/user/alice:x",
        "spiffe://tachikoma.local/user/alice\\x",
        "spiffe://tachikoma.local/user/\udc80",
        # query and fragment
        "spiffe://tachikoma.local/user/alice?x=1",
        "spiffe://tachikoma.local/user/alice?",
        "spiffe://tachikoma.local?x",
        "spiffe://tachikoma.local/user/alice#x",
        # over long, by one byte
        "spiffe://a/" + "x" * 2038,
    ],
)
def test_what_breaks_a_rule_is_no_id(text: str) -> None:
    with pytest.raises(InvalidIdentity):
        SpiffeId.parse(text)


@given(st.text(max_size=80) | st.text(max_size=40).map(lambda text: f"spiffe://{text}"))
def test_reading_an_id_raises_nothing_else_and_changes_nothing(text: str) -> None:
    try:
        parsed = SpiffeId.parse(text)
    except InvalidIdentity:
        return
    assert str(parsed) == text
    assert SpiffeId.parse(str(parsed)) == parsed


def test_ids_of_this_system_are_where_the_design_puts_them() -> None:
    assert str(agent_id(DOMAIN, "web-1")) == "spiffe://tachikoma.local/agent/web-1"
    assert str(service_id(DOMAIN, "orchestrator")) == "spiffe://tachikoma.local/service/orchestrator"
    assert str(user_id(DOMAIN, "alice")) == "spiffe://tachikoma.local/user/alice"
    assert str(schedule_id(DOMAIN, "nightly")) == "spiffe://tachikoma.local/schedule/nightly"


@pytest.mark.parametrize("name", ["", "..", "a b", "a\n", "/", "x?y"])
def test_a_name_cannot_break_out_of_its_id(name: str) -> None:
    with pytest.raises(InvalidIdentity):
        user_id(DOMAIN, name)
