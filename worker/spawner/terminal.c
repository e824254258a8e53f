/* Terminals. Every function is a few system calls; none of them blocks. */
#define _GNU_SOURCE
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)      /* Linux 4.13 */
#endif

/* A smaller read is atomic in a pipe, and a terminal never gives more at once. */
#define MOVE_BYTES 4096

int open_terminal(uid_t uid, gid_t gid, int privileged, const struct terminal_size *size, int *master, int *slave)
{
	int unlocked = 0;

	*slave = -1;
	/* The slave belongs to the user that opens the master; so CAP_CHOWN is not needed. Group and mode are devpts's. */
	if (privileged) {
		setfsgid(gid);
		setfsuid(uid);
	}
	*master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (*master >= 0 && ioctl(*master, TIOCSPTLCK, &unlocked) == 0)
		*slave = ioctl(*master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	int why = errno;

	if (privileged) {
		setfsuid(geteuid());
		setfsgid(getegid());
	}
	/* Before the fork, so that the size is right for the first program. */
	if (*slave >= 0 && resize_terminal(*master, size) == 0)
		return 0;
	if (*slave >= 0) {
		why = errno;
		close(*slave);
	}
	if (*master >= 0)
		close(*master);
	*master = *slave = -1;
	errno = why;
	return -1;
}

int resize_terminal(int master, const struct terminal_size *size)
{
	struct winsize window = {
		.ws_row = size->rows, .ws_col = size->columns, .ws_xpixel = size->x_pixels, .ws_ypixel = size->y_pixels,
	};

	return ioctl(master, TIOCSWINSZ, &window);
}

struct terminal_size size_of_terminal(int master)
{
	struct winsize window = { 0 };

	if (master >= 0)
		(void)ioctl(master, TIOCGWINSZ, &window);
	return (struct terminal_size){
		.rows = window.ws_row, .columns = window.ws_col, .x_pixels = window.ws_xpixel, .y_pixels = window.ws_ypixel,
	};
}

uint32_t terminal_flags(int master)
{
	struct termios modes;

	if (master < 0 || tcgetattr(master, &modes) != 0)
		return 0;
	return (modes.c_lflag & ECHO ? TERMINAL_ECHO : 0) | (modes.c_lflag & ICANON ? TERMINAL_CANONICAL : 0);
}

int signal_foreground(int master, pid_t session, int number)
{
	pid_t group = 0;
	pid_t owner;

	/* The kernel delivers these by its own reference to the group, and only these (tty_ioctl(4)). */
	if (number == SIGINT || number == SIGQUIT || number == SIGTSTP)
		return ioctl(master, TIOCSIG, number);
	if (ioctl(master, TIOCGPGRP, &group) != 0 || group <= 1)
		group = session;
	/* If the group has ended, another session may use its number. */
	owner = getsid(group);
	if (owner >= 0 && owner != session)
		return 0;
	return kill(-group, number) == 0 || errno == ESRCH ? 0 : -1;
}

int pipe_full(int pipe)
{
	struct pollfd room = { .fd = pipe, .events = POLLOUT };

	return poll(&room, 1, 0) == 0;
}

enum output_stop move_output(int master, int pipe, size_t most, size_t *moved)
{
	char bytes[MOVE_BYTES];

	*moved = 0;
	/* Read only what the pipe has room for: a page is free in it, and the spawner alone writes to it. */
	while (*moved < most && !pipe_full(pipe)) {
		size_t rest = most - *moved;
		ssize_t got = read(master, bytes, rest < sizeof(bytes) ? rest : sizeof(bytes));

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno == EAGAIN)
			return OUTPUT_TAKEN;
		if (got < 0 && errno == EIO)
			return OUTPUT_UNUSED;
		if (got <= 0)
			return OUTPUT_ENDED;
		/* All readers are gone only if the worker has given the command up. */
		if (write(pipe, bytes, (size_t)got) < 0)
			return OUTPUT_ENDED;
		*moved += (size_t)got;
	}
	return OUTPUT_MORE;
}
