/*
 * PID namespaces: each has a first process of its own, beside the command.
 *
 * The command is not that first process: the kernel would ignore most signals for it, also its own, and its orphans
 * would stay zombies. The first process waits for nothing but its end, which ends all processes of the namespace. It
 * can end only after the command was collected, and then it is collected like the processes that commands leave.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "spawner.h"

/* It holds no descriptor, and collects orphans. It ends with the spawner, and the namespace with it. */
_Noreturn static void be_init(void)
{
	struct sigaction ignored = { .sa_handler = SIG_IGN };

	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	/* It has a copy of the spawner's memory: no process of the same user may look at it. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	prctl(PR_SET_NAME, "tachikoma-init", 0, 0, 0);
	setsid();
	syscall(SYS_close_range, 0, ~0U, 0);
	sigaction(SIGCHLD, &ignored, NULL);
	for (;;)
		pause();
}

/*
 * Make a PID namespace and start its first process; the next children start in it as well, until the spawner leaves it.
 * unshare, since entering the namespace of a process that is not dumpable needs CAP_SYS_PTRACE, which the spawner has
 * no other use for. clone, since sandboxes without clone3 have it. Returns 0 or -1.
 */
int start_init(struct held_command *command)
{
	int descriptor = -1;
	pid_t pid;

	if (own_pid_namespace < 0) {
		errno = ENOENT;
		return -1;
	}
	if (unshare(CLONE_NEWPID) != 0)
		return -1;
	pid = (pid_t)syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, NULL, &descriptor, NULL, 0);
	if (pid == 0)
		be_init();
	if (pid < 0) {
		leave_pid_namespace();
		return -1;
	}
	command->init = pid;
	/* Not 3 or 4, which the child needs. */
	command->init_pidfd = descriptor;
	return 0;
}

/* The children of this process start in its own PID namespace again. Keeps errno. */
void leave_pid_namespace(void)
{
	int why = errno;

	if (setns(own_pid_namespace, CLONE_NEWPID) != 0)
		die("the spawner's own PID namespace");
	errno = why;
}

/* End the processes of the namespace, also those that have left the cgroup. */
void kill_init(struct held_command *command)
{
	if (command->init_pidfd >= 0)
		syscall(SYS_pidfd_send_signal, command->init_pidfd, SIGKILL, NULL, 0);
}

void forget_init(struct held_command *command)
{
	if (command->init_pidfd < 0)
		return;
	kill_init(command);
	close_if_open(&command->init_pidfd);
	/* Its end waits for the last process of the namespace, which nothing here needs to wait for. */
	(void)waitpid(command->init, NULL, collects_orphans() ? WNOHANG : 0);
	command->init = 0;
}
