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
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "child.h"
#include "input.h"
#include "protocol.h"
#include "terminal.h"

#define MAX_WORKERS 4
#define MAX_COMMANDS 4096
#define PIPE_BYTES (1024 * 1024)
/* Of a terminal's output: what is in it still appears after Ctrl-C, however slow the caller's terminal is. */
#define TERMINAL_PIPE_BYTES (32 * 1024)
/* The children of this process; it has one thread (proc_pid_task(5)). */
#define CHILDREN "/proc/thread-self/children"
#define MOVE_BYTES (64 * 1024)  /* of a terminal's output at a time, so that other commands get their turn */
/* Output that is still taken after the command's exit: more than the kernel holds, and an end where others write on. */
#define LAST_BYTES (64 * 1024)

/* Kinds of sources of epoll events. */
enum source_kind { LISTENER, WORKER, REPORT, EXIT, TERMINAL, OUTPUT_ROOM, INPUT_ROOM, ORPHANS };

struct worker {
	enum source_kind kind;          /* WORKER */
	int socket;                     /* -1: not connected */
	uint64_t generation;            /* distinguishes connections that use the same slot */
	struct header header;
	size_t received;                /* of header and body together */
	int descriptor[MAX_DESCRIPTORS];
	size_t descriptors;
	char *body;
};

struct held_command {
	enum source_kind report_kind;   /* REPORT */
	enum source_kind exit_kind;     /* EXIT */
	enum source_kind terminal_kind; /* TERMINAL: it has output, or takes input */
	enum source_kind output_kind;   /* OUTPUT_ROOM: the pipe takes the terminal's output */
	enum source_kind input_kind;    /* INPUT_ROOM: the pipe takes input */
	char name[NAME_BYTES];          /* empty: a free slot */
	pid_t pid;
	int pidfd;
	int report;                     /* -1 after the exec */
	int standard_output;
	int standard_error;
	int cgroup;                     /* v2 directory, or v1 freezer; -1: none */
	int started;
	int terminal;                   /* master; -1: no terminal, or no more output of it */
	int terminal_output;            /* write end of the pipe of stdout, which receives the terminal's output */
	size_t last_bytes;              /* after the exit: output of the terminal that is still taken */
	struct input input;
	uint32_t terminal_watched;      /* epoll events, 0: not watched */
	uint32_t output_watched;
	uint32_t input_watched;
	uint32_t reported_flags;        /* flags of the terminal that the workers know */
	struct held held;
	struct worker *asked_by;        /* the worker that requested the start */
	uint64_t asked_generation;
	uint64_t asked_tag;
};

static struct worker workers[MAX_WORKERS];
static struct held_command commands[MAX_COMMANDS];
static struct rlimit files_before;
static uint64_t generations;
static uid_t allowed_peer;
static int privileged;
static uint64_t capabilities;           /* bits of those that a command may keep at most */
static size_t slots;                    /* number of `commands` that were ever used */
static int events;
static int null_device;
static int stop_wanted;
static enum source_kind listener_kind = LISTENER;
static enum source_kind orphans_kind = ORPHANS;
static int orphans_timer = -1;          /* expires when processes without a parent are to be collected */
static volatile sig_atomic_t orphans_due;

_Noreturn static void die(const char *what)
{
	fprintf(stderr, "tachikoma-spawner: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void close_if_open(int *descriptor)
{
	if (*descriptor >= 0)
		close(*descriptor);
	*descriptor = -1;
}

static int watch(int descriptor, void *source)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = source };

	return epoll_ctl(events, EPOLL_CTL_ADD, descriptor, &event);
}

/* Watch a descriptor for these events. For none before it is closed: a child may hold a copy of it until its exec. */
static void watch_for(int descriptor, uint32_t *watched, uint32_t wanted, void *source)
{
	struct epoll_event event = { .events = wanted, .data.ptr = source };
	int change = *watched == 0 ? EPOLL_CTL_ADD : wanted == 0 ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;

	if (*watched != wanted && epoll_ctl(events, change, descriptor, &event) == 0)
		*watched = wanted;
}

/* --- replies ----------------------------------------------------------------------------------------------------- */

static void forget_request(struct worker *worker)
{
	for (size_t i = 0; i < worker->descriptors; i++)
		close_if_open(&worker->descriptor[i]);
	worker->descriptors = 0;
	worker->received = 0;
}

static void disconnect(struct worker *worker)
{
	forget_request(worker);
	close_if_open(&worker->socket);
	free(worker->body);
	worker->body = NULL;
}

/* Replies are not queued: a worker that does not read them is disconnected, and can ask again. */
static void send_message(struct worker *worker, uint32_t operation, uint64_t tag, const void *body, size_t length,
		 const int *descriptors, size_t count)
{
	struct header header = { .length = (uint32_t)length, .operation = operation, .tag = tag };
	struct iovec parts[2] = { { &header, sizeof(header) }, { (void *)body, length } };
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = length ? 2 : 1 };
	union {
		struct cmsghdr aligned;
		char space[CMSG_SPACE(2 * sizeof(int))];
	} control;

	if (count > 0) {
		memset(&control, 0, sizeof(control));
		message.msg_control = control.space;
		message.msg_controllen = CMSG_SPACE(count * sizeof(int));
		struct cmsghdr *first = CMSG_FIRSTHDR(&message);

		first->cmsg_level = SOL_SOCKET;
		first->cmsg_type = SCM_RIGHTS;
		first->cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(first), descriptors, count * sizeof(int));
	}
	if (worker->socket < 0)
		return;
	if (sendmsg(worker->socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)(sizeof(header) + length))
		disconnect(worker);
}

static void reply_done(struct worker *worker)
{
	send_message(worker, worker->header.operation, worker->header.tag, NULL, 0, NULL, 0);
}

static void reply_failure(struct worker *worker, uint64_t tag, enum step step, int error)
{
	struct failure failure = { .step = step, .error = error };

	send_message(worker, REPLY_FAILED, tag, &failure, sizeof(failure), NULL, 0);
}

/* --- commands ---------------------------------------------------------------------------------------------------- */

static struct held_command *find(const char *name)
{
	for (size_t i = 0; i < slots; i++)
		if (commands[i].name[0] != '\0' && strncmp(commands[i].name, name, NAME_BYTES) == 0)
			return &commands[i];
	return NULL;
}

static struct held_command *free_slot(void)
{
	for (size_t i = 0; i < slots; i++)
		if (commands[i].name[0] == '\0')
			return &commands[i];
	return slots < MAX_COMMANDS ? &commands[slots++] : NULL;
}

/* Close the terminal: its processes get SIGHUP, and the pipe of its output ends. */
static void close_terminal(struct held_command *command)
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

static void forget(struct held_command *command)
{
	close_terminal(command);
	if (command->input.mode == INPUT_PIPE) {
		watch_for(command->input.descriptor, &command->input_watched, 0, NULL);
		input_break(&command->input);
	}
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

/* clone3 starts the child inside its v2 cgroup. In a sandbox without clone3, the child joins by itself. */
static pid_t start_child(int cgroup, int *pidfd, int *joined)
{
	struct clone_args arguments = {
		.flags = CLONE_PIDFD | (cgroup >= 0 ? CLONE_INTO_CGROUP : 0),
		.pidfd = (uint64_t)(uintptr_t)pidfd,
		.exit_signal = SIGCHLD,
		.cgroup = cgroup >= 0 ? (uint64_t)cgroup : 0,
	};
	pid_t pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof(arguments));

	*joined = 1;
	if (pid >= 0 || (errno != ENOSYS && errno != EPERM))
		return pid;
	*joined = 0;
	pid = fork();
	if (pid > 0) {
		*pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
		if (*pidfd < 0) {
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
			return -1;
		}
	}
	return pid;
}

static int make_pipe(int ends[2], int bytes)
{
	if (pipe2(ends, O_CLOEXEC) != 0)
		return -1;
	/* Not essential; it fails if an ordinary user's share of pipe memory is used up. */
	(void)fcntl(ends[1], F_SETPIPE_SZ, bytes);
	return 0;
}

static int make_nonblocking(int descriptor)
{
	return fcntl(descriptor, F_SETFL, O_NONBLOCK);
}

/* The descriptors of a new command; -1 for those that are not open. */
struct stdio {
	int output[2];
	int error[2];
	int input[2];
	int master;
	int slave;
	int report[2];
};

static void close_pair(int ends[2])
{
	close_if_open(&ends[0]);
	close_if_open(&ends[1]);
}

static void close_stdio(struct stdio *stdio)
{
	int why = errno;

	close_pair(stdio->output);
	close_pair(stdio->error);
	close_pair(stdio->input);
	close_pair(stdio->report);
	close_if_open(&stdio->master);
	close_if_open(&stdio->slave);
	errno = why;
}

/* Open what a command needs and enter its ends into the plan. Returns the step that failed, with errno, or 0. */
static enum step open_stdio(const struct spawn *head, int attached, struct stdio *stdio, struct plan *plan)
{
	int bytes = head->input == INPUT_TERMINAL ? TERMINAL_PIPE_BYTES : PIPE_BYTES;

	if (make_pipe(stdio->output, bytes) != 0 || make_pipe(stdio->error, bytes) != 0 ||
	    pipe2(stdio->report, O_CLOEXEC | O_NONBLOCK) != 0)
		return STEP_RESOURCES;
	plan->standard_input = head->input == INPUT_FILE ? attached : null_device;
	plan->standard_output = stdio->output[1];
	plan->standard_error = stdio->error[1];
	plan->report = stdio->report[1];
	if (head->input == INPUT_PIPE) {
		if (make_pipe(stdio->input, PIPE_BYTES) != 0 || make_nonblocking(stdio->input[1]) != 0)
			return STEP_RESOURCES;
		plan->standard_input = stdio->input[0];
	} else if (head->input == INPUT_TERMINAL) {
		if (make_nonblocking(stdio->output[1]) != 0)
			return STEP_RESOURCES;
		if (open_terminal(head->uid, head->gid, privileged, &head->terminal, &stdio->master, &stdio->slave) != 0)
			return STEP_TERMINAL;
		plan->standard_input = plan->standard_output = plan->standard_error = stdio->slave;
		plan->terminal = 1;
	}
	return 0;
}

/* Close the child's ends. That of a terminal's output is the spawner's own. */
static void close_ends_of_child(struct stdio *stdio)
{
	if (stdio->master < 0)
		close_if_open(&stdio->output[1]);
	close_if_open(&stdio->error[1]);
	close_if_open(&stdio->input[0]);
	close_if_open(&stdio->slave);
	close_if_open(&stdio->report[1]);
}

/* Fill a slot with a new command. The slot owns the spawner's ends from here on. */
static void hold(struct held_command *slot, struct worker *worker, const struct spawn *head, const struct stdio *stdio)
{
	int terminal = head->input == INPUT_TERMINAL;

	*slot = (struct held_command){
		.report_kind = REPORT, .exit_kind = EXIT, .terminal_kind = TERMINAL, .output_kind = OUTPUT_ROOM,
		.input_kind = INPUT_ROOM, .pidfd = -1, .report = stdio->report[0],
		.standard_output = stdio->output[0], .standard_error = stdio->error[0], .cgroup = -1,
		.terminal = stdio->master, .terminal_output = terminal ? stdio->output[1] : -1,
		.input = { .descriptor = terminal ? stdio->master : stdio->input[1], .mode = head->input },
		.asked_by = worker, .asked_generation = worker->generation, .asked_tag = worker->header.tag,
	};
}

/* Return the step of an error: that of the cgroup if clone3 could not join it, otherwise that of the fork. */
static enum step step_of_fork(int unified, int error)
{
	if (unified && (error == EACCES || error == EBUSY || error == EOPNOTSUPP || error == EBADF || error == ENODEV))
		return STEP_CGROUP;
	return STEP_FORK;
}

/* Fork a command into its slot, and watch it. Returns the step that failed, with errno, or 0. */
static enum step launch(struct held_command *slot, struct plan *plan, struct stdio *stdio)
{
	const struct spawn *head = &plan->command->head;
	int unified = (head->flags & SPAWN_UNIFIED) != 0;
	int joined = 0;

	if (plan->cgroups > 0) {
		slot->cgroup = fcntl(plan->cgroup[0], F_DUPFD_CLOEXEC, 5);
		if (slot->cgroup < 0)
			return STEP_RESOURCES;
	}
	slot->pid = start_child(unified ? plan->cgroup[0] : -1, &slot->pidfd, &joined);
	if (slot->pid == 0) {
		if (joined && unified)
			plan->cgroups = 0;
		become(plan);
	}
	if (slot->pid < 0)
		return step_of_fork(unified, errno);
	close_ends_of_child(stdio);
	memcpy(slot->name, head->name, NAME_BYTES);
	memcpy(slot->held.name, head->name, NAME_BYTES);
	slot->held.pid = (uint32_t)slot->pid;
	if (watch(slot->report, &slot->report_kind) != 0 || watch(slot->pidfd, &slot->exit_kind) != 0) {
		int why = errno;

		kill(slot->pid, SIGKILL);
		waitpid(slot->pid, NULL, 0);
		errno = why;
		return STEP_RESOURCES;
	}
	return 0;
}

static void spawn(struct worker *worker)
{
	static struct command request;
	struct header *header = &worker->header;
	struct plan plan = {
		.command = &request, .privileged = privileged, .capabilities = capabilities, .files = files_before,
	};
	struct stdio stdio = {
		.output = { -1, -1 }, .error = { -1, -1 }, .input = { -1, -1 }, .master = -1, .slave = -1, .report = { -1, -1 },
	};
	struct held_command *slot;
	enum step failed;
	size_t next = 0;

	if (parse_spawn(worker->body, header->length, worker->descriptors, &request) != 0) {
		reply_failure(worker, header->tag, STEP_REQUEST, EINVAL);
		return;
	}
	if (!privileged && request.head.uid != geteuid()) {
		reply_failure(worker, header->tag, STEP_USER, EPERM);
		return;
	}
	if (find(request.head.name) != NULL) {
		reply_failure(worker, header->tag, STEP_NAME, EEXIST);
		return;
	}
	slot = free_slot();
	if (slot == NULL) {
		reply_failure(worker, header->tag, STEP_RESOURCES, EUSERS);
		return;
	}
	plan.executable = worker->descriptor[next++];
	failed = open_stdio(&request.head, request.head.input == INPUT_FILE ? worker->descriptor[next++] : -1, &stdio, &plan);
	if (failed) {
		close_stdio(&stdio);
		reply_failure(worker, header->tag, failed, errno);
		return;
	}
	for (uint32_t i = 0; i < request.head.cgroups; i++)
		plan.cgroup[plan.cgroups++] = worker->descriptor[next++];
	hold(slot, worker, &request.head, &stdio);
	failed = launch(slot, &plan, &stdio);
	if (failed) {
		int why = errno;

		close_ends_of_child(&stdio);
		forget(slot);
		reply_failure(worker, header->tag, failed, why);
	}
}

/* --- input and terminals ----------------------------------------------------------------------------------------- */

static uint32_t input_flags(const struct held_command *command)
{
	return command->input.flags | terminal_flags(command->terminal);
}

static struct input_status status_of(const struct held_command *command)
{
	return (struct input_status){
		.offset = command->input.offset, .mode = command->input.mode, .flags = input_flags(command),
		.room = (uint32_t)input_room(&command->input),
		.size = command->terminal >= 0 ? size_of_terminal(command->terminal) : command->held.input.size,
	};
}

static const struct held *describe(struct held_command *command)
{
	command->held.input = status_of(command);
	return &command->held;
}

static void send_input_event(struct held_command *command)
{
	struct input_state state = { .status = status_of(command) };

	memcpy(state.name, command->name, NAME_BYTES);
	command->reported_flags = state.status.flags;
	command->input.room_wanted = 0;
	for (size_t i = 0; i < MAX_WORKERS; i++)
		send_message(&workers[i], EVENT_INPUT, 0, &state, sizeof(state), NULL, 0);
}

/* Watch what can make progress: a full pipe or a full terminal is watched for room, and not for more to put into it. */
static void settle(struct held_command *command)
{
	struct input *input = &command->input;
	uint32_t waiting = input->end > input->begin ? EPOLLOUT : 0;

	if (command->terminal >= 0) {
		int full = pipe_full(command->terminal_output);

		watch_for(command->terminal, &command->terminal_watched, (full ? 0 : EPOLLIN) | waiting,
			  &command->terminal_kind);
		watch_for(command->terminal_output, &command->output_watched, full ? EPOLLOUT : 0, &command->output_kind);
	} else if (input->mode == INPUT_PIPE && input->descriptor >= 0) {
		watch_for(input->descriptor, &command->input_watched, waiting, &command->input_kind);
	} else {
		command->input_watched = 0;
	}
}

/* Write input that waits. A worker that found no room continues when all of it is written. */
static void continue_input(struct held_command *command)
{
	int waits = input_flush(&command->input);

	settle(command);
	if (!waits && command->input.room_wanted)
		send_input_event(command);
}

/* Move the terminal's output on, and close the terminal after the last of it. */
static void continue_output(struct held_command *command)
{
	size_t most = command->held.exited ? command->last_bytes : MOVE_BYTES;
	ssize_t moved = move_output(command->terminal, command->terminal_output, most);

	if (command->held.exited && moved >= 0) {
		command->last_bytes -= (size_t)moved;
		/* Nothing is left, or other processes write on. */
		if (command->last_bytes == 0 || (moved < (ssize_t)most && !pipe_full(command->terminal_output)))
			moved = -1;
	}
	if (moved < 0)
		close_terminal(command);
	/* A prompt for a password switches the echo off before it writes. */
	if (input_flags(command) != command->reported_flags)
		send_input_event(command);
	settle(command);
}

static void on_terminal(struct held_command *command, uint32_t ready)
{
	if (ready & (EPOLLOUT | EPOLLERR | EPOLLHUP))
		continue_input(command);
	if (command->terminal < 0)
		return;
	/* Without a process on the terminal, its input is lost; otherwise the loop would spin until the pipe has room. */
	if ((ready & (EPOLLERR | EPOLLHUP)) && pipe_full(command->terminal_output)) {
		input_break(&command->input);
		settle(command);
	} else {
		continue_output(command);
	}
}

/* Reply to INPUT or END_INPUT, depending on the operation. */
static void take_input(struct worker *worker)
{
	struct header *header = &worker->header;
	struct input_request request;
	struct input_state state = { 0 };
	struct held_command *command;
	const char *bytes;
	size_t count;
	int why;

	if (parse_input(worker->body, header->length, &request, &bytes, &count) != 0 ||
	    (header->operation == OP_END_INPUT && count > 0)) {
		reply_failure(worker, header->tag, STEP_REQUEST, EINVAL);
		return;
	}
	command = find(request.name);
	if (command == NULL || !command->started) {
		reply_failure(worker, header->tag, STEP_NAME, ESRCH);
		return;
	}
	why = header->operation == OP_INPUT ? input_accept(&command->input, request.offset, bytes, count)
					    : input_end(&command->input, request.offset);
	settle(command);
	if (why != 0) {
		reply_failure(worker, header->tag, STEP_INPUT, why);
		return;
	}
	memcpy(state.name, command->name, NAME_BYTES);
	state.status = status_of(command);
	send_message(worker, header->operation, header->tag, &state, sizeof(state), NULL, 0);
}

/* Return the command that a request names if it has a terminal; otherwise reply that it has none. */
static struct held_command *find_terminal(struct worker *worker)
{
	struct held_command *command = find(worker->body);

	if (command == NULL)
		reply_failure(worker, worker->header.tag, STEP_NAME, ESRCH);
	else if (command->terminal < 0)
		reply_failure(worker, worker->header.tag, STEP_TERMINAL, ENOTTY);
	return command == NULL || command->terminal < 0 ? NULL : command;
}

static void resize(struct worker *worker)
{
	struct resize request;
	struct held_command *command = find_terminal(worker);

	memcpy(&request, worker->body, sizeof(request));
	if (command == NULL)
		return;
	if (resize_terminal(command->terminal, &request.size) != 0)
		reply_failure(worker, worker->header.tag, STEP_TERMINAL, errno);
	else
		reply_done(worker);
}

static void hang_up(struct worker *worker)
{
	struct held_command *command = find_terminal(worker);

	if (command == NULL)
		return;
	/* Its last output, as far as the pipe takes it. */
	(void)move_output(command->terminal, command->terminal_output, LAST_BYTES);
	close_terminal(command);
	send_input_event(command);
	reply_done(worker);
}

/* --- the life of a command --------------------------------------------------------------------------------------- */

/* The child closed its end by executing the command, or it reported the step that failed. */
static void on_report(struct held_command *command)
{
	struct failure failure;
	ssize_t got = read(command->report, &failure, sizeof(failure));
	struct worker *worker = asker(command);

	if (got < 0 && errno == EAGAIN)
		return;
	close_if_open(&command->report);
	if (got == (ssize_t)sizeof(failure)) {
		waitpid(command->pid, NULL, 0);
		forget(command);
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

static void on_exit_of(struct held_command *command)
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

/* --- processes that commands leave behind ------------------------------------------------------------------------- */

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
static void on_orphans(void)
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

/*
 * Become the parent of processes whose parents end, in place of process 1, which need not collect them in a container.
 * Without a list of children (CONFIG_PROC_CHILDREN), a held zombie would hide the others, so it is left to process 1.
 */
static void adopt_orphans(void)
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

/* --- killing ----------------------------------------------------------------------------------------------------- */

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

static void kill_command(struct worker *worker)
{
	struct held_command *command = find(worker->body);
	struct survivors survivors = { 0 };

	if (command == NULL) {
		reply_failure(worker, worker->header.tag, STEP_NAME, ESRCH);
		return;
	}
	/* Also with a cgroup: a process may still be on its way into it. */
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

static void signal_command(struct worker *worker)
{
	struct signal_request request;
	struct held_command *command;

	memcpy(&request, worker->body, sizeof(request));
	command = find(request.name);
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

static void sweep(struct worker *worker)
{
	struct survivors survivors = { 0 };

	kill_cgroup(worker->descriptor[0], &survivors);
	send_message(worker, OP_SWEEP, worker->header.tag, &survivors, sizeof(survivors), NULL, 0);
}

/* --- requests ---------------------------------------------------------------------------------------------------- */

static void hello(struct worker *worker)
{
	struct hello reply = { .version = PROTOCOL_VERSION, .uid = geteuid(), .capabilities = capabilities };

	send_message(worker, OP_HELLO, worker->header.tag, &reply, sizeof(reply), NULL, 0);
}

static void list(struct worker *worker)
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

static void take(struct worker *worker)
{
	struct held_command *command = find(worker->body);

	if (command == NULL || !command->started) {
		reply_failure(worker, worker->header.tag, STEP_NAME, ESRCH);
		return;
	}
	int pipes[2] = { command->standard_output, command->standard_error };

	send_message(worker, OP_TAKE, worker->header.tag, describe(command), sizeof(command->held), pipes, 2);
}

static void release(struct worker *worker)
{
	struct held_command *command = find(worker->body);

	if (command == NULL) {
		reply_failure(worker, worker->header.tag, STEP_NAME, ESRCH);
	} else if (!command->held.exited) {
		reply_failure(worker, worker->header.tag, STEP_HELD, EBUSY);
	} else {
		waitpid(command->pid, NULL, 0);
		forget(command);
		reply_done(worker);
	}
}

static int count_running(int exited_too)
{
	int count = 0;

	for (size_t i = 0; i < slots; i++)
		count += commands[i].name[0] != '\0' && (exited_too || !commands[i].held.exited);
	return count;
}

static void handle(struct worker *worker)
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
		list(worker);
	else if (header->operation == OP_TAKE && names)
		take(worker);
	else if (header->operation == OP_RELEASE && names)
		release(worker);
	else if (header->operation == OP_INPUT || header->operation == OP_END_INPUT)
		take_input(worker);
	else if (header->operation == OP_RESIZE && length == sizeof(struct resize) && valid_name(worker->body))
		resize(worker);
	else if (header->operation == OP_HANG_UP && names)
		hang_up(worker);
	else if (header->operation == OP_STOP && length == 0 && count_running(1) == 0) {
		stop_wanted = 1;
		reply_done(worker);
	} else if (header->operation == OP_STOP && length == 0)
		reply_failure(worker, header->tag, STEP_HELD, EBUSY);
	else
		reply_failure(worker, header->tag, STEP_REQUEST, EINVAL);
}

/* Take the descriptors of a message. Returns -1 if there are more than a request may carry. */
static int take_descriptors(struct worker *worker, struct msghdr *message)
{
	int result = message->msg_flags & MSG_CTRUNC ? -1 : 0;

	for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part != NULL; part = CMSG_NXTHDR(message, part)) {
		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		for (size_t i = 0; i < count; i++) {
			int descriptor;

			memcpy(&descriptor, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
			if (worker->descriptors < MAX_DESCRIPTORS) {
				worker->descriptor[worker->descriptors++] = descriptor;
			} else {
				close(descriptor);
				result = -1;
			}
		}
	}
	return result;
}

/* Read the available part of one request, never beyond its end, and handle it when it is complete. */
static void on_readable(struct worker *worker)
{
	union {
		struct cmsghdr aligned;
		char space[CMSG_SPACE(MAX_DESCRIPTORS * sizeof(int))];
	} control;
	struct iovec part;
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof(control.space),
	};
	size_t head = sizeof(worker->header);
	ssize_t got;

	if (worker->received < head) {
		part.iov_base = (char *)&worker->header + worker->received;
		part.iov_len = head - worker->received;
	} else {
		part.iov_base = worker->body + (worker->received - head);
		part.iov_len = head + worker->header.length - worker->received;
	}
	got = recvmsg(worker->socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0 || take_descriptors(worker, &message) != 0) {
		disconnect(worker);
		return;
	}
	worker->received += (size_t)got;
	if (worker->received < head)
		return;
	if (worker->header.length > MAX_BODY) {
		disconnect(worker);
		return;
	}
	if (worker->received == head + worker->header.length) {
		handle(worker);
		forget_request(worker);
	}
}

static void on_connection(int listener)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);
	int socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (socket < 0)
		return;
	for (size_t i = 0; i < MAX_WORKERS; i++) {
		struct worker *worker = &workers[i];

		if (worker->socket >= 0)
			continue;
		if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 ||
		    (peer.uid != 0 && peer.uid != allowed_peer))
			break;
		worker->body = malloc(MAX_BODY);
		if (worker->body == NULL)
			break;
		worker->socket = socket;
		worker->generation = ++generations;
		if (watch(socket, worker) != 0)
			disconnect(worker);
		return;
	}
	close(socket);
}

/* --- main loop --------------------------------------------------------------------------------------------------- */

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

static int connected(void)
{
	for (size_t i = 0; i < MAX_WORKERS; i++)
		if (workers[i].socket >= 0)
			return 1;
	return 0;
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
		int idle = !connected() && count_running(0) == 0;
		int ready_count = epoll_wait(events, ready, 64, idle && linger > 0 ? linger * 1000 : -1);

		if (ready_count < 0 && errno != EINTR)
			die("epoll_wait");
		if (ready_count == 0 && idle)
			break;
		for (int i = 0; i < ready_count; i++)
			if (ready[i].data.ptr != NULL)
				dispatch(ready[i].data.ptr, ready[i].events, listener);
	}
	remove_socket(listener);
	return 0;
}
