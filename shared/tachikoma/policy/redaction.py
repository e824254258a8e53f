"""What may be written down of a command: secrets out, control characters escaped, length bounded.

Used wherever a command is shown or kept: ledger, audit, logs, the `argsrepr` that Flower shows.

1. What policy marks as secret (`<*>` in a command pattern) is hidden whole.
2. An argument is looked at as a text: assignments, headers, URLs, keys, tokens of a known shape.
3. Words are looked at one after the other, those of the whole command line, or those of one argument where that is a
   command line itself, as in `sh -c "mysql -psecret"`: the values of options that are known to be secret, for any
   program by their name, and for the programs of `_TABLE` by what they mean there.

It hides rather too much than too little: what it hides, the HMAC of the command still tells apart.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

__all__ = ["command_line", "is_masked", "redact"]

MASK = "***"
#: Longest element kept, and most elements.
MAX_ELEMENT = 256
MAX_ELEMENTS = 64
#: Characters of an element that are searched for secrets. More than are kept: a secret may begin before the cut.
MAX_SEARCHED = 4 * MAX_ELEMENT

_SENSITIVE = (
    r"(?:pass(?:wd|word|phrase)?|secret|token"
    r"|(?:api|access|account|private|secret|shared|master|hmac|signing|encryption)"
    r"[-_]?key|credentials?|auth|cookie|signature|_pwd)"
)
#: --password=x, DB_PASSWORD=x, "password": "x"; whatever follows the first one is hidden with it.
_ASSIGNED = re.compile(rf"(?i)^(.*?{_SENSITIVE}[\w-]{{0,64}}[\"']?\s{{0,8}}[=:]).+", re.DOTALL)
#: scheme://user:secret@host; the secret may hold an @ itself.
_URL = re.compile(r"([a-z][a-z0-9+.-]{0,31}://[^/\s:@]{0,256}):[^/\s]*@", re.IGNORECASE)
#: A private key, whatever of it follows.
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]{0,64}PRIVATE KEY-----.*", re.DOTALL)
#: Programs that read a secret from where a shell feeds it to them: `echo secret | chpasswd`, `chpasswd <<< secret`.
_READERS = r"\b(?:chpasswd|passwd|sudo\s+-S|cryptsetup|docker\s+login|podman\s+login|gh\s+auth)\b"
_PIPED = re.compile(rf"^.*(\|[^|]{{0,200}}(?:{_READERS}|-stdin\b|-fd[ =]0))", re.DOTALL)
_HERE = re.compile(rf"({_READERS}[^|<]{{0,200}}<<<?).+", re.DOTALL)
#: CREATE USER … IDENTIFIED BY 'secret', SET PASSWORD FOR … = 'secret', whatever follows it.
_SQL = re.compile(r"(?i)(\b(?:identified\s{1,8}by|set\s{1,8}password)\s).+", re.DOTALL)
#: Shortest match of the next.
MIN_TOKEN = 7
#: Authorization values and well-known token shapes.
_TOKEN = re.compile(
    r"(?i:\b(bearer|basic)\s+)\S+|\b(?:AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|AGE-SECRET-KEY-1\w+|SG\.[\w-]{16,}\.[\w-]{16,}"
    r"|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|hf_\w{20,}|hv[sb]\.[\w-]{20,}|npm_\w{30,}|pypi-[\w-]{30,}"
    r"|dop_v1_\w{30,}|xox[abprs]-[\w-]{10,}|xapp-[\w-]{10,}|sk-[\w-]{20,}|[sr]k_(?:live|test)_\w{16,}|ya29\.[\w-]{20,}"
    r"|\d{8,10}:AA[\w-]{30,}|hooks\.slack\.com/services/[\w/]+|eyJ[\w-]+\.[\w-]+\.[\w-]*)"
)
#: Words: as a shell would cut them, as far as that can be told without one.
_WORD = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s"']|["'])+""")
_PIECE = re.compile(r"""[^\s"']+""")
_SPACE = re.compile(r"\s")
#: --password, whose value is the next word
_FLAG = re.compile(rf"(?i)^--?[\w-]*{_SENSITIVE}[\w-]*$")
#: Names without a dash whose value is the next word, as in `configure set aws_secret_access_key …`.
_NAME = re.compile(
    r"(?i)^(?:[\w.-]*[._-](?:password|passphrase|secret|token|psk|(?:access|api|secret|private)_?key)"
    r"|password|passphrase|psk|requirepass|masterauth)$"
)

#: What is a secret to the programs, or to the subcommands, that are named.
#:
#: `-p`, `--pass`: the rest of the word, or the next word; `-p+`: only the rest of the word, as `-p` alone asks for
#: the secret; `-*u`: also behind other letters, as in `-su`; `login`: the next word; `auth:2`, `-*b:3`: the next words,
#: one of which is the secret; `=` and `/`: what stands behind it in any word. `a~b` is the subcommand b of a.
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
    """Where a program takes a secret from."""

    #: Its second group is the secret, where that stands in the same word.
    word: re.Pattern[str]
    #: How many of the next words are hidden, where it does not.
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
    """Goes through the words of a command line."""

    #: Of all programs that were named up to here: a word in the place of a program need not be one.
    secrets: list[_Secret] = field(default_factory=list)
    #: How many of the next words are hidden; and whether an option is one of them.
    following: int = 0
    options: bool = False
    _before: str = ""

    def hides(self, word: str) -> bool:
        """Whether the next word is hidden whatever it is; called once for each."""
        if not self.following:
            return False
        if not self.options and word.startswith("-"):
            self.following = 0
            return False
        self.following -= 1
        return True

    def look(self, word: str) -> str:
        """The next word, with what of it is secret hidden."""
        if self.hides(word):
            return MASK
        if _SPACE.search(word):
            # A command line in a command line in an argument. What its quotes mean only a shell can tell.
            return self.look_inside(_PIECE, word)
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

    def look_inside(self, cut: re.Pattern[str], text: str) -> str:
        """A command line, or prose, in the place of one word. What it says last says nothing of the word after it."""
        inner = _Words(list(self.secrets))
        return cut.sub(lambda found: inner.look(found.group()), text)


def is_masked(element: str) -> bool:
    """Whether something was taken out of an element, or may have been."""
    return MASK in element or "…(+" in element


def redact(command: Sequence[str], secret: AbstractSet[int] = frozenset()) -> tuple[str, ...]:
    """The argv with secrets replaced, each element and their number bounded.

    Args:
        command: the argv.
        secret: numbers of the elements that are secret whatever they are; see `PolicySet.secrets`.
    """
    shown: list[str] = []
    words = _Words()
    for number, element in enumerate(command[:MAX_ELEMENTS]):
        hidden = words.hides(element)
        if hidden or number in secret:
            shown.append(MASK)
            continue
        # Only the beginning is ever shown, so only it is searched: an argument may be 128 KiB of anything.
        text = _text(element[:MAX_SEARCHED])
        if _SPACE.search(text):
            text = words.look_inside(_WORD, text)
        elif text:
            text = words.look(text)
        beyond = max(0, len(text) - MAX_ELEMENT) + max(0, len(element) - MAX_SEARCHED)
        if beyond:
            text = f"{text[:MAX_ELEMENT]}…(+{beyond})"
        shown.append("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))
    if len(command) > MAX_ELEMENTS:
        shown.append(f"…(+{len(command) - MAX_ELEMENTS} more)")
    return tuple(shown)


def _text(text: str) -> str:
    """A text without the secrets that show themselves."""
    # Most arguments hold none of what these rules look for.
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
    """The redacted argv as one quoted line; see `redact`."""
    return shlex.join(redact(command, secret))
