"""The printable form of a command: secrets masked, control characters escaped, length limited.

It is used wherever a command is shown or stored: ledger, audit, logs, the `argsrepr` that Flower shows.

1. An argument that policy marks as secret (`<*>` in a command pattern) is masked as a whole.
2. Each argument is searched as a text for assignments, headers, URLs, keys and tokens of a known form.
3. Words are searched in order: those of the whole command line, and those of an argument that is a command line itself,
   as in `sh -c "mysql -psecret"`. The values of options with a secret's name are masked for every program, and the
   options of `_TABLE` for the programs there.

When in doubt, text is masked: the HMAC of the command still distinguishes masked commands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

__all__ = ["command_line", "is_masked", "redact"]

#: Replaces a secret.
MASK = "***"
#: Most characters of an element that are shown.
MAX_ELEMENT = 256
#: Most elements that are shown.
MAX_ELEMENTS = 64
#: Most characters of an element that are searched. More than are shown, since a secret may begin before the end.
MAX_SEARCHED = 4 * MAX_ELEMENT

#: Names of secrets.
_SENSITIVE = (
    r"(?:pass(?:wd|word|phrase)?|secret|token"
    r"|(?:api|access|account|private|secret|shared|master|hmac|signing|encryption)"
    r"[-_]?key|credentials?|auth|cookie|signature|_pwd)"
)
#: --password=x, DB_PASSWORD=x, "password": "x"; all text after the first is masked too.
_ASSIGNED = re.compile(rf"(?i)^(.*?{_SENSITIVE}[\w-]{{0,64}}[\"']?\s{{0,8}}[=:]).+", re.DOTALL)
#: scheme://user:secret@host; the secret may contain an @ itself.
_URL = re.compile(r"([a-z][a-z0-9+.-]{0,31}://[^/\s:@]{0,256}):[^/\s]*@", re.IGNORECASE)
#: A private key and all text after it.
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]{0,64}PRIVATE KEY-----.*", re.DOTALL)
#: Programs that read a secret from standard input: `echo secret | chpasswd`, `chpasswd <<< secret`.
_READERS = r"\b(?:chpasswd|passwd|sudo\s+-S|cryptsetup|docker\s+login|podman\s+login|gh\s+auth)\b"
_PIPED = re.compile(rf"^.*(\|[^|]{{0,200}}(?:{_READERS}|-stdin\b|-fd[ =]0))", re.DOTALL)
_HERE = re.compile(rf"({_READERS}[^|<]{{0,200}}<<<?).+", re.DOTALL)
#: CREATE USER … IDENTIFIED BY 'secret', SET PASSWORD FOR … = 'secret', with all text after it.
_SQL = re.compile(r"(?i)(\b(?:identified\s{1,8}by|set\s{1,8}password)\s).+", re.DOTALL)
#: Fewest characters of a match of `_TOKEN`.
MIN_TOKEN = 7
#: Authorization values, and tokens of well-known forms.
_TOKEN = re.compile(
    r"(?i:\b(bearer|basic)\s+)\S+|\b(?:AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|AGE-SECRET-KEY-1\w+|SG\.[\w-]{16,}\.[\w-]{16,}"
    r"|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|hf_\w{20,}|hv[sb]\.[\w-]{20,}|npm_\w{30,}|pypi-[\w-]{30,}"
    r"|dop_v1_\w{30,}|xox[abprs]-[\w-]{10,}|xapp-[\w-]{10,}|sk-[\w-]{20,}|[sr]k_(?:live|test)_\w{16,}|ya29\.[\w-]{20,}"
    r"|\d{8,10}:AA[\w-]{30,}|hooks\.slack\.com/services/[\w/]+|eyJ[\w-]+\.[\w-]+\.[\w-]*)"
)
#: A word as a shell separates it, as far as that is known without a shell.
_WORD = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s"']|["'])+""")
_PIECE = re.compile(r"""[^\s"']+""")
_SPACE = re.compile(r"\s")
#: --password, whose value is the next word.
_FLAG = re.compile(rf"(?i)^--?[\w-]*{_SENSITIVE}[\w-]*$")
#: A name without a dash whose value is the next word, as in `configure set aws_secret_access_key …`.
_NAME = re.compile(
    r"(?i)^(?:[\w.-]*[._-](?:password|passphrase|secret|token|psk|(?:access|api|secret|private)_?key)"
    r"|password|passphrase|psk|requirepass|masterauth)$"
)

#: The options of programs, or of subcommands, whose values are secrets.
#:
#: `-p`, `--pass`: the rest of the word, or the next word. `-p+`: only the rest of the word, since `-p` alone prompts
#: for the secret. `-*u`: also after other letters, as in `-su`. `login`: the next word. `auth:2`, `-*b:3`: the next
#: words, one of which is the secret. `=` and `/`: the text after it in any word. `a~b` is the subcommand b of a.
_TABLE = """
    mysql mysqldump mysqladmin mysqlimport mysqlshow mysqlcheck mysqlpump: -p+
    mariadb mariadb-dump mariadb-admin mariadb-import mariadb-check: -p+
    redis-cli valkey-cli redis-benchmark valkey-benchmark: -a --pass auth:2 >+
    sshpass: -p
    curl: -*u --user -*U --proxy-user --oauth2-bearer -*E --cert --pass --proxy-pass -*b
    http https xh: -a
    openssl: -pass -passin -passout -k -K -1 -5 -6 -apr1
    mkpasswd: mkpasswd:64
    ssh-keygen: -N -P
    ldapsearch ldapadd ldapmodify ldapdelete ldapwhoami ldapcompare ldapmodrdn: -w
    ldappasswd: -w -s -a
    smbclient rpcclient smbget winexe wmic: -U --user
    xfreerdp wlfreerdp: /p
    mongo mongosh mongodump mongorestore mongoexport mongoimport: -p
    docker~login podman~login nerdctl~login buildah~login helm~login az~login: -p
    skopeo: --creds --src-creds --dest-creds
    kubectl oc: --from-literal
    htpasswd: -*b:3
    vault bao: login unseal =
    keytool jarsigner: -storepass -keypass -srcstorepass -deststorepass -srckeypass -destkeypass -new
    ipmitool: -P -k
    snmpget snmpset snmpwalk snmpgetnext snmpbulkget snmpbulkwalk snmptrap snmptable: -A -X -c
    zip unzip zipcloak: -P
    7z 7za 7zr 7zz: -p+
    rar unrar: -p+ -hp+
    sqlcmd bcp isql tsql: -P
    sqlplus rman expdp impdp: /
    lftp ncftp: -u
    useradd usermod groupadd groupmod: -p
    rabbitmqctl: add_user:2 change_password:2 authenticate_user:2
    ansible-vault: encrypt_string
    rclone: obscure
    mc: set:4
    iwconfig: key
    expect: send
    swaks: -ap
    mosquitto_pub mosquitto_sub: -P
    wpa_passphrase: wpa_passphrase:2
"""


@dataclass(frozen=True, slots=True)
class _Secret:
    """An option whose value is a secret."""

    #: Matches the word of the option; the second group is the secret, if it is in the same word.
    word: re.Pattern[str]
    #: Number of the next words that are masked, if it is not.
    following: int


def _secret(text: str) -> _Secret:
    option, _, number = text.partition(":")
    following = int(number or 1)
    if option in ("=", "/"):
        pattern = rf"([\w.][\w./-]*?{option})(.+)"
    elif option.startswith("-*") and number:
        pattern = rf"()()-[A-Za-z]*{option[2:]}[A-Za-z]*"
    elif option.startswith("-*"):
        pattern = rf"(-[A-Za-z#]*?{option[2:]})(.*)"
    elif option.endswith("+"):
        pattern = rf"({re.escape(option[:-1])})(.+)"
    elif re.fullmatch("-[^-]", option):
        pattern = rf"({re.escape(option)}=?)(.*)"
    elif option.startswith(("-", "/")):
        pattern = rf"({re.escape(option)}[=:])(.+)|{re.escape(option)}"
    else:
        pattern = rf"(?i)()(){re.escape(option)}"
    return _Secret(re.compile(pattern, re.DOTALL), following)


def _table(text: str) -> Mapping[str, tuple[_Secret, ...]]:
    table = {}
    for line in text.strip().splitlines():
        programs, _, options = line.partition(": ")
        for program in programs.split():
            table[program.replace("~", " ")] = tuple(map(_secret, options.split()))
    return table


_PROGRAMS = _table(_TABLE)


@dataclass(slots=True)
class _Words:
    """The state of a search through the words of a command line."""

    #: The secret options of all programs named so far: a word at the place of a program need not be one.
    secrets: list[_Secret] = field(default_factory=list)
    #: Number of the next words that are masked.
    following: int = 0
    #: True if an option may be one of them.
    options: bool = False
    _before: str = ""

    def hides(self, word: str) -> bool:
        """Return True if the next word is masked as a whole. Called once for each word."""
        if not self.following:
            return False
        if not self.options and word.startswith("-"):
            self.following = 0
            return False
        self.following -= 1
        return True

    def masked(self, word: str) -> str:
        """Return the next word with its secrets masked."""
        if self.hides(word):
            return MASK
        if _SPACE.search(word):
            # A command line in a command line in an argument. Only a shell knows the meaning of its quotes.
            return self.masked_inside(_PIECE, word)
        quote = word[0] if word[0] in "\"'" else ""
        bare = word.strip("\"'")
        name = bare.rpartition("/")[2]
        for program in (name, f"{self._before} {name}"):
            self.secrets += _PROGRAMS.get(program, ())
        self._before = name
        for secret in self.secrets:
            found = secret.word.fullmatch(bare)
            if found is None:
                continue
            if found.group(2):
                return f"{quote}{found.group(1)}{MASK}{quote}"
            self.following, self.options = secret.following, True
            return word
        if len(bare) <= MAX_ELEMENT and (_FLAG.match(bare) or _NAME.match(bare)):
            self.following, self.options = 1, False
        return word

    def masked_inside(self, pattern: re.Pattern[str], text: str) -> str:
        """Return a command line, or prose, at the place of one word, with its secrets masked.

        Its last word does not affect the word after it.
        """
        inner = _Words(list(self.secrets))
        return pattern.sub(lambda found: inner.masked(found.group()), text)


def is_masked(element: str) -> bool:
    """Return True if a part of an element is masked, or may be."""
    return MASK in element or "…(+" in element


def redact(command: Sequence[str], secret: AbstractSet[int] = frozenset()) -> tuple[str, ...]:
    """Return an argv with secrets masked and its length limited.

    Args:
        command: the argv.
        secret: numbers of the elements that are masked as a whole; see `PolicySet.secrets`.
    """
    shown: list[str] = []
    words = _Words()
    for number, element in enumerate(command[:MAX_ELEMENTS]):
        hidden = words.hides(element)
        if hidden or number in secret:
            shown.append(MASK)
            continue
        # Only the beginning is shown, so only the beginning is searched: an argument may have 128 KiB.
        text = _without_known_secrets(element[:MAX_SEARCHED])
        if _SPACE.search(text):
            text = words.masked_inside(_WORD, text)
        elif text:
            text = words.masked(text)
        beyond = max(0, len(text) - MAX_ELEMENT) + max(0, len(element) - MAX_SEARCHED)
        if beyond:
            text = f"{text[:MAX_ELEMENT]}…(+{beyond})"
        shown.append("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))
    if len(command) > MAX_ELEMENTS:
        shown.append(f"…(+{len(command) - MAX_ELEMENTS} more)")
    return tuple(shown)


def _without_known_secrets(text: str) -> str:
    """Mask secrets that are recognizable by their form."""
    # Most arguments contain none of these characters, so the patterns are seldom run.
    if "|" in text:
        text = _PIPED.sub(rf"{MASK} \1", text)
    if "<<" in text:
        text = _HERE.sub(rf"\1 {MASK}", text)
    if "=" in text or ":" in text:
        text = _ASSIGNED.sub(rf"\1{MASK}", text)
        text = _URL.sub(rf"\1:{MASK}@", text)
    if _SPACE.search(text):
        text = _SQL.sub(rf"\1{MASK}", text)
        text = _PEM.sub(MASK, text)
    if len(text) < MIN_TOKEN:
        return text
    return _TOKEN.sub(lambda found: f"{found.group(1)} {MASK}" if found.group(1) else MASK, text)


def command_line(command: Sequence[str], secret: AbstractSet[int] = frozenset()) -> str:
    """Return the redacted argv as one quoted line; see `redact`."""
    return shlex.join(redact(command, secret))
