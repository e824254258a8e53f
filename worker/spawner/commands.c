/* Held commands: from the report of the child that starts one to its release by a worker. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "spawner.h"
#include "terminal.h"

struct held_command *find_command(const char *name)
{
	for (size_t i = 0; i < slots; i++)
		if (commands[i].name[0] != '\0' && strncmp(commands[i].name, name, NAME_BYTES) == 0)
			return &commands[i];
	return NULL;
}

struct held_command *free_slot(void)
{
	for (size_t i = 0; i < slots; i++)
		if (commands[i].name[0] == '\0')
			return &commands[i];
	return slots < MAX_COMMANDS ? &commands[slots++] : NULL;
}

/* Close the terminal: its processes get SIGHUP, and the pipe of its output ends. */
void close_terminal(struct held_command *command)
{
	if (command->terminal < 0)
		return;
	command->held.input.size = size_of_terminal(command->terminal);
	watch_for(command->terminal, &command->terminal_watched, 0, NULL);
	watch_for(command->terminal_output, &command->output_watched, 0, NULL);
	input_break(&command->input);
	close_if_open(&command->terminal);
	close_if_open(&command->terminal_output);
}

void forget_command(struct held_command *command)
{
	close_terminal(command);
	if (command->input.mode == INPUT_PIPE) {
		watch_for(command->input.descriptor, &command->input_watched, 0, NULL);
		input_break(&command->input);
	}
	forget_init(command);
	close_if_open(&command->pidfd);
	close_if_open(&command->report);
	close_if_open(&command->standard_output);
	close_if_open(&command->standard_error);
	close_if_open(&command->cgroup);
	memset(command->name, 0, NAME_BYTES);
}

static struct worker *asker(const struct held_command *command)
{
	struct worker *worker = command->asked_by;

	return worker->socket >= 0 && worker->generation == command->asked_generation ? worker : NULL;
}

int count_running(int exited_too)
{
	int count = 0;

	for (size_t i = 0; i < slots; i++)
		count += commands[i].name[0] != '\0' && (exited_too || !commands[i].held.exited);
	return count;
}

const struct held *describe(struct held_command *command)
{
	command->held.input = status_of(command);
	return &command->held;
}

/* The child closed its end by executing the command, or it reported the step that failed. */
void on_report(struct held_command *command)
{
	struct failure failure;
	ssize_t got = read(command->report, &failure, sizeof(failure));
	struct worker *worker = asker(command);

	if (got < 0 && errno == EAGAIN)
		return;
	close_if_open(&command->report);
	if (got == (ssize_t)sizeof(failure)) {
		waitpid(command->pid, NULL, 0);
		forget_command(command);
		if (worker != NULL)
			reply_failure(worker, command->asked_tag, failure.step, failure.error);
		return;
	}
	command->started = 1;
	settle(command);
	if (worker != NULL) {
		struct spawned spawned = { .pid = (uint32_t)command->pid };
		int pipes[2] = { command->standard_output, command->standard_error };

		send_message(worker, OP_SPAWN, command->asked_tag, &spawned, sizeof(spawned), pipes, 2);
	}
}

static uint64_t micros(struct timeval time)
{
	return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_usec;
}

void on_exit_of(struct held_command *command)
{
	siginfo_t info = { 0 };
	struct rusage usage = { 0 };

	/* Keep the order of events: report the start first, or why it failed. */
	if (command->report >= 0) {
		on_report(command);
		if (command->name[0] == '\0')
			return;
	}
	/* It stays a zombie until it is released, so that no other process or group gets its number. */
	if (syscall(SYS_waitid, P_PID, command->pid, &info, WEXITED | WNOWAIT | WNOHANG, &usage) != 0 || info.si_pid == 0)
		return;
	epoll_ctl(events, EPOLL_CTL_DEL, command->pidfd, NULL);
	command->held.exited = 1;
	command->held.code = info.si_code;
	command->held.status = info.si_status;
	command->held.user_micros = micros(usage.ru_utime);
	command->held.system_micros = micros(usage.ru_stime);
	if (command->terminal >= 0) {
		command->last_bytes = LAST_BYTES;
		continue_output(command);
	}
	describe(command);
	for (size_t i = 0; i < MAX_WORKERS; i++)
		send_message(&workers[i], EVENT_EXITED, 0, &command->held, sizeof(command->held), NULL, 0);
}

void list_commands(struct worker *worker)
{
	static struct {
		struct listed listed;
		struct held held[MAX_LISTED];
	} reply;
	uint32_t slot;

	memcpy(&slot, worker->body, sizeof(slot));
	reply.listed = (struct listed){ 0 };
	for (; slot < slots && reply.listed.count < MAX_LISTED; slot++)
		if (commands[slot].name[0] != '\0' && commands[slot].started)
			reply.held[reply.listed.count++] = *describe(&commands[slot]);
	if (slot < slots)
		reply.listed.next = slot;
	send_message(worker, OP_LIST, worker->header.tag, &reply,
	     sizeof(reply.listed) + reply.listed.count * sizeof(reply.held[0]), NULL, 0);
}

void take_command(struct worker *worker)
{
	struct held_command *command = find_command(worker->body);

	if (command == NULL || !command->started) {
		reply_failure(worker, worker->header.tag, STEP_NAME, ESRCH);
		return;
	}
	int pipes[2] = { command->standard_output, command->standard_error };

	send_message(worker, OP_TAKE, worker->header.tag, describe(command), sizeof(command->held), pipes, 2);
}

void release_command(struct worker *worker)
{
	struct held_command *command = find_command(worker->body);

	if (command == NULL) {
		reply_failure(worker, worker->header.tag, STEP_NAME, ESRCH);
	} else if (!command->held.exited) {
		reply_failure(worker, worker->header.tag, STEP_HELD, EBUSY);
	} else {
		waitpid(command->pid, NULL, 0);
		forget_command(command);
		reply_done(worker);
	}
}
