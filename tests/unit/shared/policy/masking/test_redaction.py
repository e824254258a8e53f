"""What may be written down of a command."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_lines import COMMAND_LINES
from command_lines import SECRET as CORPUS_SECRET
from tachikoma.policy.masking.redaction import MASK, MAX_ELEMENT, MAX_ELEMENTS, command_line, is_masked, redact
from tachikoma.policy.masking.shell_words import ENDS

#: Says where it is found, in whatever form it was written.
SECRET = "hunter2hunter2"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"


@pytest.mark.parametrize(
    "command",
    [
        # a flag and its value
        ["app", "--password", SECRET],
        ["app", "--password=" + SECRET],
        ["app", "-password", SECRET],
        ["app", "--db-password", SECRET],
        ["app", "--PASSWORD", SECRET],
        ["app", "--passwd", SECRET],
        ["app", "--passphrase", SECRET],
        ["app", "--token", SECRET],
        ["app", "--api-key", SECRET],
        ["app", "--api_key=" + SECRET],
        ["app", "--apikey=" + SECRET],
        ["app", "--secret", SECRET],
        ["app", "--client-secret=" + SECRET],
        ["app", "--access-key", SECRET],
        ["app", "--private-key", SECRET],
        ["app", "--credential", SECRET],
        ["app", "--auth-token", SECRET],
        ["app", "--token", SECRET, "--password", SECRET],
        # assignments
        ["env", "DB_PASSWORD=" + SECRET, "app"],
        ["env", "PGPASSWORD=" + SECRET],
        ["env", "AWS_SECRET_ACCESS_KEY=" + SECRET],
        ["env", "GITHUB_TOKEN=" + SECRET],
        ["app", "password: " + SECRET],
        ["app", "password = " + SECRET],
        ["app", "password=" + SECRET + "\nsecond line"],
        # headers
        ["curl", "-H", "Authorization: Bearer " + SECRET],
        ["curl", "-H", "authorization: basic " + SECRET],
        ["curl", "-H", "X-Api-Key: " + SECRET],
        ["app", "Bearer " + SECRET],
        ["app", "bearer\t" + SECRET],
        # URLs
        ["git", "clone", f"https://alice:{SECRET}@example.org/x.git"],
        ["app", f"redis://:{SECRET}@localhost:6379/0"],
        ["app", f"postgresql+psycopg://app:{SECRET}@db/app"],
        ["app", f"see https://a:{SECRET}@one.example and https://b:{SECRET}@two.example"],
        ["app", f"https://example.org/?token={SECRET}&x=1"],
        # a second secret in the same element must not save the first
        ["sh", "-c", f"DB_PASSWORD={SECRET} API_TOKEN=x run"],
        ["app", f"https://example.org/?password={SECRET}&token=x"],
        ["app", f"https://a:pa@{SECRET}@example.org/"],
        # structured
        ["curl", "-d", f'{{"user": "a", "password": "{SECRET}"}}'],
        ["app", f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"],
    ],
    ids=lambda command: " ".join(command)[:60],
)
def test_a_secret_is_not_shown(command: list[str]) -> None:
    assert SECRET not in command_line(command)
    assert MASK in command_line(command)


@pytest.mark.parametrize("command", COMMAND_LINES, ids=lambda command: " ".join(command)[:60])
def test_no_secret_of_the_corpus_is_shown(command: tuple[str, ...]) -> None:
    assert CORPUS_SECRET in " ".join(command)
    assert CORPUS_SECRET not in command_line(command)
    # Nor where the whole line is one argument, as a shell, ssh or a launcher is given it.
    assert CORPUS_SECRET not in command_line(["/bin/sh", "-c", shlex.join(command)])
    # The program is always told.
    assert redact(command)[0] == command[0]


def test_the_corpus_has_sixty_lines() -> None:
    assert len(set(COMMAND_LINES)) >= 60


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("mysql -u root -pS -h db", "mysql -u root '-p***' -h db"),
        ("mysql -p shop", "mysql -p shop"),
        ("/usr/bin/mysql -pS", "/usr/bin/mysql '-p***'"),
        ("sudo -u app mysql -pS shop", "sudo -u app mysql '-p***' shop"),
        ("curl -fsLo out https://example.org/", "curl -fsLo out https://example.org/"),
        ("docker run -p 80:80 app", "docker run -p 80:80 app"),
        ("docker login -p S host", "docker login -p '***' host"),
        ("sh -c 'mysql -pS shop && id'", "sh -c 'mysql -p*** shop && id'"),
        # The value of an option may look like an option, where it is known to have one.
        ("redis-cli -a -S ping", "redis-cli -a '***' ping"),
        # A word in the place of a program takes away nothing that was known before.
        ("mysql --host zip -pS", "mysql --host zip '-p***'"),
        ("vault kv put kv/app a=S b=S", "vault kv put kv/app 'a=***' 'b=***'"),
        ("sh -c 'app --token S' --token S x", "sh -c 'app --token ***' --token '***' x"),
    ],
)
def test_what_a_program_takes_as_a_secret(line: str, shown: str) -> None:
    assert (
        command_line([word.replace("S", SECRET) if word != "-fsSLo" else word for word in shlex.split(line)]) == shown
    )


#: § stands for the secret.
@pytest.mark.parametrize(
    "text",
    [
        "echo password=§; touch /tmp/evil",
        "password=§;touch /tmp/evil",
        "password=§|touch /tmp/evil",
        "password=§&touch /tmp/evil",
        "password=§\ntouch /tmp/evil",
        "password='§'; touch /tmp/evil",
        "password='§ §'; touch /tmp/evil",
        'password="§ §"; touch /tmp/evil',
        'password="§$(touch /tmp/evil)"',
        'echo --token "§`touch /tmp/evil`"',
        "(password=§) && touch /tmp/evil",
        "TOKEN=§ touch /tmp/evil",
        "password= touch /tmp/evil §; echo --password §",
        'echo "password=\'§"; touch /tmp/evil; echo "\'" ',
        "eval 'echo password=§; touch /tmp/evil'",
        "echo --token; touch /tmp/evil; app --token §",
        "mysql -p§; touch /tmp/evil",
        "mysql -p§;touch /tmp/evil",
        "touch /tmp/evil; echo a:§ | chpasswd",
        "touch /tmp/evil && echo '§' | sudo -S id",
        "chpasswd <<< §; touch /tmp/evil",
        "chpasswd <<EOF\na:§\nEOF\ntouch /tmp/evil",
        "git clone https://a:§@h/x; touch /tmp/evil",
        "git clone https://§@h/x;touch /tmp/evil",
        "curl 'https://h/?key=§&x=1'; touch /tmp/evil",
        "echo -----BEGIN PRIVATE KEY-----§; touch /tmp/evil",
        "mysql -e \"CREATE USER a IDENTIFIED BY '§'\"; touch /tmp/evil",
        "curl -H 'Authorization: Bearer §' h; touch /tmp/evil",
        'curl -d \'{"password": "§"}\' h; touch /tmp/evil',
        "echo auth:§ > /tmp/evil; touch /tmp/evil",
    ],
)
def test_a_secret_hides_itself_and_not_the_command_after_it(text: str) -> None:
    shown = redact(["sh", "-c", text.replace("§", SECRET)])[2]
    assert "touch /tmp/evil" in shown
    assert MASK in shown
    if not text.startswith("password= "):
        assert SECRET not in shown


VALUES = st.text("abcXYZ019_%+./@#!?^~,", min_size=8, max_size=30).filter(lambda text: text[0].isalnum())
BEFORE = st.sampled_from(
    ["echo password=", "DB_PASSWORD=", "app --token ", "app --token=", "app --pin ", "env PW=", "mysql -p",
     "sshpass -p ", "curl -H 'X-Api-Key: '", "redis-cli -a ", "plink -pw ", "curl https://h/?token="]
)  # fmt: skip
AFTER = st.sampled_from(["; ", ";", " && ", "&&", " | ", "|", "\n", " & ", "&", ") ; ("])


@given(BEFORE, VALUES, st.sampled_from(["", "'", '"']), AFTER)
def test_in_a_shell_text_the_secret_is_hidden_and_the_next_command_is_visible(
    before: str, secret: str, quote: str, after: str
) -> None:
    shown = redact(["sh", "-c", f"{before}{quote}{secret}{quote}{after}touch /tmp/evil"])[2]
    assert shown.endswith("touch /tmp/evil")
    assert secret not in shown


@given(st.text("ab ;|&'\"=:$()>`-", max_size=60))
def test_a_mask_without_a_count_hides_one_short_word(text: str) -> None:
    original = f"x password={text}"
    shown = redact(["sh", "-c", original])[2]
    if shown.count(MASK) != 1 or f"{MASK}(" in shown:
        return
    before, after = shown.split(MASK)
    assert original.startswith(before)
    assert original.endswith(after)
    hidden = original[len(before) : len(original) - len(after)].strip("\"'")
    assert len(hidden) <= 40
    assert not any(c in ENDS or c.isspace() for c in hidden)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["app", "--token", "a b"], "***(3)"),
        (["app", "--token", "x;reboot"], "***(8)"),
        (["app", "--token", "x" * 41], "***(41)"),
        (["app", "--token", "x" * 40], "***"),
        (["sh", "-c", "password='a; b'"], "password='***(4)'"),
    ],
)
def test_a_mask_says_how_much_it_hides(command: list[str], shown: str) -> None:
    assert redact(command)[2] == shown


def test_what_policy_marks_is_not_shown() -> None:
    assert redact(["deploy", "S", "now"], {1}) == ("deploy", MASK, "now")
    assert redact(["deploy", "--password", "S", "now"], {2}) == ("deploy", "--password", MASK, "now")
    assert redact(["deploy", "a"], {5}) == ("deploy", "a")


@pytest.mark.parametrize("element", [MASK, "--password=***", "a***b", "x…(+3)"])
def test_what_was_masked_says_so(element: str) -> None:
    assert is_masked(element)
    assert not is_masked("--verbose")


@pytest.mark.parametrize(
    "token",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_0123456789abcdefghijABCDEFGHIJ",
        "gho_0123456789abcdefghijABCDEFGHIJ",
        "ghs_0123456789abcdefghijABCDEFGHIJ",
        "glpat-0123456789abcdefghij",
        "xoxb-0123456789-abcdef",
        "sk-0123456789abcdefghijABCD",
        "sk_live_0123456789abcdefghijABCD",
        "github_pat_0123456789abcdefghijABCD",
        "AIzaSyA0123456789abcdefghijABCDEFGHIJK",
        "hvs.0123456789abcdefghijABCD",
        "npm_0123456789abcdefghijABCDEFGHIJKLMN",
        "hf_0123456789abcdefghijABCD",
        "hooks.slack.com/services/T0/B0/0123456789",
        "AGE-SECRET-KEY-1QQQQQQQQQQ",
        JWT,
    ],
)
@pytest.mark.parametrize("form", ["{}", "x={}", "--header={}", "before {} behind", "https://{}@example.org/"])
def test_a_token_is_known_by_its_shape(token: str, form: str) -> None:
    shown = command_line(["app", form.format(token)])
    assert token not in shown
    assert MASK in shown


def test_what_stands_around_a_secret_is_still_shown() -> None:
    assert redact(["app", "--user", "alice", "--password", SECRET, "--verbose"]) == (
        *("app", "--user", "alice", "--password", MASK, "--verbose"),
    )
    assert redact(["DB_PASSWORD=" + SECRET]) == ("DB_PASSWORD=***",)
    assert redact([f"https://alice:{SECRET}@example.org/x"]) == ("https://alice:***@example.org/x",)
    assert redact(["Bearer " + SECRET]) == ("Bearer ***",)


def test_a_flag_without_a_value_hides_nothing_behind_it() -> None:
    assert redact(["app", "--token", "--verbose", "x"]) == ("app", "--token", "--verbose", "x")


@pytest.mark.parametrize(
    "line",
    [
        "uname -a",
        "tar -xpf a.tar",
        "/usr/bin/systemctl restart nginx.service",
        "ls -la /etc/passwd",
        "passwd -S alice",
        "cp -p a b",
        "ps -p 1",
        "find / -name '*.conf' -print0",
        "journalctl -u nginx --since=yesterday",
        "curl https://example.org:8443/x?y=1",
        "curl https://alice@example.org/x",
        "echo a=b c:d e@f",
        "df -h --output=source,pcent",
        "git log -p --oneline v1..v2",
        "seq 1 1000000",
        "echo 'ä € 😀'",
        "sha256sum e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "sleep 1 && true",
        "docker run -d -p 8080:80 -u 1000 nginx",
        "ssh -p 2222 -l alice web1",
        "sort --key=2 -u a",
        "kubectl get secret db -n app",
        "mount -o ro /dev/sda1 /mnt",
        "sh -c 'cd /srv && ./run -p 80 --user app'",
        "mkdir -p /srv/a",
        "useradd -m -s /bin/bash alice",
        "zip -r out.zip a",
    ],
)
def test_a_harmless_line_stays_as_it_is(line: str) -> None:
    assert redact(shlex.split(line)) == tuple(shlex.split(line))


# --- characters and length --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("element", "shown"),
    [
        ("a\nb", "a\\nb"),
        ("\r", "\\r"),
        ("\t", "\\t"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x00", "\\x00"),
        ("\x7f", "\\x7f"),
        ("\x85", "\\x85"),
        ("\u202eevil", "\\u202eevil"),
        ("\u200b", "\\u200b"),
        ("\u2028", "\\u2028"),
        ("\udc80", "\\udc80"),
        ("\U000e0041", "\\U000e0041"),
        ("ä€😀", "ä€😀"),
    ],
)
def test_what_a_terminal_or_log_could_act_on_is_escaped(element: str, shown: str) -> None:
    assert redact([element]) == (shown,)


@given(st.lists(st.text(max_size=30), max_size=5))
def test_whatever_comes_one_printable_line_goes_out(command: list[str]) -> None:
    line = command_line(command)
    assert line.isprintable()
    assert tuple(shlex.split(line)) == redact(command)


def test_a_long_element_is_cut_and_says_so() -> None:
    assert redact(["x" * (MAX_ELEMENT + 44)]) == ("x" * MAX_ELEMENT + "…(+44)",)
    assert redact(["x" * MAX_ELEMENT]) == ("x" * MAX_ELEMENT,)


def test_a_secret_at_the_cut_is_not_shown_in_part() -> None:
    shown = command_line(["x" * (MAX_ELEMENT - 10) + " ghp_" + "s" * 36])
    assert "sss" not in shown


def test_many_elements_are_cut_and_it_says_so() -> None:
    shown = redact(["x"] * (MAX_ELEMENTS + 3))
    assert shown == ("x",) * MAX_ELEMENTS + ("…(+3 more)",)
    assert redact(["x"] * MAX_ELEMENTS) == ("x",) * MAX_ELEMENTS


@given(st.lists(st.text(max_size=600), max_size=80))
def test_what_is_kept_is_bounded(command: list[str]) -> None:
    shown = redact(command)
    assert len(shown) <= MAX_ELEMENTS + 1
    # Every character may have become a ten-character escape.
    assert all(len(element) <= 10 * MAX_ELEMENT + 20 for element in shown)


@pytest.mark.parametrize(
    "expression",
    [
        "'a' * 130_000",
        "'auth' * 32_000",
        "'--' + 'auth' * 32_000 + '!'",
        "'eyJ' * 43_000",
        "'a:' * 65_000",
        "'bearer ' * 18_000",
        "'|' * 130_000",
        "'chpasswd ' * 14_000",
        "'set password ' * 10_000",
        "'\"' * 130_000",
        "'\" ' * 65_000",
        "'mysql ' * 21_000",
        "'a_' * 65_000",
        "'0' * 130_000",
    ],
)
@pytest.mark.slow
def test_the_largest_argument_does_not_stop_the_orchestrator(expression: str) -> None:
    """Redaction runs in the event loop, for refused requests as well: its effort must not grow with the square."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from tachikoma.policy.masking.redaction import redact; print(len(redact([{expression}])))",
        ],
        # Of the processor, not of the clock: a tenth of it is plenty.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (3, 3)),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"1\n"), "took more than 3 s of processor time"
