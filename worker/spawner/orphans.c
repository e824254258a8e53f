/* Processes that commands leave behind: the spawner adopts and collects them. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "spawner.h"

/* The children of this process; it has one thread (proc_pid_task(5)). */
#define CHILDREN "/proc/thread-self/children"

static int orphans_timer = -1;          /* expires when processes without a parent are to be collected */
static volatile sig_atomic_t orphans_due;
static enum source_kind orphans_kind = ORPHANS;

static int is_held(pid_t pid)
{
	for (size_t i = 0; i < slots; i++)
		if (commands[i].name[0] != '\0' && commands[i].pid == pid)
			return 1;
	return 0;
}

/* At most ten times a second, however many processes end: each time, all children are read. */
static void on_child(int number)
{
	struct itimerspec soon = { .it_value = { .tv_nsec = 100 * 1000 * 1000 } };
	int before = errno;

	(void)number;
	if (!orphans_due)
		orphans_due = timerfd_settime(orphans_timer, 0, &soon, NULL) == 0;
	errno = before;
}

/* Collect the ended children that are no commands. A command stays a zombie until it is released. */
void on_orphans(void)
{
	uint64_t expirations;
	FILE *children;
	long pid;
	int collected = 0;

	if (read(orphans_timer, &expirations, sizeof(expirations)) < 0)
		return;
	orphans_due = 0;
	children = fopen(CHILDREN, "re");
	if (children == NULL)
		return;
	while (fscanf(children, "%ld", &pid) == 1) {
		siginfo_t info = { 0 };

		if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0 &&
		    !is_held((pid_t)pid))
			collected |= waitpid((pid_t)pid, NULL, WNOHANG) > 0;
	}
	fclose(children);
	/* Children that end during the reading can hide others from it. */
	if (collected)
		on_child(SIGCHLD);
}

int collects_orphans(void)
{
	return orphans_timer >= 0;
}

/*
 * Become the parent of processes whose parents end, in place of process 1, which need not collect them in a container.
 * Without a list of children (CONFIG_PROC_CHILDREN), a held zombie would hide the others, so it is left to process 1.
 */
void adopt_orphans(void)
{
	struct sigaction action = { .sa_handler = on_child, .sa_flags = SA_RESTART | SA_NOCLDSTOP };

	if (access(CHILDREN, R_OK) != 0)
		return;
	orphans_timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (orphans_timer < 0 || watch(orphans_timer, &orphans_kind) != 0)
		die("timerfd_create");
	if (sigaction(SIGCHLD, &action, NULL) != 0 || prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0)
		die("the collection of processes");
}
