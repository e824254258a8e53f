"""Which programs can run other programs."""

from __future__ import annotations

import pytest

from tachikoma.policy.hazards.programs import ProgramKind, kind_of, worst

RUNNER, BY_ARGUMENTS, ON_TERMINAL = ProgramKind.RUNNER, ProgramKind.BY_ARGUMENTS, ProgramKind.ON_TERMINAL
SAFE, UNKNOWN = ProgramKind.SAFE, ProgramKind.UNKNOWN


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        # Shells, languages with their versions and targets, launchers, editors and pagers with their variants.
        (RUNNER, "/bin/sh bash /usr/bin/env busybox find xargs sudo ssh docker make R yash nu"),
        (RUNNER, "/usr/bin/python3.11 python3.13t perl5.36.0 perl5.36-x86_64-linux-gnu pip3 lua5.4 tclsh8.6 pydoc3.11"),
        (RUNNER, "x86_64-linux-gnu-gcc-12 g++-12 aarch64-linux-gnu-cpp c99-gcc clang++-14 lli-14 not-14"),
        (RUNNER, "editor vim.basic vim.tiny nvim-0.9 sensible-pager less lzless vipw most.x emacsclient"),
        (RUNNER, "/lib64/ld-linux-x86-64.so.2 /lib/ld-musl-x86_64.so.1 ld-2.31.so qemu-aarch64-static ldd"),
        # They take commands from their standard input.
        (RUNNER, "lftp mongosh psql sqlite3 gnuplot pgbench smbclient mail bsd-mailx ncftp psftp asterisk jtag"),
        # They load code or configuration that names commands, or are made to start others.
        (RUNNER, "yt-dlp rtorrent sshuttle rustup autoconf xetex cobc mypy easyrsa dstat opkg xdg-user-dir aoss genie"),
        # Of GTFOBins: what starts a program, loads code or asks another program, and what only reads and writes files.
        (RUNNER, "acr bee r arch-nspawn lessfilter"),
        (BY_ARGUMENTS, "arj aspell clamscan cupsfilter espeak hashcat lwp-download lwp-request pax pyright redis zic"),
        (BY_ARGUMENTS, "check_cups check_log check_memory check_raid check_ssl_cert check_statusfile rsyslogd rustfmt"),
        (BY_ARGUMENTS, "xpad yelp mksquashfs sqfstar xrdb espeak-ng lwp-mirror GET HEAD POST"),
        (
            SAFE,
            "ab ascii-xfr ascii85 atobm base58 basez cancel dig dos2unix efax file finger fping genisoimage lp tftp",
        ),
        (SAFE, "msgattrib msgcat msgconv msgmerge msguniq ntpdate qpdf red redcarpet setcap ssh-keyscan tic tsc xmore"),
        (
            SAFE,
            "unsquashfs unzip uudecode uuencode varnishncsa whois xmodmap delv isoinfo lpq lpstat mac2unix unix2dos",
        ),
        (BY_ARGUMENTS, "systemctl busctl /sbin/ip ssh-keygen mkfs.ext4 mount.nfs umount.cifs fsck.xfs curl gpg"),
        (BY_ARGUMENTS, "iptables ip6tables-restore arptables-nft ebtables xtables-nft-multi qemu-system-x86_64 kvm"),
        (BY_ARGUMENTS, "x86_64-linux-gnu-objcopy ld.gold opt-14 javac apt-cache savelog mosquitto"),
        (ON_TERMINAL, "journalctl systemd-cgls dmesg top apport-cli"),
        (SAFE, "uptime cat md5sum sha256sum b2sum base64 cp ps findmnt reboot [ gzip lsof ss"),
        (UNKNOWN, "/opt/app/bin/serve pythonic python3.11x SH ld.so.conf /opt/sh/app frontend qemu-img.x 12"),
    ],
)
def test_a_program_is_known_by_its_last_name(kind: ProgramKind, names: str) -> None:
    assert {name: kind_of(name) for name in names.split()} == dict.fromkeys(names.split(), kind)


@pytest.mark.parametrize("path", ["", "/", "/bin/", "-", "-12", "3.11"])
def test_a_path_without_a_name_is_unknown(path: str) -> None:
    assert kind_of(path) is UNKNOWN


@pytest.mark.parametrize(
    ("own", "others", "kind"),
    [
        (UNKNOWN, (), UNKNOWN),
        (UNKNOWN, (SAFE, UNKNOWN), UNKNOWN),
        (SAFE, (UNKNOWN,), SAFE),
        (SAFE, (BY_ARGUMENTS, ON_TERMINAL), SAFE),
        (SAFE, (BY_ARGUMENTS, RUNNER), RUNNER),
        (UNKNOWN, (ON_TERMINAL,), ON_TERMINAL),
        (ON_TERMINAL, (BY_ARGUMENTS,), BY_ARGUMENTS),
        (RUNNER, (SAFE,), RUNNER),
    ],
)
def test_of_several_names_the_dangerous_one_counts(
    own: ProgramKind, others: tuple[ProgramKind, ...], kind: ProgramKind
) -> None:
    assert worst(own, *others) is kind
