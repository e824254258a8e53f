/*
 * The walk to the directory that a command starts in.
 *
 * A directory without a symbolic link on its path is opened by one system call that follows none. Otherwise the walk
 * resolves link after link into a path without links, and opens that path in the same way. So a directory that is
 * exchanged for a link during the walk is not followed. Like the rest of the child, it allocates no memory.
 */
#define _GNU_SOURCE
#include "work_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Symbolic links that are followed on one path, as many as the kernel follows (path_resolution(7)). */
#define MAX_LINKS 40

struct walk {
	int root;                       /* where paths begin; never left */
	int absolute;                   /* the root is "/": absolute links and ".." above it lead to it */
	char resolved[PATH_MAX];        /* from the root, without links; empty for the root itself */
	char remaining[PATH_MAX];       /* what is still to be resolved */
};

static int with_errno(int number)
{
	errno = number;
	return -1;
}

/* Open a path from the root, and follow no link on the way. With O_NOFOLLOW, the path may name a link. */
static int open_plain(const struct walk *walk, const char *path, unsigned long flags)
{
	struct open_how how = {
		.flags = O_PATH | O_CLOEXEC | flags,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};

	return (int)syscall(SYS_openat2, walk->root, *path ? path : ".", &how, sizeof(how));
}

static int trusted(const struct stat *found)
{
	return found->st_uid == 0 || found->st_uid == getuid();
}

/* In a sticky directory too, anybody can place a link of another user: by a hard link, or by moving it there. */
static int placed_by_trusted(const struct walk *walk, const struct stat *link)
{
	struct stat parent;
	int directory = open_plain(walk, walk->resolved, O_DIRECTORY);
	int failed = directory < 0 || fstat(directory, &parent) != 0;

	if (directory >= 0)
		close(directory);
	if (failed)
		return -1;
	return trusted(link) && trusted(&parent) && !(parent.st_mode & (S_IWGRP | S_IWOTH));
}

/* Remove the last part of the resolved path. */
static int leave_directory(struct walk *walk)
{
	char *last = strrchr(walk->resolved, '/');

	if (walk->resolved[0] == '\0')
		return walk->absolute ? 0 : with_errno(EXDEV);
	*(last == NULL ? walk->resolved : last) = '\0';
	return 0;
}

/* Put the target of a link before what is still to be resolved. */
static int follow(struct walk *walk, int link)
{
	char target[PATH_MAX];
	ssize_t length = readlinkat(link, "", target, sizeof(target) - 1);
	size_t rest = strlen(walk->remaining);

	if (length < 0)
		return -1;
	if (length == 0)
		return with_errno(ENOENT);
	if (target[0] == '/' && !walk->absolute)
		return with_errno(EXDEV);
	if ((size_t)length + 1 + rest >= sizeof(walk->remaining))
		return with_errno(ENAMETOOLONG);
	if (target[0] == '/')
		walk->resolved[0] = '\0';
	memmove(walk->remaining + length + 1, walk->remaining, rest + 1);
	memcpy(walk->remaining, target, (size_t)length);
	walk->remaining[length] = '/';
	return 0;
}

/* Resolve one part of the path: enter a directory, or follow a link. `links` counts down those that may be followed. */
static int enter(struct walk *walk, const char *part, size_t length, int *links)
{
	char path[PATH_MAX];
	size_t before = strlen(walk->resolved);
	struct stat found;
	int entry, result = 0;

	if (before + 1 + length >= sizeof(path))
		return with_errno(ENAMETOOLONG);
	memcpy(path, walk->resolved, before);
	if (before > 0)
		path[before++] = '/';
	memcpy(path + before, part, length);
	path[before + length] = '\0';
	entry = open_plain(walk, path, O_NOFOLLOW);
	if (entry < 0)
		return -1;
	if (fstat(entry, &found) != 0) {
		result = -1;
	} else if (!S_ISLNK(found.st_mode)) {
		memcpy(walk->resolved, path, before + length + 1);
	} else if ((*links)-- == 0) {
		result = with_errno(ELOOP);
	} else {
		int safe = placed_by_trusted(walk, &found);

		if (safe == 0)
			result = with_errno(EPERM);
		else
			result = safe < 0 ? -1 : follow(walk, entry);
	}
	close(entry);
	return result;
}

/* Resolve all that remains. */
static int resolve(struct walk *walk)
{
	int links = MAX_LINKS;

	for (;;) {
		char part[NAME_MAX + 1];
		char *begin = walk->remaining + strspn(walk->remaining, "/");
		size_t length = strcspn(begin, "/");
		int result;

		if (length == 0)
			return 0;
		if (length > NAME_MAX)
			return with_errno(ENAMETOOLONG);
		memcpy(part, begin, length);
		part[length] = '\0';
		memmove(walk->remaining, begin + length, strlen(begin + length) + 1);
		if (strcmp(part, ".") == 0)
			result = 0;
		else if (strcmp(part, "..") == 0)
			result = leave_directory(walk);
		else
			result = enter(walk, part, length, &links);
		if (result != 0)
			return -1;
	}
}

int open_work_dir(int root, const char *path)
{
	struct walk walk = { .root = root, .absolute = root < 0 };
	int opened = -1, why;

	if (strlen(path) >= sizeof(walk.remaining))
		return with_errno(ENAMETOOLONG);
	if (walk.absolute)
		walk.root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (walk.root < 0)
		return -1;
	path += strspn(path, "/");
	opened = open_plain(&walk, path, O_DIRECTORY);
	if (opened < 0 && errno == ELOOP) {
		memcpy(walk.remaining, path, strlen(path) + 1);
		if (resolve(&walk) == 0)
			opened = open_plain(&walk, walk.resolved, O_DIRECTORY);
	}
	why = errno;
	if (walk.absolute)
		close(walk.root);
	errno = why;
	return opened;
}
