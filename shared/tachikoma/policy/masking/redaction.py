"""The printable form of a command: secrets masked, control characters escaped, length limited.

It is used wherever a command is shown or stored: ledger, audit, logs, the `argsrepr` that Flower shows.

1. An argument that policy marks as secret (`<*>` in a command pattern) is masked as a whole.
2. Each argument is searched as a text for assignments, headers, URLs, keys and tokens of a known form.
3. Words are searched in order: those of the whole command line, and those of an argument that is a command line itself,
   as in `sh -c "mysql -psecret"`. The values of options with a secret's name are masked for every program, and the
   options of `_TABLE` for the programs there.

A mask hides a secret's own word and no more, so that no command after it is hidden. `***` hides at most 40 characters
without white space and without the characters that end a word in a shell. `***(n)` hides n characters of any kind.
When in doubt, a word is masked: the HMAC of the command still distinguishes masked commands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from tachikoma.policy.masking.shell_words import ENDS, ShellText

__all__ = ["command_line", "is_masked", "redact"]

#: Replaces a secret.
MASK = "***"
#: Largest number of characters of an element that are shown.
MAX_ELEMENT = 256
#: Largest number of elements that are shown.
MAX_ELEMENTS = 64
#: Largest number of characters of an element that are searched. More than are shown, since a secret may begin before
#: the end.
MAX_SEARCHED = 4 * MAX_ELEMENT

#: Names of secrets.
_SENSITIVE = (
    r"(?:pass(?:wd|word|phrase)?|secret|token"
    r"|(?:api|access|account|private|secret|shared|master|hmac|signing|encryption)"
    r"[-_]?key|credentials?|auth|cookie|signature|_pwd)"
)
#: Short names of secrets, which count only as a whole part of a name: --pin, -pw, DB_PW, and not --pinned or spawn.
_SHORT = r"(?:(?<![A-Za-z0-9])(?:pwd|pw|pin|psk|otp|pat|passcode|jwt)(?![A-Za-z0-9]))"
#: Names of secrets in the query of a URL.
_QUERY = r"(?:(?<=[?&])(?:key|sig|code|pwd|sid|session|sessionid|apikey|auth_?code)(?==))"
#: --password=x, DB_PASSWORD=x, "password": "x", ?key=x, up to the secret. White space follows `=` only after `name =`:
#: in a shell, `password= reboot` runs reboot.
_ASSIGNED = re.compile(
    rf"(?:(?i:{_SENSITIVE}[\w-]{{0,64}})|(?i:(?<![A-Za-z0-9])(?:[a-z0-9]{{1,32}}[-_]){{0,4}}{_SHORT})|(?i:{_QUERY}))"
    r"(?:[\"']?[ \t]{0,8}:[ \t]{0,8}|[\"']?=|[ \t]{1,8}=[ \t]{0,8})"
    r"(?i:(?:bearer|basic|digest|token|negotiate|apikey)[ \t]{1,8})?"
)
#: scheme://user:secret@host; the secret may contain an @ itself.
_URL = re.compile(r"([a-z][a-z0-9+.-]{0,31}://[^/\s:@;|&()<>`\"']{0,256}):([^/\s;|&()<>`\"']*)@", re.IGNORECASE)
#: scheme://token@host: a user name of at least 12 characters with a digit.
_URL_TOKEN = re.compile(
    r"([a-z][a-z0-9+.-]{0,31}://)((?=[^/\s:@]{0,256}[0-9])[^/\s:@;|&()<>`\"']{12,256})@", re.IGNORECASE
)
#: A private key: its first line, lines without a space, its last line if there is one.
_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,64}PRIVATE KEY-----(?:(?:\s|\\n){0,4}[A-Za-z0-9+/=]+)*"
    r"(?:(?:\s|\\n){0,4}-----END [A-Z0-9 ]{0,64}PRIVATE KEY-----)?"
)
#: Programs that read a secret from standard input: `echo secret | chpasswd`, `chpasswd <<< secret`.
_READERS = r"\b(?:chpasswd|passwd|sudo\s+-S|cryptsetup|docker\s+login|podman\s+login|gh\s+auth)\b"
#: The command whose output they read.
_PIPED = re.compile(rf"([^|;&\n]+)(?=\|[^|;&\n]{{0,200}}(?:{_READERS}|-stdin\b|-fd[ =]0))")
_HERE = re.compile(rf"{_READERS}[^|;&\n<]{{0,200}}<<<\s*")
#: The lines between a reader and the line that ends its input.
_HERE_LINES = re.compile(
    rf"({_READERS}[^|;&\n<]{{0,200}}<<-?\s{{0,8}}[\"']?(\w{{1,64}})[\"']?[^\n]*\n)(.*?)(\n\s*\2(?=\s|$)|$)", re.DOTALL
)
#: CREATE USER … IDENTIFIED BY 'secret', SET PASSWORD FOR … = 'secret'.
_SQL = re.compile(r"(?i)\bidentified\s{1,8}by\s{1,8}(?:password\s{1,8})?|\bset\s{1,8}password\b[^=;]{0,200}=\s{0,8}")
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
_WORD = re.compile(r"""[;|&()<>`]+|(?:\\.|"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"';|&()<>`]|["'])+""", re.DOTALL)
_PIECE = re.compile(r"""[;|&()<>`]+|[^\s"';|&()<>`]+""")
#: A command in a text, which a shell runs although the text is quoted.
_COMMAND = re.compile(r"\$\(|`")
#: A text that a short mask may replace.
_ONE_WORD = re.compile(r"[^\s;|&()<>`]{0,40}")
_SPACE = re.compile(r"\s")
#: --password, whose value is the next word.
_FLAG = re.compile(rf"(?i)^--?(?:[\w-]*{_SENSITIVE}[\w-]*|(?:\w+[-_])*{_SHORT})$")
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
    mkpasswd: mkpasswd:4
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
            return _masked_word(word)
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
                return f"{quote}{found.group(1)}{_mask(found.group(2))}{quote}"
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
        return pattern.sub(lambda found: inner.masked_or_end(found.group()), text)

    def masked_or_end(self, word: str) -> str:
        """Return the next word of a command line with its secrets masked; words after `;` are another command."""
        if word[0] in ENDS:
            self.following = 0
            return word
        return self.masked(word)


def _mask(secret: str) -> str:
    """Return the mask of a text, with its length if it is more than a short word."""
    return MASK if _ONE_WORD.fullmatch(secret.strip("\"'")) else f"{MASK}({len(secret)})"


def _masked_word(word: str) -> str:
    """Return the mask of a word of a shell, and the commands in it."""
    command = None if word.startswith("'") else _COMMAND.search(word)
    return _mask(word) if command is None else MASK + word[command.start() :]


def is_masked(element: str) -> bool:
    """Return True if a part of an element is masked, or may be."""
    return MASK in element or "…(+" in element


def redact(command: Sequence[str], secret: AbstractSet[int] = frozenset()) -> tuple[str, ...]:
    """Return an argv with secrets masked and its length limited.

    Args:
        command: the argv.
        secret: positions, from 0, of elements to mask completely; see `PolicySet.secrets`.
    """
    shown: list[str] = []
    words = _Words()
    for number, element in enumerate(command[:MAX_ELEMENTS]):
        hidden = words.hides(element)
        if hidden or number in secret:
            # What policy marks is a secret, whatever it contains.
            shown.append(MASK if number in secret else _mask(element))
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
    if "<<" in text:
        text = _HERE_LINES.sub(lambda found: f"{found.group(1)}{_mask(found.group(3))}{found.group(4)}", text)
        text = _without_words_after(_HERE, text)
    if "|" in text:
        text = _PIPED.sub(lambda found: _without_arguments(found.group(1)), text)
    if "=" in text or ":" in text:
        text = _without_words_after(_ASSIGNED, text)
        text = _URL.sub(lambda found: f"{found.group(1)}:{_mask(found.group(2))}@", text)
        text = _URL_TOKEN.sub(lambda found: f"{found.group(1)}{_mask(found.group(2))}@", text)
    if _SPACE.search(text):
        text = _without_words_after(_SQL, text)
        text = _PEM.sub(lambda found: _mask(found.group()), text)
    if len(text) < MIN_TOKEN:
        return text
    return _TOKEN.sub(lambda found: f"{found.group(1)} {MASK}" if found.group(1) else MASK, text)


def _without_words_after(pattern: re.Pattern[str], text: str) -> str:
    """Mask the word after each match of a pattern."""
    shell: ShellText | None = None
    parts: list[str] = []
    done = 0
    for found in pattern.finditer(text):
        shell = shell or ShellText(text)
        start, end = found.end(), shell.word_end(found.end())
        if start < done or start == end:
            continue
        secret = text[start:end]
        # Quotes around the secret remain, so that the text is read as before.
        if len(secret) > 1 and secret[0] in "\"'" and secret[-1] == secret[0]:
            start, end = start + 1, end - 1
        parts += [text[done:start], _mask(text[start:end])]
        done = end
    return "".join((*parts, text[done:])) if parts else text


def _without_arguments(command: str) -> str:
    """Mask all words of a command but its program."""
    words = list(_WORD.finditer(command))[1:]
    for word in reversed(words):
        if word.group()[0] not in ENDS:
            command = command[: word.start()] + _masked_word(word.group()) + command[word.end() :]
    return command


def command_line(command: Sequence[str], secret: AbstractSet[int] = frozenset()) -> str:
    """Return the redacted argv as one quoted line; see `redact`."""
    return shlex.join(redact(command, secret))
