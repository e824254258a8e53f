/*
 * tachikoma-spawner: starts commands for the worker, without privileges, and stays their parent.
 *
 *     tachikoma-spawner --socket FD --peer UID --linger SECONDS --capabilities MASK
 *
 * FD is a listening unix socket; the spawner serves root and the user with that UID. It is the only part of an agent
 * that needs to be root, and it uses neither policy nor the network. It holds a copy of each command's pipes, and its
 * exit status until the worker releases it, so that a restarted worker can take the command over. After SECONDS without
 * a worker and without a running command it exits and removes the socket's file; with 0 it stays for ever.
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
#include "protocol.h"

#define MAX_WORKERS 4
#define MAX_COMMANDS 4096
#define PIPE_BYTES (1024 * 1024)
/* The children of this process; it has one thread (proc_pid_task(5)). */
#define CHILDREN "/proc/thread-self/children"

/* Kinds of sources of epoll events. */
enum source_kind { LISTENER, WORKER, REPORT, EXIT, ORPHANS };

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
	char name[NAME_BYTES];          /* empty: a free slot */
	pid_t pid;
	int pidfd;
	int report;                     /* -1 after the exec */
	int standard_output;
	int standard_error;
	int cgroup;                     /* v2 directory, or v1 freezer; -1: none */
	int started;
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

static void forget(struct held_command *command)
{
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

static int make_pipe(int ends[2])
{
	if (pipe2(ends, O_CLOEXEC) != 0)
		return -1;
	/* Only for speed; it fails if an ordinary user's share of pipe memory is used up. */
	(void)fcntl(ends[1], F_SETPIPE_SZ, PIPE_BYTES);
	return 0;
}

static void spawn(struct worker *worker)
{
	static struct command request;
	struct header *header = &worker->header;
	struct plan plan = {
		.command = &request, .privileged = privileged, .capabilities = capabilities, .files = files_before,
	};
	int output[2] = { -1, -1 }, error[2] = { -1, -1 }, report[2] = { -1, -1 };
	int joined = 0;
	int unified;
	struct held_command *slot;

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
	if (make_pipe(output) != 0 || make_pipe(error) != 0 || pipe2(report, O_CLOEXEC | O_NONBLOCK) != 0)
		goto failed;

	size_t next = 0;

	plan.executable = worker->descriptor[next++];
	plan.standard_input = (request.head.flags & SPAWN_STDIN) ? worker->descriptor[next++] : null_device;
	plan.standard_output = output[1];
	plan.standard_error = error[1];
	plan.report = report[1];
	unified = (request.head.flags & SPAWN_UNIFIED) != 0;
	for (uint32_t i = 0; i < request.head.cgroups; i++)
		plan.cgroup[plan.cgroups++] = worker->descriptor[next++];

	*slot = (struct held_command){
		.report_kind = REPORT, .exit_kind = EXIT, .pidfd = -1, .report = report[0],
		.standard_output = output[0], .standard_error = error[0], .cgroup = -1,
		.asked_by = worker, .asked_generation = worker->generation, .asked_tag = header->tag,
	};
	if (plan.cgroups > 0) {
		slot->cgroup = fcntl(plan.cgroup[0], F_DUPFD_CLOEXEC, 5);
		if (slot->cgroup < 0)
			goto failed;
	}
	slot->pid = start_child(unified ? plan.cgroup[0] : -1, &slot->pidfd, &joined);
	if (slot->pid == 0) {
		if (joined && unified)
			plan.cgroups = 0;
		become(&plan);
	}
	if (slot->pid < 0) {
		int why = errno;

		close_if_open(&output[1]);
		close_if_open(&error[1]);
		close_if_open(&report[1]);
		forget(slot);
		/* Errors of clone3 for a cgroup that cannot be joined. */
		reply_failure(worker, header->tag,
			     unified && (why == EACCES || why == EBUSY || why == EOPNOTSUPP || why == EBADF || why == ENODEV)
			     ? STEP_CGROUP : STEP_FORK, why);
		return;
	}
	close(output[1]);
	close(error[1]);
	close(report[1]);
	memcpy(slot->name, request.head.name, NAME_BYTES);
	memcpy(slot->held.name, request.head.name, NAME_BYTES);
	slot->held.pid = (uint32_t)slot->pid;
	if (watch(slot->report, &slot->report_kind) != 0 || watch(slot->pidfd, &slot->exit_kind) != 0) {
		int why = errno;

		kill(slot->pid, SIGKILL);
		waitpid(slot->pid, NULL, 0);
		forget(slot);
		reply_failure(worker, header->tag, STEP_RESOURCES, why);
	}
	return;
failed:;
	int why = errno;

	for (int i = 0; i < 2; i++) {
		close_if_open(&output[i]);
		close_if_open(&error[i]);
		close_if_open(&report[i]);
	}
	reply_failure(worker, header->tag, STEP_RESOURCES, why);
}

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
	else if (kill(-command->pid, (int)request.number) != 0 && errno != ESRCH)
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
			reply.held[reply.listed.count++] = commands[slot].held;
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

	send_message(worker, OP_TAKE, worker->header.tag, NULL, 0, pipes, 2);
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

static void prepare(void)
{
	struct rlimit files;

	reset_signals();
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

static void dispatch(enum source_kind *source, int listener)
{
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
	case REPORT: {
		struct held_command *command =
			(struct held_command *)((char *)source - offsetof(struct held_command, report_kind));

		if (command->name[0] != '\0' && command->report >= 0)
			on_report(command);
		break;
	}
	case EXIT: {
		struct held_command *command =
			(struct held_command *)((char *)source - offsetof(struct held_command, exit_kind));

		if (command->name[0] != '\0' && !command->held.exited)
			on_exit_of(command);
		break;
	}
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
				dispatch(ready[i].data.ptr, listener);
	}
	remove_socket(listener);
	return 0;
}
