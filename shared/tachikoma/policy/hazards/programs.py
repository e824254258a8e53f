"""Which programs can run other programs, as far as that is known.

No list of this kind is complete. So the rules refuse what is known to be dangerous, and `tachikoma policy check` names
the kind of every granted program, unknown ones included. The reasons are in docs/decisions/0032.
"""

from __future__ import annotations

import re
from enum import Enum

from tachikoma.policy.hazards.interpreters import is_interpreter

__all__ = ["ProgramKind", "kind_of"]


class ProgramKind(Enum):
    """What is known of a program; the value is a text for people."""

    #: It needs `allowInterpreters`.
    RUNNER = "runs other programs"
    #: Some of its arguments start programs, load code or open an editor: granted with literal arguments only.
    BY_ARGUMENTS = "runs other programs with certain arguments"
    #: It starts a pager on a terminal, and the pager a shell: granted without a terminal only.
    ON_TERMINAL = "runs other programs on a terminal"
    SAFE = "known to run no other program"
    UNKNOWN = "unknown: it may run other programs"


#: Services, networks, storage, accounts, packages and keys.
_BY_ARGUMENTS = frozenset(
    (
        "systemctl", "busctl", "systemd-analyze", "systemd-tmpfiles", "systemd-inhibit", "systemd-cat", "systemd-mount",
        "udevadm", "gdbus", "dbus-send", "loginctl", "homectl", "portablectl", "coredumpctl", "bootctl",
        "kernel-install", "ip", "tc", "bridge", "nmcli", "nft", "iptables-apply", "ifup", "ifdown", "wg-quick",
        "openvpn", "pppd", "dhclient", "dnsmasq", "ssh-keygen", "ssh-add", "sshd", "gpg", "gpg2", "gpgsm", "gpgconf",
        "pkcs11-tool", "mount", "umount", "losetup", "lvm", "dmsetup", "zfs", "zpool", "mdadm", "smartd", "mkfs",
        "useradd", "usermod", "adduser", "deluser", "visudo", "vipw", "vigr", "service", "invoke-rc.d",
        "update-alternatives", "update-rc.d", "insmod", "modprobe", "kmod", "sysctl", "apt-key", "aptitude", "dnf",
        "yum", "zypper", "pacman", "snap", "flatpak", "nginx", "apachectl", "apache2ctl", "apache2", "httpd", "php-fpm",
        "haproxy", "postfix", "sendmail", "exim4", "mail", "mailx", "mutt", "curl", "nc", "ncat", "netcat", "lftp",
        "aria2c", "mysqladmin", "mysqldump", "pg_dump", "pg_basebackup", "pg_ctl", "redis-cli", "valkey-cli", "mongosh",
        "mongo", "sqlcmd", "install", "diff3", "sdiff", "troff", "groff", "nroff", "terraform", "helm", "vagrant",
        "packer", "consul", "nomad", "vault", "rake", "gulp", "mvn", "gradle", "restic", "borg", "rclone", "duplicity",
        "rsnapshot", "certbot", "cloud-init", "monit", "supervisorctl", "runsv", "qemu-system-x86_64", "tshark",
        "dumpcap", "wireshark", "ngrep", "openconnect", "bpftrace", "ebtables",
    )
)  # fmt: skip
#: Their only way to another program is the pager.
_ON_TERMINAL = frozenset(
    ("journalctl", "timedatectl", "hostnamectl", "localectl", "networkctl", "resolvectl", "userdbctl")
)
#: No option of theirs is known to start a program, load code or open an editor.
_SAFE = frozenset(
    (
        "true", "false", "uptime", "uname", "hostname", "hostid", "whoami", "id", "groups", "who", "w", "users", "last",
        "lastlog", "arch", "nproc", "free", "vmstat", "mpstat", "iostat", "df", "du", "stat", "ls", "dir", "vdir",
        "pwd", "echo", "printf", "cat", "tac", "head", "tail", "wc", "nl", "cut", "tr", "uniq", "comm", "join", "paste",
        "fold", "fmt", "expand", "unexpand", "rev", "od", "hexdump", "base32", "base64", "cksum", "md5sum", "sha1sum",
        "sha224sum", "sha256sum", "sha384sum", "sha512sum", "b2sum", "sum", "seq", "factor", "sleep", "sync",
        "basename", "dirname", "readlink", "realpath", "mktemp", "mkdir", "rmdir", "rm", "unlink", "touch", "truncate",
        "fallocate", "test", "[", "expr", "cmp", "grep", "egrep", "fgrep", "getent", "lscpu", "lsblk", "lsmem", "lsns",
        "lsipc", "lsmod", "lspci", "lsusb", "blkid", "findmnt", "mountpoint", "ps", "pgrep", "pidof", "pmap", "pstree",
        "kill", "pkill", "killall", "tty", "logger", "ping", "ping6", "tracepath", "arping", "nslookup", "host",
        "printenv", "locale", "tsort", "numfmt", "chgrp", "cal", "ncal", "getconf", "namei", "fincore", "runlevel",
        "pwck", "grpck",
    )
)  # fmt: skip
#: Names by which Debian's alternatives and packages install editors, pagers, terminals and languages.
_RUNNERS = frozenset(
    (
        "editor", "sensible-editor", "sensible-pager", "sensible-browser", "sensible-terminal", "select-editor",
        "pager", "x-terminal-emulator", "x-www-browser", "www-browser", "x-session-manager", "xterm", "uxterm", "urxvt",
        "rxvt", "gnome-terminal", "konsole", "jed", "ne", "mg", "micro", "helix", "hx", "kak", "vis", "elvis", "nvi",
        "levee", "lynx", "w3m", "links", "elinks", "run-mailcap", "xdg-open", "lesspipe", "zless", "lessfile", "zmore",
        "bzmore", "bzless", "xzmore", "xzless", "vimdiff", "rview", "gvim", "gview", "ex", "mc", "ranger", "nnn", "lf",
        "mcview", "dvtm", "byobu", "zellij", "abduco", "reptyr", "at", "anacron", "cron", "run0",
        "systemd-ask-password", "tini", "dumb-init", "s6-supervise", "runsvdir", "chpst", "softlimit", "setlock",
        "envdir", "envuidgid", "setuidgid", "trickle", "torify", "torsocks", "proxychains", "proxychains4", "tsocks",
        "faketime", "fakechroot", "schroot", "proot", "distrobox", "toolbox", "buildah", "runc", "crun", "lxd", "incus",
        "autossh", "mosh", "mosh-server", "dropbear", "dbclient", "rsh", "rlogin", "rexec", "pdsh", "clush", "pssh",
        "parallel-ssh", "entr", "watchexec", "cpulimit", "numactl", "hwloc-bind", "nsjail", "minijail0", "aa-exec",
        "sudo-rs", "sudoreplay", "pkcon", "ksu", "ltrace", "rr", "gcore", "heaptrack", "systemd-nspawn", "qemu-x86_64",
        "wine", "mono", "dotnet", "rustc", "ocaml", "sbcl", "clisp", "gforth", "nasm", "scheme", "racket", "crystal",
        "nim", "zig", "kotlin", "ts-node", "tsx", "uv", "uvx", "pipx", "poetry", "conda", "tox", "nox", "pytest",
        "ipython", "ipython3", "jupyter", "celery", "gunicorn", "uwsgi", "bazel", "ant", "just", "meson", "scons",
        "libtool", "autoreconf", "debuild", "dpkg-buildpackage", "rpmbuild", "fpm", "msgexec", "msgfilter", "yq",
        "jshell", "xdotool", "zsoelim", "rlwrap", "ssh-copy-id", "sshfs",
    )
)  # fmt: skip
#: Editors, pagers and runtimes with the variant or version of an alternative: vim.basic, vim.tiny, nvim-0.9.
_VARIANT = re.compile(
    r"(?:r?vim?|r?view|vimdiff|nvim|nano|emacs|ex|less|most|mawk|gawk|java|ruby|lua|nc|ksh|tclsh|wish)[.-][\w.-]+"
)


def kind_of(path: str) -> ProgramKind:
    """Return what is known of a program, by the last part of its path."""
    name = path.rpartition("/")[2]
    if is_interpreter(path) or name in _RUNNERS or _VARIANT.fullmatch(name):
        return ProgramKind.RUNNER
    if name in _ON_TERMINAL:
        return ProgramKind.ON_TERMINAL
    if name in _BY_ARGUMENTS or name.startswith(("mkfs.", "fsck.", "mount.", "umount.")):
        return ProgramKind.BY_ARGUMENTS
    return ProgramKind.SAFE if name in _SAFE else ProgramKind.UNKNOWN
