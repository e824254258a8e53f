"""Environment variables that no request may set, and those that policy must name.

A variable of the loader, of the C library or of a shell's start makes any program run other code: no request may set
it. Programs and libraries in common use find code, configuration, helpers and hosts by further names (`PAGER`, `GIT_*`,
`PYTHONPATH`): a policy grants such a name only by writing it out, never by a wildcard. The names come from sudo,
OpenSSH, glibc, shells, interpreters and common tools.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

__all__ = ["forbidden", "steers_programs"]

_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
#: Variables that the agent itself sets.
_OWN = frozenset({"PATH", "HOME", "USER", "LOGNAME"})

_LOADERS_AND_SHELLS = """
BASH_ENV BASHOPTS CDPATH ENV FPATH GCONV_PATH GETCONF_DIR GLIBC_TUNABLES GLOBIGNORE HOSTALIASES IFS LIBPATH
LOCALDOMAIN LOCPATH NIS_PATH NLSPATH NULLCMD PATH_LOCALE PROMPT_COMMAND PS4 READNULLCMD RES_OPTIONS RESOLV_HOST_CONF
SHELLOPTS SHLIB_PATH TERMCAP TERMPATH TMPPREFIX TZDIR ZDOTDIR
"""
_BEGINNINGS = """
ANSIBLE_ ANT_ AWS_ AZURE_ BAT_ BORG_ BOTO_ BROWSER BUNDLE_ BZIP CARGO_ CATALINA_ CC CFLAGS CLANG CLASSPATH CLOUDSDK_
CMAKE_ COMPOSER_ CONDA CONFIG_ CONSUL_ CORECLR_ CPP CUDA_ CURL_ CVS CXX DBUS_ DELTA_ DENO_ DISPLAY DJANGO_ DOCKER_
DOTNET_ EDITOR ELECTRON_ EMACS ERL_ EX FCEDIT FLASK_ FONTCONFIG_ FZF_ GCC_ GDK_ GEM_ GHC GI_ GIO_ GIT_ GLIBC GNOME_
GNUPG GNUTLS_ GO GOOGLE_ GPG_ GRADLE_ GREP_ GROFF_ GST_ GTK_ GUILE_ GUNICORN_ GZIP HELM_ HG HISTFILE ICE INPUTRC
INTEL_ JAVA_ JDK_ JULIA_ JVM_ KDE KRB5_ KUBE LDAP LDFLAGS LESS LESSOPEN LIBGL_ LIBVA_ LISTEN_ LS_COLORS LUA_ MAILCAP
MAILCHECK MAILRC MAKE MAN MAVEN_ MESA_ MIX_ MKL_ MONO_ MORE MOST MYSQL_ NANO NETRC NODE_ NOMAD_ NOTIFY_ NPM_ NSS_
NVIM_ OCL_ ODBC OMP_ OPENBLAS_ OPENCL_ OPENSSL_ ORACLE_ OTEL_ P11_ PAGER PERL PG PHP PINENTRY_ PIP_ PKCS11_ PKG_
PYTHON QT_ R_ RACK_ RAILS_ RCLONE_ REDIS RESOLV_ RESTIC_ RSYNC_ RUBY RUST RUSTC SASL_ SCREEN SENTRY_ SHELL SOURCE_DATE
SSH_ SSL_CERT_ SUDO_ SVN_ SYSTEMD_ TACHIKOMA_ TAR_ TCL TEMP TERMINFO TEX TF_ TLS_ TMP TMUX TNS_ UNZIP UWSGI_ VAULT_ VIM
VIRTUAL_ENV VISUAL VK_ WAYLAND_ WGET XAUTHORITY XDG_ XZ_ YARN_ ZIPOPT ZSTD_
"""
_LAST_WORDS = """
ADDRESS AGENT ARGS ASKPASS BROWSER CMD COMMAND COMPILER CONF CONFIG DIR DIRS EDITOR EXEC FILE FLAGS HELPER HOME HOOK
HOOKS HOST HOSTS INIT INTERPRETER LAUNCHER LIB LIBRARY LIBS LOADER MODULE MODULES OPTIONS OPTS PAGER PATH PLUGIN
PLUGINS PRELOAD PROFILE PROXY RC ROOT SHELL SOCK SOCKET STARTUP VIEWER VISUAL WRAPPER
"""

#: Never passed on, by their whole name: the loader, the C library, the start of shells.
_NEVER_NAMES = frozenset(_LOADERS_AND_SHELLS.split())
#: Never passed on, by a pattern of fnmatch. The last ones are Tachikoma's own.
_NEVER_PATTERNS = ("LD_*", "MALLOC_*", "_RLD*", "LDR_*", "DYLD_*", "BASH_FUNC_*", "SPIFFE_*", "CELERY_*")
#: Beginnings of names by which programs and libraries in common use find code, configuration, helpers or hosts.
_STEERING = tuple(_BEGINNINGS.split())
#: Last words of such names, for programs that no list knows.
_STEERING_WORDS = frozenset(_LAST_WORDS.split())


def steers_programs(name: str, written: str = "") -> bool:
    """Return True if a variable may lead programs to code, configuration, helpers or hosts.

    Args:
        name: the variable.
        written: the part of the pattern in policy before its wildcard, such as `APP_`. The variable then counts as
            the application's own, unless common programs have variables with this beginning, or it names a proxy.
    """
    if name.startswith(_STEERING) or name.endswith("_PROXY"):
        return True
    return "_" not in written and name.rpartition("_")[2] in _STEERING_WORDS


def forbidden(name: str, value: str) -> str:
    """Return why a request must not set a variable, for people; empty if it may."""
    if name in _OWN:
        return f"{name} is set by the agent"
    if name in _NEVER_NAMES or any(fnmatchcase(name, pattern) for pattern in _NEVER_PATTERNS):
        return f"{name} is never passed on: it can change what any program loads, reads or starts"
    if not _NAME.fullmatch(name):
        return f"{name[:80]!r} is not an accepted name; names are capital letters, digits and underscores"
    if (name in ("LANG", "TERM", "TZ") or name.startswith("LC_")) and ("/" in value or "%" in value):
        return f"the value of {name} must not contain '/' or '%': it could name a file"
    return ""
