/* Signals, and killing a command as a whole by its cgroup. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "spawner.h"
#include "terminal.h"

static int write_file(int directory, const char *name, const char *text)
{
	int file = openat(directory, name, O_WRONLY | O_CLOEXEC);
	ssize_t written;

	if (file < 0)
		return -1;
	written = write(file, text, strlen(text));
	close(file);
	return written < 0 ? -1 : 0;
}

/*
 * Send a signal to each process of a cgroup, unless `number` is 0, and list them in `survivors`, unless it is NULL.
 * Returns the number of processes, or -1.
 */
static long each_process(int directory, int number, struct survivors *survivors)
{
	int file = openat(directory, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	char line[32];
	long count = 0;
	FILE *stream = file < 0 ? NULL : fdopen(file, "r");

	if (stream == NULL) {
		close_if_open(&file);
		return -1;
	}
	while (fgets(line, sizeof(line), stream) != NULL) {
		long pid = strtol(line, NULL, 10);

		/* 0 is a process outside this PID namespace. The spawner never kills itself. */
		if (pid <= 1 || pid == getpid())
			continue;
		count++;
		if (number != 0)
			kill((pid_t)pid, number);
		if (survivors != NULL && survivors->listed < MAX_LISTED_PIDS)
			survivors->pid[survivors->listed++] = (uint32_t)pid;
	}
	fclose(stream);
	return count;
}

/* Kill all processes of a cgroup at once, and list those that are left; dying ones may be among them. */
static void kill_cgroup(int directory, struct survivors *survivors)
{
	long left;

	if (write_file(directory, "cgroup.kill", "1") != 0) {
		/* v1, or v2 before Linux 5.14. Frozen processes cannot fork while the list is read. */
		int frozen = write_file(directory, "freezer.state", "FROZEN") == 0;

		each_process(directory, SIGKILL, NULL);
		if (frozen)
			write_file(directory, "freezer.state", "THAWED");
	}
	left = each_process(directory, 0, survivors);
	survivors->count = left < 0 ? 0 : (uint32_t)left;
}

void kill_command(struct worker *worker)
{
	struct held_command *command = find_command(worker->body);
	struct survivors survivors = { 0 };

	if (command == NULL) {
		reply_failure(worker, worker->header.tag, STEP_NAME, ESRCH);
		return;
	}
	/* Also with a cgroup: a process may still be on its way into it, or may have left it. */
	kill_init(command);
	kill(-command->pid, SIGKILL);
	kill(command->pid, SIGKILL);
	if (command->cgroup >= 0)
		kill_cgroup(command->cgroup, &survivors);
	if (survivors.count == 0 && !command->held.exited) {
		survivors.count = survivors.listed = 1;
		survivors.pid[0] = (uint32_t)command->pid;
	}
	send_message(worker, OP_KILL, worker->header.tag, &survivors, sizeof(survivors), NULL, 0);
}

void signal_command(struct worker *worker)
{
	struct signal_request request;
	struct held_command *command;

	memcpy(&request, worker->body, sizeof(request));
	command = find_command(request.name);
	if (command == NULL)
		reply_failure(worker, worker->header.tag, STEP_NAME, ESRCH);
	else if (request.foreground && command->terminal < 0)
		reply_failure(worker, worker->header.tag, STEP_TERMINAL, ENOTTY);
	else if (request.foreground ? signal_foreground(command->terminal, command->pid, (int)request.number) != 0
				    : kill(-command->pid, (int)request.number) != 0 && errno != ESRCH)
		reply_failure(worker, worker->header.tag, STEP_SIGNAL, errno);
	else
		reply_done(worker);
}

void sweep(struct worker *worker)
{
	struct survivors survivors = { 0 };

	kill_cgroup(worker->descriptor[0], &survivors);
	send_message(worker, OP_SWEEP, worker->header.tag, &survivors, sizeof(survivors), NULL, 0);
}
