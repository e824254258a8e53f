/*
 * What a command sees of the host: its namespaces, and the mounts in them.
 *
 * It runs in the child, between fork and exec, and like all of the child it only makes system calls. Everything that
 * is needed from the host is opened as a detached copy first (open_tree(2)). Then the host's files are closed, and the
 * copies are attached. No directory stays open from before: it would be a way around every mount. The working directory
 * is entered afterwards.
 */
#define _GNU_SOURCE
#include "isolation.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "child.h"

/* Numbers and flags of calls that are newer than some C libraries (all architectures have the same numbers). */
#define CALL_OPEN_TREE 428
#define CALL_MOVE_MOUNT 429
#define CALL_MOUNT_SETATTR 442
#define CALL_LANDLOCK_CREATE_RULESET 444
#define CALL_LANDLOCK_RESTRICT_SELF 446
#define TREE_CLONE 1                    /* OPEN_TREE_CLONE */
#define TREE_RECURSIVE 0x8000           /* AT_RECURSIVE */
#define MOVE_EMPTY_PATH 4               /* MOVE_MOUNT_F_EMPTY_PATH */
#define ATTRIBUTE_READ_ONLY 1           /* MOUNT_ATTR_RDONLY */
#define ATTRIBUTE_NO_SETUID 2           /* MOUNT_ATTR_NOSUID */
#define SCOPE_ABSTRACT_SOCKETS 1        /* LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET */
#define SCOPE_SIGNALS 2                 /* LANDLOCK_SCOPE_SIGNAL */

/* struct mount_attr and struct landlock_ruleset_attr. */
struct mount_attributes {
	uint64_t set, clear, propagation, user_namespace;
};
struct ruleset_attributes {
	uint64_t files, network, scoped;
};

static const char *const tmp_paths[] = { "/tmp", "/var/tmp", "/dev/shm" };
static const char *const tmp_names[] = { "tmp", "var", "shm" };
#define TMP_PATHS 3

/* Devices that a command of root has: those without power over the host. */
static const char *const devices[] = {
	"null", "zero", "full", "random", "urandom", "tty", "pts",
};
#define DEVICES (sizeof(devices) / sizeof(devices[0]))
static const char *const device_links[][2] = {
	{ "/proc/self/fd", "/dev/fd" },
	{ "/proc/self/fd/0", "/dev/stdin" },
	{ "/proc/self/fd/1", "/dev/stdout" },
	{ "/proc/self/fd/2", "/dev/stderr" },
};

/*
 * Files of /run that a command of root has. Each is a regular file when it is copied, and the copy of a file cannot
 * become another one. So none of them leads to a service, whatever services the host starts later.
 */
static const char *const run_files[] = {
	"systemd/resolve/stub-resolv.conf", "systemd/resolve/resolv.conf", "resolvconf/resolv.conf",
	"NetworkManager/resolv.conf", "NetworkManager/no-stub-resolv.conf", "connman/resolv.conf",
	"netconfig/resolv.conf", "utmp", "reboot-required", "reboot-required.pkgs",
};
#define RUN_FILES (sizeof(run_files) / sizeof(run_files[0]))

/* Detached copies of mounts; -1: none. */
struct copies {
	int tmp[TMP_PATHS];
	int device[DEVICES];
	int run[RUN_FILES];
	int passwd;
};

static int copy_of(const char *path)
{
	return (int)syscall(CALL_OPEN_TREE, AT_FDCWD, path, TREE_CLONE | TREE_RECURSIVE | O_CLOEXEC);
}

/* Attach a copy at a path and close it. Returns 0 or -1. */
static int attach(int copy, const char *path)
{
	int result = (int)syscall(CALL_MOVE_MOUNT, copy, "", AT_FDCWD, path, MOVE_EMPTY_PATH);
	int why = errno;

	close(copy);
	errno = why;
	return result;
}

static int set_attributes(const char *path, uint64_t attributes)
{
	struct mount_attributes change = { .set = attributes };

	return (int)syscall(CALL_MOUNT_SETATTR, AT_FDCWD, path, TREE_RECURSIVE, &change, sizeof(change));
}

static int may_change_host(const struct spawn *head)
{
	return head->uid == 0 && !(head->confine & CONFINE_READ_ONLY);
}

static void enter_namespaces(const struct spawn *head)
{
	int flags = CLONE_NEWNS;

	if (head->isolation != ISOLATION_SHARED)
		flags |= CLONE_NEWIPC | CLONE_NEWCGROUP;
	if (head->isolation == ISOLATION_SEALED)
		flags |= CLONE_NEWNET;
	if (unshare(flags) != 0)
		fail(STEP_NAMESPACES);
	/*
	 * Nothing that happens here reaches the host. What the host mounts later would be writable, and could cover a mask,
	 * so it appears only to a command of root that may change the host, which may ask a service to mount something.
	 */
	if (mount(NULL, "/", NULL, MS_REC | (may_change_host(head) ? MS_SLAVE : MS_PRIVATE), NULL) != 0)
		fail(STEP_MOUNTS);
}

/* Copy the temporary folders that the command gets, and that are no new ones. */
static void copy_tmp(const struct command *command, struct copies *copies)
{
	const struct spawn *head = &command->head;

	for (size_t i = 0; i < TMP_PATHS; i++) {
		char path[PATH_MAX];

		copies->tmp[i] = -1;
		if (head->tmp == TMP_EXECUTION || (head->tmp == TMP_HOST && !(head->confine & CONFINE_READ_ONLY)))
			continue;
		if (head->tmp == TMP_HOST)
			snprintf(path, sizeof(path), "%s", tmp_paths[i]);
		else if (snprintf(path, sizeof(path), "%s/%s", command->tmp_folder, tmp_names[i]) >= (int)sizeof(path))
			continue;
		copies->tmp[i] = copy_of(path);
		if (copies->tmp[i] < 0 && errno != ENOENT)
			fail(STEP_TMP);
	}
}

static void copy_devices(struct copies *copies)
{
	for (size_t i = 0; i < DEVICES; i++) {
		char path[32];

		snprintf(path, sizeof(path), "/dev/%s", devices[i]);
		copies->device[i] = copy_of(path);
		if (copies->device[i] < 0 && errno != ENOENT)
			fail(STEP_DEVICES);
	}
}

static void copy_run(struct copies *copies)
{
	for (size_t i = 0; i < RUN_FILES; i++) {
		char path[64];
		struct stat found;

		snprintf(path, sizeof(path), "/run/%s", run_files[i]);
		copies->run[i] = copy_of(path);
		if (copies->run[i] < 0 && errno != ENOENT && errno != ENOTDIR)
			fail(STEP_RUN);
		if (copies->run[i] >= 0 && (fstat(copies->run[i], &found) != 0 || !S_ISREG(found.st_mode))) {
			close(copies->run[i]);
			copies->run[i] = -1;
		}
	}
}

/* Make the folders above a path. They exist, or they are made in a new file system. */
static void make_folders(char *path)
{
	for (char *slash = path + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
		*slash = '\0';
		if (mkdir(path, 0755) != 0 && errno != EEXIST)
			fail(STEP_RUN);
		*slash = '/';
	}
}

/*
 * Cover /run, where services have their sockets. A read-only mount permits connections to a socket. A cover of the
 * folder holds for sockets that appear later too.
 */
static void give_run(const struct copies *copies)
{
	unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
	struct stat found;

	if (mount("tachikoma-run", "/run", "tmpfs", flags, "mode=0755,size=64k,nr_inodes=64") != 0)
		fail(STEP_RUN);
	for (size_t i = 0; i < RUN_FILES; i++) {
		char path[64];

		if (copies->run[i] < 0)
			continue;
		snprintf(path, sizeof(path), "/run/%s", run_files[i]);
		make_folders(path);
		if (mknod(path, S_IFREG | 0600, 0) != 0 || attach(copies->run[i], path) != 0)
			fail(STEP_RUN);
	}
	if (mount(NULL, "/run", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, NULL) != 0)
		fail(STEP_RUN);
	/* It is a link to /run nearly everywhere. */
	if (lstat("/var/run", &found) == 0 && S_ISDIR(found.st_mode) &&
	    mount("tachikoma-run", "/var/run", "tmpfs", flags | MS_RDONLY, "mode=0755,size=4k,nr_inodes=2") != 0)
		fail(STEP_RUN);
}

/* Cover a folder by an empty one, and anything else by /dev/null, which no connection can be made to. */
static void mask(const char *path)
{
	unsigned long flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
	struct stat found;
	int result;

	if (stat(path, &found) != 0) {
		if (errno == ENOENT || errno == ENOTDIR)
			return;
		fail(STEP_MASK);
	}
	if (S_ISDIR(found.st_mode))
		result = mount("tachikoma-mask", path, "tmpfs", flags, "mode=0,size=4k,nr_inodes=2");
	else
		result = mount("/dev/null", path, NULL, MS_BIND, NULL);
	if (result != 0)
		fail(STEP_MASK);
}

static void give_devices(const struct copies *copies)
{
	if (mount("tachikoma-dev", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=64k,nr_inodes=32") != 0)
		fail(STEP_DEVICES);
	for (size_t i = 0; i < DEVICES; i++) {
		char path[32];
		int made;

		if (copies->device[i] < 0)
			continue;
		snprintf(path, sizeof(path), "/dev/%s", devices[i]);
		made = strcmp(devices[i], "pts") == 0 ? mkdir(path, 0755) : mknod(path, S_IFREG | 0600, 0);
		if (made != 0 || attach(copies->device[i], path) != 0)
			fail(STEP_DEVICES);
	}
	for (size_t i = 0; i < sizeof(device_links) / sizeof(device_links[0]); i++)
		if (symlink(device_links[i][0], device_links[i][1]) != 0)
			fail(STEP_DEVICES);
	/* The kernel looks for `pts` beside the node, so it is no copy. Without the right to make it, no terminal opens. */
	if (mknod("/dev/ptmx", S_IFCHR | 0666, makedev(5, 2)) == 0)
		(void)chmod("/dev/ptmx", 0666);
	if (mkdir("/dev/shm", 0755) != 0)
		fail(STEP_DEVICES);
	/* Only the folder itself: its devices and terminals can be written to. */
	if (mount(NULL, "/dev", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL) != 0)
		fail(STEP_DEVICES);
}

static void give_tmp(const struct spawn *head, const struct copies *copies)
{
	char options[96];

	snprintf(options, sizeof(options), "mode=1777,size=%llu,nr_inodes=%llu", (unsigned long long)head->tmp_bytes,
		 (unsigned long long)head->tmp_inodes);
	for (size_t i = 0; i < TMP_PATHS; i++) {
		int result = 0;

		if (copies->tmp[i] >= 0)
			result = attach(copies->tmp[i], tmp_paths[i]);
		else if (head->tmp == TMP_EXECUTION)
			result = mount("tachikoma-tmp", tmp_paths[i], "tmpfs", MS_NOSUID | MS_NODEV, options);
		if (result != 0 && errno != ENOENT)
			fail(STEP_TMP);
	}
}

/* The loopback interface of a new network namespace is down at first (netdevice(7)). */
static void raise_loopback(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int endpoint = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (endpoint < 0 || ioctl(endpoint, SIOCSIFFLAGS, &request) != 0)
		fail(STEP_NETWORK);
	close(endpoint);
}

void isolate(const struct command *command)
{
	const struct spawn *head = &command->head;
	struct copies copies = { .passwd = -1 };
	int read_only = (head->confine & CONFINE_READ_ONLY) != 0;

	if (!(head->confine & CONFINE_MASKS))
		return;
	enter_namespaces(head);
	copy_tmp(command, &copies);
	if (read_only) {
		copy_devices(&copies);
		copy_run(&copies);
	}
	if (command->passwd != NULL && (copies.passwd = copy_of(command->passwd)) < 0)
		fail(STEP_ACCOUNTS);
	if (read_only && set_attributes("/", ATTRIBUTE_READ_ONLY | ATTRIBUTE_NO_SETUID) != 0)
		fail(STEP_READ_ONLY);
	if ((head->confine & CONFINE_CGROUP_FILES) && set_attributes("/sys/fs/cgroup", ATTRIBUTE_READ_ONLY) != 0)
		fail(STEP_CGROUP_FILES);
	if (read_only) {
		give_devices(&copies);
		give_run(&copies);
	}
	give_tmp(head, &copies);
	/* After the temporary folders of the host, which may contain a masked path. */
	for (uint32_t i = 0; i < head->masks; i++)
		mask(command->mask[i]);
	if (copies.passwd >= 0 && attach(copies.passwd, "/etc/passwd") != 0)
		fail(STEP_ACCOUNTS);
	if (head->isolation != ISOLATION_SHARED &&
	    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC | (read_only ? MS_RDONLY : 0), NULL) != 0)
		fail(STEP_PROC);
	if (head->isolation == ISOLATION_SEALED)
		raise_loopback();
	/* The working directory is still one of the host's. */
	if (chdir("/") != 0)
		fail(STEP_MOUNTS);
}

void limit_scopes(void)
{
	struct ruleset_attributes attributes = { .scoped = SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS };
	int ruleset = (int)syscall(CALL_LANDLOCK_CREATE_RULESET, &attributes, sizeof(attributes), 0);

	if (ruleset < 0 || syscall(CALL_LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0)
		fail(STEP_SCOPES);
	close(ruleset);
}
