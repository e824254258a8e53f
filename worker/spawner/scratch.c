/*
 * The temporary folders of requesters. Those of one requester are a file system in memory, below a folder of the agent
 * that no command reaches; so their size is bounded, and they are removed at once.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "spawner.h"

#define MAX_TMP 1024

static char *made[MAX_TMP];             /* paths of the folders that this process has made; NULL: a free place */

/* Return whether a file system is mounted at a path: its device is not that of the folder above it. */
static int is_mounted(const char *path)
{
	char above[PATH_MAX];
	struct stat own, parent;

	return snprintf(above, sizeof(above), "%s/..", path) < (int)sizeof(above) && stat(path, &own) == 0 &&
	       stat(above, &parent) == 0 && own.st_dev != parent.st_dev;
}

static int make_beneath(const char *folder, const char *name)
{
	char path[PATH_MAX];

	if (snprintf(path, sizeof(path), "%s/%s", folder, name) >= (int)sizeof(path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	if (mkdir(path, 0700) != 0)
		return errno == EEXIST ? 0 : -1;
	return chmod(path, 01777);
}

static int remove_folder(const char *path)
{
	if (is_mounted(path) && umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) != 0)
		return -1;
	return rmdir(path) == 0 || errno == ENOENT ? 0 : -1;
}

/* Return the place of a path among those that were made, a free one if it is new, or NULL if there is none. */
static char **place_of(const char *path)
{
	char **vacant = NULL;

	for (size_t i = 0; i < MAX_TMP; i++) {
		if (made[i] != NULL && strcmp(made[i], path) == 0)
			return &made[i];
		if (made[i] == NULL && vacant == NULL)
			vacant = &made[i];
	}
	return vacant;
}

/* Make the temporary folders of a request's requester, unless they exist. Returns 0, or -1 with errno. */
int make_tmp_folders(const struct command *command)
{
	const char *folder = command->tmp_folder;
	char options[96];
	char **place = place_of(folder);

	if (place == NULL) {
		errno = ENOSPC;
		return -1;
	}
	if (*place == NULL && (*place = strdup(folder)) == NULL)
		return -1;
	if (mkdir(folder, 0700) != 0 && errno != EEXIST)
		return -1;
	if (is_mounted(folder))
		return 0;
	snprintf(options, sizeof(options), "mode=0755,size=%llu,nr_inodes=%llu",
		 (unsigned long long)command->head.tmp_bytes, (unsigned long long)command->head.tmp_inodes);
	if (mount("tachikoma-tmp", folder, "tmpfs", MS_NOSUID | MS_NODEV, options) != 0)
		return -1;
	if (make_beneath(folder, "tmp") == 0 && make_beneath(folder, "var") == 0 && make_beneath(folder, "shm") == 0)
		return 0;
	int why = errno;

	(void)remove_folder(folder);
	errno = why;
	return -1;
}

static void forget(char **place)
{
	free(*place);
	*place = NULL;
}

void drop_tmp(struct worker *worker)
{
	char **place = place_of(worker->body);

	if (worker->body[0] != '/') {
		reply_failure(worker, worker->header.tag, STEP_REQUEST, EINVAL);
	} else if (remove_folder(worker->body) != 0) {
		reply_failure(worker, worker->header.tag, STEP_TMP, errno);
	} else {
		if (place != NULL && *place != NULL)
			forget(place);
		reply_done(worker);
	}
}

/* At the end of the spawner, when no command uses them. */
void drop_all_tmp(void)
{
	for (size_t i = 0; i < MAX_TMP; i++) {
		if (made[i] == NULL)
			continue;
		(void)remove_folder(made[i]);
		forget(&made[i]);
	}
}
