/* A command's terminal: a pseudo-terminal whose master the spawner holds (pty(7)). */
#ifndef TACHIKOMA_TERMINAL_H
#define TACHIKOMA_TERMINAL_H

#include <sys/types.h>

#include "protocol.h"

/*
 * Open a terminal whose slave belongs to a user. The master does not block.
 * `privileged` is whether the spawner may act as another user. Returns 0, or -1 with errno; then nothing is open.
 */
int open_terminal(uid_t uid, gid_t gid, int privileged, const struct terminal_size *size, int *master, int *slave);

/* Set the size. The foreground process group gets SIGWINCH if it has changed. Returns 0, or -1 with errno. */
int resize_terminal(int master, const struct terminal_size *size);

/* Return the size; all 0 if it is unknown. */
struct terminal_size size_of_terminal(int master);

/* Return TERMINAL_ECHO and TERMINAL_CANONICAL as they are now. */
uint32_t terminal_flags(int master);

/*
 * Send a signal to the foreground process group. `session` is the process id of the command, which leads the session.
 * Returns 0, or -1 with errno.
 */
int signal_foreground(int master, pid_t session, int number);

/* Why output of a terminal is not moved on. */
enum output_stop {
	OUTPUT_MORE,    /* the pipe is full, or as much was moved as was asked for */
	OUTPUT_TAKEN,   /* the terminal has no output now */
	OUTPUT_UNUSED,  /* the same, and no process has it open; one may open it again */
	OUTPUT_ENDED    /* it will have none any more */
};

/* Move output of the terminal into a pipe that does not block, at most `most` bytes; `moved` is set to their number. */
enum output_stop move_output(int master, int pipe, size_t most, size_t *moved);

/* Return whether a pipe is full, so that it has to be waited for. */
int pipe_full(int pipe);

#endif
