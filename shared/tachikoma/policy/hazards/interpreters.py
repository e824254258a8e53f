"""Programs that can run any other program. To allow one is to allow everything, so a policy must say so explicitly.

Where one of these is allowed, a list of denied commands has no effect (`env rm`, `find -exec rm`, `sh -c rm`). The same
holds for a list of allowed commands that names one with open arguments.
"""

from __future__ import annotations

import re

__all__ = ["is_interpreter"]

_NAMES = frozenset(
    (
        # shells
        "sh", "ash", "bash", "rbash", "dash", "ksh", "ksh93", "mksh", "lksh", "zsh", "rzsh", "fish", "csh",
        "tcsh", "pwsh", "busybox", "toybox", "sash",
        # languages
        "awk", "gawk", "mawk", "nawk", "original-awk", "sed", "bc", "dc", "ed", "ex", "perl", "python",
        "pypy", "ruby", "irb", "node", "nodejs", "deno", "bun", "php", "lua", "luajit", "tclsh", "wish",
        "expect", "guile", "java", "jshell", "groovy", "scala", "R", "Rscript", "julia", "octave", "erl",
        "elixir", "iex", "ghci", "runghc", "go", "cargo", "jq", "gcc", "g++", "cc", "c++", "clang", "tcc",
        "make", "gmake", "cmake", "ninja", "m4", "gdb", "lldb", "jjs", "socat",
        # launchers
        "env", "xargs", "parallel", "find", "fd", "fdfind", "nice", "ionice", "chrt", "taskset", "timeout",
        "nohup", "setsid", "stdbuf", "unbuffer", "time", "watch", "flock", "script", "screen", "tmux",
        "dtach", "at", "batch", "crontab", "start-stop-daemon", "daemon", "systemd-run", "systemd-nspawn",
        "run-parts", "chroot", "unshare", "nsenter", "bwrap", "firejail", "setpriv", "capsh", "setarch",
        "linux32", "linux64", "i386", "prlimit", "choom", "uclampset", "cgexec", "strace", "ltrace", "perf",
        "valgrind", "catchsegv", "pkexec", "sudo", "sudoedit", "doas", "su", "runuser", "sg", "newgrp",
        "gosu", "su-exec", "runcon", "dbus-run-session", "dbus-launch", "xvfb-run", "fakeroot", "eatmydata",
        "ssh", "sshpass", "scp", "sftp", "rsync", "ssh-agent", "docker", "podman", "nerdctl", "ctr", "crictl",
        "kubectl", "lxc", "lxc-attach", "machinectl", "virsh", "multipass",
        # editors, pagers and tools that can start a shell, or that run commands from a file or an option
        "vi", "vim", "nvim", "view", "rvim", "nano", "pico", "emacs", "joe", "mcedit", "less", "more", "most",
        "man", "pg", "tar", "bsdtar", "cpio", "zip", "git", "hg", "svn", "dpkg", "rpm", "apt", "apt-get",
        "pip", "npm", "npx", "yarn", "gem", "bundle", "cpan", "tcpdump", "nmap", "wget", "split", "sort",
        "openssl", "mysql", "psql", "sqlite3", "ftp", "telnet", "logrotate", "ansible", "ansible-playbook",
        "salt-call", "puppet", "chef-client",
    )
)  # fmt: skip
#: Names with a version, compilers with the name of their target, and the dynamic loader.
_PATTERN = re.compile(
    r"(?:python|pypy|perl|ruby|irb|php|lua|luajit|tclsh|wish|guile|gcc|g\+\+|clang|node|erl|pip|gem)-?[0-9][0-9.]*t?"
    r"|ld(?:-linux.*|-musl.*|-[0-9.]+)?\.so(?:\.[0-9.]+)?"
    r"|[a-z0-9_]+-[a-z0-9_]+-[a-z0-9_]+-(?:gcc|g\+\+|cpp)(?:-[0-9.]+)?"
)


def is_interpreter(path: str) -> bool:
    """Return True if a program, by the last part of its path, can run any other program."""
    name = path.rpartition("/")[2]
    return name in _NAMES or _PATTERN.fullmatch(name) is not None
