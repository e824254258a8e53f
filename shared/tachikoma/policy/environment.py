"""Environment variables that no request may set, even if a policy lists them.

The list contains the variables from which sudo, OpenSSH, glibc, shells, interpreters and common tools take
instructions: code to load, files to read, programs to start, hosts to talk to.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

__all__ = ["forbidden"]

_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
#: Variables that the agent itself sets.
_OWN = frozenset({"PATH", "HOME", "USER", "LOGNAME"})
#: Refused by their whole name.
_NEVER_NAMES = frozenset(
    (
        "GLIBC_TUNABLES", "GCONV_PATH", "GETCONF_DIR", "HOSTALIASES", "LOCALDOMAIN", "LOCPATH", "NIS_PATH",
        "NLSPATH", "RESOLV_HOST_CONF", "RES_OPTIONS", "TMPDIR", "TZDIR", "IFS", "CDPATH", "PATH_LOCALE",
        "SHLIB_PATH", "LIBPATH", "TERMPATH", "TERMCAP", "ENV", "BASH_ENV", "BASHOPTS", "PROMPT_COMMAND",
        "PS4", "GLOBIGNORE", "SHELLOPTS", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS",
        "CLASSPATH", "FPATH", "NULLCMD", "READNULLCMD", "ZDOTDIR", "TMPPREFIX", "RUBYLIB", "RUBYOPT",
        "SSH_ASKPASS", "SSH_AUTH_SOCK", "EDITOR", "VISUAL", "PAGER", "LESSOPEN", "LESSCLOSE", "BROWSER",
        "OPENSSL_CONF", "OPENSSL_MODULES", "SHELL", "KUBECONFIG",
    )
)  # fmt: skip
#: Refused by a pattern of fnmatch.
_NEVER_PATTERNS = (
    *("LD_*", "MALLOC_*", "_RLD*", "LDR_*", "DYLD_*", "KRB5_*", "TERMINFO*", "BASH_FUNC_*", "PERL*", "PYTHON*"),
    *("GEM_*", "NODE_*", "NPM_CONFIG_*", "GIT_*", "SSL_CERT_*", "CURL_*", "*_PROXY", "XDG_*", "SYSTEMD_*", "DOCKER_*"),
    *("SPIFFE_*", "CELERY_*"),
)


def forbidden(name: str, value: str) -> str:
    """Return why a request must not set a variable, for people; empty if it may."""
    if name in _OWN:
        return f"{name} is set by the agent"
    if name in _NEVER_NAMES or any(fnmatchcase(name, pattern) for pattern in _NEVER_PATTERNS):
        return f"{name} is never passed on: it can change what a program loads, reads or starts"
    if not _NAME.fullmatch(name):
        return f"{name[:80]!r} is not an accepted name; names are capital letters, digits and underscores"
    if (name in ("LANG", "TERM", "TZ") or name.startswith("LC_")) and ("/" in value or "%" in value):
        return f"the value of {name} must not contain '/' or '%': it could name a file"
    return ""
