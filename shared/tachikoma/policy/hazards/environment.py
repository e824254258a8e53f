"""Environment variables that no request may set, even if a policy lists them.

The list contains the variables from which sudo, OpenSSH, glibc, shells, interpreters and common tools take
instructions: code to load, files to read, programs to start, hosts to talk to.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

__all__ = ["forbidden", "steers_programs"]

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

#: Beginnings of names by which programs and libraries in common use find code, configuration, helpers or hosts.
_STEERING = (
    *("DBUS_", "MAN", "GREP_", "GROFF_", "TEX", "PG", "MYSQL_", "REDIS", "ORACLE_", "TNS_", "ODBC", "LDAP", "SASL_"),
    *(
        "SUDO_",
        "SSH_",
        "GPG_",
        "GNUPG",
        "PINENTRY_",
        "PKCS11_",
        "P11_",
        "OPENSSL_",
        "GNUTLS_",
        "NSS_",
        "TLS_",
        "RESOLV_",
    ),
    *(
        "JAVA_",
        "JDK_",
        "JVM_",
        "CATALINA_",
        "MAVEN_",
        "GRADLE_",
        "ANT_",
        "LUA_",
        "GUILE_",
        "TCL",
        "R_",
        "JULIA_",
        "GHC",
    ),
    *("GO", "CARGO_", "RUST", "DOTNET_", "CORECLR_", "MONO_", "PHP", "COMPOSER_", "BUNDLE_", "RUBY", "YARN_", "DENO_"),
    *("CC", "CXX", "CPP", "CFLAGS", "LDFLAGS", "MAKE", "CMAKE_", "PKG_", "CONFIG_", "GCC_", "CLANG", "RUSTC"),
    *(
        "GTK_",
        "GDK_",
        "GIO_",
        "GI_",
        "GST_",
        "QT_",
        "KDE",
        "GNOME_",
        "DISPLAY",
        "WAYLAND_",
        "XAUTHORITY",
        "ICE",
        "FONTCONFIG_",
    ),
    *(
        "ANSIBLE_",
        "TF_",
        "VAULT_",
        "CONSUL_",
        "NOMAD_",
        "HELM_",
        "KUBE",
        "AWS_",
        "AZURE_",
        "GOOGLE_",
        "CLOUDSDK_",
        "BOTO_",
    ),
    *("RSYNC_", "RCLONE_", "RESTIC_", "BORG_", "TAR_", "GZIP", "BZIP", "XZ_", "ZSTD_", "UNZIP", "ZIPOPT", "LS_COLORS"),
    *("SCREEN", "TMUX", "LESS", "MORE", "MOST", "BAT_", "DELTA_", "FZF_", "VIM", "EMACS", "NANO", "EX", "NVIM_"),
    *("CUDA_", "OMP_", "OPENBLAS_", "MKL_", "VK_", "LIBGL_", "MESA_", "LIBVA_", "OCL_", "OPENCL_", "INTEL_", "GLIBC"),
    *(
        "TACHIKOMA_",
        "FLASK_",
        "DJANGO_",
        "UWSGI_",
        "GUNICORN_",
        "RAILS_",
        "RACK_",
        "SENTRY_",
        "OTEL_",
        "NOTIFY_",
        "LISTEN_",
    ),
    *(
        "TEMP",
        "TMP",
        "MAILCAP",
        "MAILRC",
        "MAILCHECK",
        "NETRC",
        "WGET",
        "INPUTRC",
        "HISTFILE",
        "FCEDIT",
        "SVN_",
        "HG",
        "CVS",
    ),
)
#: Last words of such names, for programs that no list knows.
_STEERING_WORDS = frozenset(
    (
        "PATH", "DIR", "DIRS", "HOME", "ROOT", "FILE", "CONF", "CONFIG", "RC", "INIT", "PROFILE", "STARTUP", "OPTS",
        "OPTIONS", "FLAGS", "ARGS", "COMMAND", "CMD", "EXEC", "SHELL", "EDITOR", "VISUAL", "PAGER", "BROWSER",
        "VIEWER", "ASKPASS", "HELPER", "WRAPPER", "LAUNCHER", "HOOK", "HOOKS", "PLUGIN", "PLUGINS", "MODULE",
        "MODULES", "LIB", "LIBS", "LIBRARY", "PRELOAD", "LOADER", "ADDRESS", "SOCK", "SOCKET", "HOST", "HOSTS",
        "PROXY", "AGENT", "COMPILER", "INTERPRETER",
    )
)  # fmt: skip


def steers_programs(name: str, written: str = "") -> bool:
    """Return True if programs may find code, configuration, helpers or hosts by a variable.

    Args:
        name: the variable.
        written: the beginning of its name that policy writes before a wildcard. After `APP_`, all names are the
            application's own, unless a program in common use has names that begin so.
    """
    if name.startswith(_STEERING):
        return True
    return "_" not in written and name.rpartition("_")[2] in _STEERING_WORDS


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
