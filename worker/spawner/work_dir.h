/* The directory that a command starts in. */
#ifndef TACHIKOMA_WORK_DIR_H
#define TACHIKOMA_WORK_DIR_H

/*
 * Open a directory by its absolute path (O_PATH), or by a path beneath `root`, with the rights of the calling process.
 *
 * It follows a symbolic link only if no user but root and the caller could have placed it: one of them owns the link
 * and the directory that contains it, and nobody else may write to that directory. A path beneath `root` never leads
 * out of it. `root` is -1 for an absolute path.
 *
 * Returns the descriptor, or -1 with errno: EPERM for a link that another user could have placed, EXDEV for a path that
 * leads out of `root`, ELOOP for too many links, else the error of a system call.
 */
int open_work_dir(int root, const char *path);

#endif
