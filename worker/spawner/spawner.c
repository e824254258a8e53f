/*
 * tachikoma-spawner: starts commands for the worker, without privileges, and stays their parent.
 *
 *     tachikoma-spawner --socket FD --peer UID --linger SECONDS --capabilities MASK
 *
 * FD is a listening unix socket; the spawner serves root and the user with that UID. It is the only part of an agent
 * that needs to be root, and it uses neither policy nor the network. It holds a copy of each command's pipes, its
 * terminal, and its exit status until the worker releases it, so that a restarted worker can take the command over.
 * After SECONDS without a worker and without a running command it exits and removes the socket's file; with 0 it stays
 * for ever.
 *
 * The master of a terminal stays in the spawner. The terminal's output moves into the pipe that the worker reads, so
 * that the worker treats all output alike. The spawner writes all input that arrives after the start (input.c).
 *
 * It is single-threaded: fork is then safe and cheap, and "0" written into a v1 cgroup's `tasks` moves the whole child.
 * It never blocks: neither on the worker, nor on a child between fork and exec.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "spawner.h"

struct worker workers[MAX_WORKERS];
struct held_command commands[MAX_COMMANDS];
size_t slots;
struct rlimit files_before;
uid_t allowed_peer;
int privileged;
uint64_t capabilities;
int null_device;
int own_pid_namespace;
int events;
static int stop_wanted;
static enum source_kind listener_kind = LISTENER;

_Noreturn void die(const char *what)
{
	fprintf(stderr, "tachikoma-spawner: %s: %s\n", what, strerror(errno));
	exit(1);
}

void close_if_open(int *descriptor)
{
	if (*descriptor >= 0)
		close(*descriptor);
	*descriptor = -1;
}

int watch(int descriptor, void *source)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = source };

	return epoll_ctl(events, EPOLL_CTL_ADD, descriptor, &event);
}

/* Watch a descriptor for these events. For none before it is closed: a child may hold a copy of it until its exec. */
void watch_for(int descriptor, uint32_t *watched, uint32_t wanted, void *source)
{
	struct epoll_event event = { .events = wanted, .data.ptr = source };
	int change = *watched == 0 ? EPOLL_CTL_ADD : wanted == 0 ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;

	if (*watched != wanted && epoll_ctl(events, change, descriptor, &event) == 0)
		*watched = wanted;
}

static void hello(struct worker *worker)
{
	struct hello reply = { .version = PROTOCOL_VERSION, .uid = geteuid(), .capabilities = capabilities };

	send_message(worker, OP_HELLO, worker->header.tag, &reply, sizeof(reply), NULL, 0);
}

void handle(struct worker *worker)
{
	struct header *header = &worker->header;
	size_t length = header->length;
	int names = length == NAME_BYTES && valid_name(worker->body);

	if (header->operation == OP_SPAWN)
		spawn(worker);
	else if (header->operation == OP_HELLO && length == 0)
		hello(worker);
	else if (header->operation == OP_SIGNAL && length == sizeof(struct signal_request) && valid_name(worker->body))
		signal_command(worker);
	else if (header->operation == OP_KILL && names)
		kill_command(worker);
	else if (header->operation == OP_SWEEP && length == 0 && worker->descriptors == 1)
		sweep(worker);
	else if (header->operation == OP_LIST && length == sizeof(uint32_t))
		list_commands(worker);
	else if (header->operation == OP_TAKE && names)
		take_command(worker);
	else if (header->operation == OP_RELEASE && names)
		release_command(worker);
	else if (header->operation == OP_INPUT || header->operation == OP_END_INPUT)
		take_input(worker);
	else if (header->operation == OP_RESIZE && length == sizeof(struct resize) && valid_name(worker->body))
		resize(worker);
	else if (header->operation == OP_HANG_UP && names)
		hang_up(worker);
	else if (header->operation == OP_DROP_TMP && length > 1 && strnlen(worker->body, length) == length - 1)
		drop_tmp(worker);
	else if (header->operation == OP_STOP && length == 0 && count_running(1) == 0) {
		stop_wanted = 1;
		reply_done(worker);
	} else if (header->operation == OP_STOP && length == 0)
		reply_failure(worker, header->tag, STEP_HELD, EBUSY);
	else
		reply_failure(worker, header->tag, STEP_REQUEST, EINVAL);
}

/* Return the value of an option; every option takes a number. */
static uint64_t number_of(int count, char **arguments, const char *option)
{
	for (int i = 1; i + 1 < count; i += 2) {
		if (strcmp(arguments[i], option) == 0) {
			char *end;
			uint64_t number = strtoull(arguments[i + 1], &end, 10);

			if (*arguments[i + 1] >= '0' && *arguments[i + 1] <= '9' && *end == '\0')
				return number;
		}
	}
	fprintf(stderr, "usage: tachikoma-spawner --socket FD --peer UID --linger SECONDS "
		"--capabilities MASK\n");
	exit(2);
}

/*
 * Drop capabilities once here, so that no child has to. The bounding set limits what an exec can gain, not the
 * capabilities of this process: it stays root.
 */
static void drop_capabilities(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	for (int capability = 0; capability < 64; capability++) {
		int present = prctl(PR_CAPBSET_READ, capability, 0, 0, 0);

		if (present < 0)
			break;          /* beyond the last one of this kernel */
		if (!present)
			capabilities &= ~(1ULL << capability);
		else if (!(capabilities & (1ULL << capability)) && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0)
			die("cannot take away capabilities; CAP_SETPCAP is needed");
	}
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0 || syscall(SYS_capget, &header, data) != 0)
		die("capabilities");
	data[0].inheritable = data[1].inheritable = 0;
	if (syscall(SYS_capset, &header, data) != 0)
		die("capabilities");
}

/* Once, for all children: they inherit the dispositions. The exec takes the handler of SIGCHLD away from them. */
static void reset_signals(void)
{
	/* The kernel's structure: the functions of the C library refuse the signals that it uses itself, 32 and 33. */
	struct {
		void (*handler)(int);
		unsigned long flags;
		void (*restorer)(void);
		unsigned long mask[64 / (8 * sizeof(unsigned long))];
	} action = { .handler = SIG_DFL };

	for (int number = 1; number <= 64; number++)
		syscall(SYS_rt_sigaction, number, &action, NULL, sizeof(action.mask));
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, action.mask, NULL, sizeof(action.mask));
}

static void ignore(int number)
{
	(void)number;
}

/* Input may be written to a command that reads none. A handler is reset by exec, in contrast to SIG_IGN. */
static void survive_broken_pipes(void)
{
	struct sigaction action = { .sa_handler = ignore, .sa_flags = SA_RESTART };

	if (sigaction(SIGPIPE, &action, NULL) != 0)
		die("sigaction");
}

static void prepare(void)
{
	struct rlimit files;

	reset_signals();
	survive_broken_pipes();
	/* Every descriptor from here on is higher than the two that the child needs for itself. */
	do {
		null_device = open("/dev/null", O_RDWR | O_CLOEXEC);
		if (null_device < 0)
			die("/dev/null");
	} while (null_device <= 4);
	own_pid_namespace = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
	events = epoll_create1(EPOLL_CLOEXEC);
	if (events < 0)
		die("epoll_create1");
	if (getrlimit(RLIMIT_NOFILE, &files_before) != 0)
		die("getrlimit");
	files = files_before;
	files.rlim_cur = files.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &files) != 0)
		die("setrlimit");
	privileged = geteuid() == 0;
	if (privileged)
		drop_capabilities();
	else
		capabilities = 0;
	for (size_t i = 0; i < MAX_WORKERS; i++)
		workers[i] = (struct worker){ .kind = WORKER, .socket = -1 };
	adopt_orphans();
}

static void remove_socket(int listener)
{
	struct sockaddr_un address = { 0 };
	socklen_t size = sizeof(address) - 1;

	if (getsockname(listener, (struct sockaddr *)&address, &size) == 0 && address.sun_path[0] == '/')
		unlink(address.sun_path);
}

/* The command that has a source as one of its members. */
#define COMMAND_OF(source, member) ((struct held_command *)((char *)(source) - offsetof(struct held_command, member)))

/* An event of a command that was forgotten meanwhile is ignored. */
static void dispatch(enum source_kind *source, uint32_t ready, int listener)
{
	struct held_command *command;

	switch (*source) {
	case LISTENER:
		on_connection(listener);
		break;
	case ORPHANS:
		on_orphans();
		break;
	case WORKER:
		on_readable((struct worker *)source);
		break;
	case REPORT:
		command = COMMAND_OF(source, report_kind);
		if (command->name[0] != '\0' && command->report >= 0)
			on_report(command);
		break;
	case EXIT:
		command = COMMAND_OF(source, exit_kind);
		if (command->name[0] != '\0' && !command->held.exited)
			on_exit_of(command);
		break;
	case TERMINAL:
		command = COMMAND_OF(source, terminal_kind);
		if (command->name[0] != '\0' && command->terminal >= 0)
			on_terminal(command, ready);
		break;
	case OUTPUT_ROOM:
		command = COMMAND_OF(source, output_kind);
		if (command->name[0] != '\0' && command->terminal >= 0)
			continue_output(command);
		break;
	case INPUT_ROOM:
		command = COMMAND_OF(source, input_kind);
		if (command->name[0] != '\0' && command->input.mode == INPUT_PIPE && command->input.descriptor >= 0)
			continue_input(command);
		break;
	}
}

int main(int count, char **arguments)
{
	int listener = (int)number_of(count, arguments, "--socket");
	int linger = (int)number_of(count, arguments, "--linger");

	allowed_peer = (uid_t)number_of(count, arguments, "--peer");
	capabilities = number_of(count, arguments, "--capabilities");
	if (fcntl(listener, F_SETFD, FD_CLOEXEC) != 0)
		die("the listening socket");
	prepare();
	if (watch(listener, &listener_kind) != 0)
		die("epoll");
	while (!stop_wanted) {
		struct epoll_event ready[64];
		int idle = !worker_connected() && count_running(0) == 0;
		int ready_count = epoll_wait(events, ready, 64, idle && linger > 0 ? linger * 1000 : -1);

		if (ready_count < 0 && errno != EINTR)
			die("epoll_wait");
		if (ready_count == 0 && idle)
			break;
		for (int i = 0; i < ready_count; i++)
			if (ready[i].data.ptr != NULL)
				dispatch(ready[i].data.ptr, ready[i].events, listener);
	}
	drop_all_tmp();
	remove_socket(listener);
	return 0;
}
