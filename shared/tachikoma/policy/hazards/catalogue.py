"""Names of programs by what they can run: facts about Debian's packages, its alternatives, and programs in common use.

A name is in one list only. Versions, variants and targets are left out (`gcc-12`, `vim.basic`, `x86_64-linux-gnu-gdb`):
`programs.py` takes them off first. docs/decisions/0032 names the sources and the way to check a host against the lists.
"""

from __future__ import annotations

__all__ = ["BY_ARGUMENTS", "ON_TERMINAL", "RUNNERS", "SAFE"]

_RUNNERS = """
aa-exec abduco acr agetty alacritty alembic alpine amm anacron ansible ansible-console ansible-doc ansible-galaxy
ansible-inventory ansible-playbook ansible-pull ansible-test ansible-vault ant aoss apt apt-get arch-nspawn ash
asterisk at autoconf autoheader autom4te autoreconf autossh awk bash bashbug batch bazel bbot bc bconsole bee
bettercap bpython bq bsd-mailx bsdtar bsh bugpoint buildah bun bundle bundler busybox bwrap byebug byobu bzless bzmore
c++ c89 c89-gcc c99 c99-gcc cabal capsh cargo catchsegv cc ccache cdist celery cgexec check_by_ssh chef chef-client
choom chpst chromium chromium-browser chroot chrt clang clang++ clang-cpp clisp clj clojure clush cmake cobc code
code-server codex codium composer conda containerd containerd-shim containerd-shim-runc-v1 containerd-shim-runc-v2
corepack cpack cpan cpan2dist cpio cpp cpulimit crash crictl cron crontab crun crystal cscope csh ctest ctr cu daemon
dash dbclient dbus-launch dbus-run-session dc debconf debootstrap debuild deno distcc distrobox dmenu_run doas docker
docker-compose docker-init dockerd dosbox dotnet dpkg dpkg-architecture dpkg-buildpackage dpkg-preconfigure
dpkg-reconfigure dropbear dsniff dstat dtach dumb-init dvtm easy_install easyrsa eatmydata ed editor elinks elixir
elixirc elvis elvish emacs emacsclient entr env envdir envuidgid epiphany erl erlc es etex ettercap ex expect
fakechroot fakeroot faketime fastfetch fd fdfind featherpad fennel file-rename find firefox firefox-esr firejail fish
flock foot forge fpm ftp fzf g++ gawk gcc gcloud gcore gdb gdb-add-index gdbtui gdc geany gedit gem genie getty gforth
gfortran gh ghc ghci gimp ginsh gio git git-receive-pack git-shell git-upload-archive git-upload-pack glab gm2 gmake
gnat gnome-terminal gnome-www-browser gnuplot go google-chrome gosu gprolog graalpy gradle grc groovy groovysh grunt
gsutil gtester guile gulp gunicorn gview gvim hbmk2 heaptrack helix hg hping3 hub hwloc-bind hx i386 icecc idle idle3
iex incus inetd instmodsh ionice ipython ipython3 irb irb3 irssi ispell java javadoc jdb jed jexec jimsh jjs jmacs joe
jpico jq jrunscript jshell jstar jtag julia jupyter just jython k3s k9s kak kate kitty knife konsole kotlin kotlinc
krsh ksh ksh93 ksshell ksu kubectl latex latexmk lazygit ldc2 ldd leafpad lein less lessfile lessfilter lesspipe levee
lf lftp libtool links linux32 linux64 littler lksh lldb lli llvm-jitlink llvm-reduce login logrotate logsave loksh
ltrace lua luajit lualatex luatex lxc lxc-attach lxd lxterm lxterminal lynx lzless lzmore m4 machinectl mail mailx
make make-first-existing-target makechrootpkg man mate-terminal matlab mawk maxima mc mcedit mcview memusage meson mg
micro microk8s micropython minicom minijail0 mix mkarchroot mksh mmdebstrap mongo mongosh mono more mosh mosh-server
most mousepad msfconsole msgexec msgfilter multipass multitime mutt mvn mvnDebug mypy mysql nano nasm nawk ncftp ne
nedit needrestart neofetch neomutt nerdctl newgrp nice nim ninja nmap nnn node nodejs nohup not nox npm npx nsenter
nsjail nu numactl nvi nvim nvimpager oc ocaml octave octave-cli oksh open opencode openssl openvt opkg original-awk
osh pager pandoc parallel parallel-ssh pdb pdflatex pdftex pdsh perf perl perlbug perldoc perlthanks pexec pg
pg_buildext pg_virtualenv pgbench php pico picocom pike pine pip pipx pkcon pkexec pkg pluma pm2 podman poetry posh
prename prlimit proot prove proxychains proxychains4 pry psftp psql pssh ptipython ptpython puppet pwsh pydoc pydoc3
pypy pytest python qemu-x86_64 R r r2 racket radare2 rake ranger rbash rc rcp rebar3 remsh rename reptyr rexec rjoe
rlogin rlwrap rofi rpcgen rpm rpmbuild rpmdb rpmquery rpmverify rpython rr Rscript rscript rsh rsync rtorrent ruby
run-mailcap run-parts run0 runc runcon runghc runscript runsvdir runuser rustc rustdoc rustup rview rvim rxvt rzsh
s-nail s6-supervise salt salt-call salt-minion salt-run salt-ssh sash sbcl sbt scala scala-cli scanmem scapy sccache
scheme schroot scilab scons scp screen script scriptlive scsh sed select-editor sensible-browser sensible-editor
sensible-pager sensible-terminal setarch setlock setpriv setsid setuidgid sftp sg sh slogin slsh smbclient socat
socket softlimit sort sotruss split sqlite3 sqlmap ssh ssh-agent ssh-argv0 ssh-copy-id sshfs sshpass sshuttle
start-stop-daemon stdbuf strace su su-exec subl sudo sudo-rs sudoedit sudoreplay sulogin svn swipl swish switch_root
systemd-ask-password systemd-nspawn systemd-run systemd-socket-activate tar task taskset tasksh tcc tclkit tclsh
tcpdump tcpserver tcpsvd tcsh tdbtool telnet terminator tex tig tilde tilix time timeout tini tip tmate tmux tomlq
toolbox torify torsocks tox toybox trickle ts-node tsocks tsx ucf uclampset unbuffer unshare urxvt uucp uux uv uvx
uwsgi uxterm vagrant valgrind valgrind.bin vgdb vi view vigr vim vimdiff vimpager vimtutor vipw virsh vis volatility
w3m watch watchexec weechat wfuzz wget wine wish wordgrinder www-browser x-session-manager x-terminal-emulator
x-www-browser xargs xdg-email xdg-open xdg-user-dir xdotool xedit xelatex xetex xfce4-terminal xinetd xonsh xq
xq-python xterm xvfb-run xzless xzmore yarn yash youtube-dl yq ysh yt-dlp zathura zellij zig zip zless zmore zsh
zsoelim zstdless
"""
_BY_ARGUMENTS = """
7z 7za 7zr a2ps add-apt-repository addgroup adduser alien apache2 apache2ctl apachectl apt-add-repository apt-cache
apt-cdrom apt-config apt-key apt-mark aptd aptitude ar aria2c arj as aspell aws az bootctl borg bpftrace bridge busctl
cabextract certbot certtool chage check_cups check_log check_memory check_raid check_ssl_cert check_statusfile
checkinstall chfn chgpasswd chpasswd chronyc chronyd chsh clamscan clang-tidy clickhouse-client cloud-init cockroach
consul convert coredumpctl corosync cowsay cowthink crm cryptdisks_start cryptsetup csvtool cupsfilter curl
dbus-daemon dbus-monitor dbus-send dbus-update-activation-environment deb-systemd-helper deb-systemd-invoke debsign
debugfs delgroup deluser depmod dhclient dhcpcd dialog diff3 dirmngr dmidecode dmsetup dnf dnsmasq doctl dpkg-deb
dpkg-divert dpkg-genchanges dpkg-maintscript-helper dpkg-query dpkg-source dpkg-statoverride dpkg-trigger dput drbdadm
dumpcap duplicity dvips e2scrub e2scrub_all ebtables efibootmgr eksctl enscript eqn equivs-build espeak espeak-ng etcd
etcdctl exiftool exim4 facter fail2ban-client fail2ban-server fetchmail ffmpeg ffprobe firewall-cmd flatpak fsck
fwupdmgr gapplication gcc-ar gcc-nm gcc-ranlib gdbus geqn GET getmail ghostscript gold gpasswd gpg gpg-agent
gpg-connect-agent gpg-wks-server gpg-zip gpg2 gpgconf gpgsm gpgtar gpic groff grog groupadd groupdel groupmems
groupmod grub-install gs gsettings gtbl haproxy hashcat HEAD helm highlight homectl hostapd htpasswd httpd identify
ifdown ifup influx init insmod install invoke-rc.d ip iptables-apply iscsiadm isync jar jarsigner javac jcmd jhsdb
jlink jmap jpackage jstack jstatd keepalived kernel-install kexec keytool kmod kvm ld ld.bfd ld.gold ldapmodify
ldapsearch ldconfig llc llvm-lto llvm-lto2 locale-gen loginctl losetup lto-dump lvm lwp-download lwp-mirror
lwp-request magick maildrop mariadb-dump mbsync mdadm minikube mke2fs mkfs mksquashfs modprobe mogrify monit mosquitto
mount mplayer mpv msmtp multipath munin-node mysql_upgrade mysqladmin mysqlbinlog mysqlcheck mysqldump mysqlimport
named nbd-client nc ncat netcat newusers nft nginx ngrep nm nmcli nodetool nomad nroff ntpd nullmailer objcopy objdump
oci offlineimap openconnect openrc opensc-tool openvpn opt p11-kit p11tool packer pacman pam-auth-update passwd patch
pax pcs pg_backupcluster pg_basebackup pg_conftool pg_createcluster pg_ctl pg_ctlcluster pg_dropcluster pg_dump
pg_dumpall pg_renamecluster pg_restore pg_restorecluster pg_upgradecluster php-fpm pic pidstat pivot_root pkcs11-tool
plymouth portablectl POST postfix pppd preconv procmail puppetserver pygmentize pyright qemu-system-i386
qemu-system-x86_64 rabbitmq-server rabbitmqctl ranlib rc-service rc-update rclone rdiff-backup redis redis-cli
redis-sentinel redis-server reprepro restic rmiregistry rsnapshot rsync-ssl rsyslogd rtcwake runsv rustfmt samba-tool
savelog scrot sdiff sendmail serialver service shorewall skopeo slapd smartd smbd snap snapper soelim sox sqfstar
sqlcmd sqlite3_analyzer ssh-add ssh-keygen sshd strace-log-merge strip supervisorctl swaks sysctl sysdig systemctl
systemd systemd-analyze systemd-cat systemd-cryptenroll systemd-firstboot systemd-inhibit systemd-mount systemd-notify
systemd-repart systemd-stdio-bridge systemd-sysusers systemd-tmpfiles systemd-umount tailscale tbl tc telinit
terraform timeshift troff tshark udevadm udhcpc ufw umoci umount unbound unrar update-alternatives
update-ca-certificates update-grub update-icon-caches update-initramfs update-java-alternatives update-locale
update-mime-database update-rc.d useradd usermod valkey-cli valkey-server varnishd vault visudo vlc wg-quick whiptail
winbindd wireshark wpa_cli wpa_supplicant xpad xrdb yelp yum zabbix_get zfs zic zkCli.sh zpool zypper
"""
_ON_TERMINAL = """
apport-cli atop bat batcat btop dmesg eb glances hostnamectl htop iftop iotop journalctl localectl mtr ncdu nethogs
networkctl powertop resolvectl systemd-cgls systemd-delta systemd-resolve timedatectl top userdbctl
"""
_SAFE = """
[ ab arch arp arping ascii-xfr ascii85 atobm b2sum badblocks base32 base58 base64 basename basenc basez blkid blockdev
bunzip2 bzcat bzip2 cal cancel cat chattr chgrp chmod chown cksum clear cmp col colcrt colrm column comm cp cpuid
csplit ctrlaltdel ctstat cut date dd delv df diff dig dir dircolors dirname dnsdomainname domainname dos2unix du
dumpe2fs e2freefrag e2label echo efax egrep envsubst expand expiry expr factor faillog fallocate false fgrep file
filefrag fincore findfs findmnt finger fmt fold fping free fstrim fuser genisoimage getcap getconf getent getfacl
getopt getpcaps gettext grep groups grpck grpconv grpunconv gunzip gzip halt hd head hexdump host hostid hostname
iconv id ifconfig iostat ipcmk ipcrm ipcs ipmaddr iptunnel ischroot isoinfo isosize join kill killall killall5 last
lastb lastlog ldattach link ln lnstat locale logger logname look lp lpq lpstat ls lsattr lsb_release lsblk lscpu lsfd
lsipc lsirq lslocks lslogins lsmem lsmod lsns lsof lspci lsusb lz4 lz4c lz4cat lzcat lzma mac2unix mcookie md5sum mesg
mii-tool mkdir mkfifo mknod mktemp modinfo mountpoint mpstat msgattrib msgcat msgconv msgmerge msguniq mv namei nameif
ncal netstat ngettext nisdomainname nl nologin nproc nslookup nstat ntpdate numastat numfmt od paste pathchk peekfd
pgrep pidof pidwait ping ping6 pinky pkill pldd pmap poweroff pr printenv printf prtstat ps pstree pstree.x11 ptx pwck
pwconv pwd pwdx pwunconv pzstd qpdf rarp readelf readlink realpath reboot red redcarpet rename.ul renice reset rev
rgrep rm rmdir rmmod route rtstat runlevel sensors seq setcap setfacl setterm sha1hmac sha1sum sha224sum sha256sum
sha384sum sha512sum shred shuf shutdown size skill slabtop sleep snice ss ssh-keyscan stat strings stty sum swapoff
swapon sync systemd-detect-virt systemd-escape systemd-id128 systemd-machine-id-setup systemd-path tabs tac tail tee
test tftp tic tload touch tput tr tracepath true truncate tsc tset tsort tty tzselect uconv ul uname uncompress
unexpand uniq unix2dos unlink unlz4 unlzma unsquashfs unxz unzip unzstd uptime users utmpdump uudecode uuencode
validlocale varnishncsa vdir vmstat w wall wc wdctl whereis which which.debianutils who whoami whois write xmodmap
xmore xxd xz xzcat yes ypdomainname zcat zdump zstd zstdcat
"""

#: Shells, languages, build tools, launchers, editors, pagers, terminals, browsers, containers, remote access, and
#: debuggers: to allow one is to allow everything. Also programs that run commands from their standard input.
RUNNERS = frozenset(_RUNNERS.split())
#: Some of their arguments start programs, load code or open an editor.
BY_ARGUMENTS = frozenset(_BY_ARGUMENTS.split())
#: They start a pager, or take a command to run, on a terminal only.
ON_TERMINAL = frozenset(_ON_TERMINAL.split())
#: No option of theirs is known to start a program, load code or open an editor.
SAFE = frozenset(_SAFE.split())
