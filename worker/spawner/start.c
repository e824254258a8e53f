/* The start of a command: its pipes or its terminal, its slot, and the fork. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "child.h"
#include "input.h"
#include "protocol.h"
#include "spawner.h"
#include "terminal.h"

#define PIPE_BYTES (1024 * 1024)
/* Of a terminal's output: what is in it still appears after Ctrl-C, however slow the caller's terminal is. */
#define TERMINAL_PIPE_BYTES (32 * 1024)

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
		.report_kind = REPORT, .init_pidfd = -1, .exit_kind = EXIT, .terminal_kind = TERMINAL, .output_kind = OUTPUT_ROOM,
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
	if (head->tmp == TMP_REQUESTER && make_tmp_folders(plan->command) != 0)
		return STEP_TMP;
	if (head->isolation != ISOLATION_SHARED && start_init(slot) != 0)
		return STEP_INIT;
	slot->pid = start_child(unified ? plan->cgroup[0] : -1, &slot->pidfd, &joined);
	if (slot->pid == 0) {
		if (joined && unified)
			plan->cgroups = 0;
		become(plan);
	}
	if (head->isolation != ISOLATION_SHARED)
		leave_pid_namespace();
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

/* The limit of open files: that of the request or the default, and never above the one that the spawner was given. */
static struct rlimit files_of(const struct spawn *head)
{
	rlim_t most = head->open_files != 0 ? (rlim_t)head->open_files : DEFAULT_FILES;
	struct rlimit files = files_before;

	if (files.rlim_max > most)
		files.rlim_max = most;
	if (files.rlim_cur > files.rlim_max)
		files.rlim_cur = files.rlim_max;
	return files;
}

void spawn(struct worker *worker)
{
	static struct command request;
	struct header *header = &worker->header;
	struct plan plan = {
		.command = &request, .privileged = privileged, .capabilities = capabilities,
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
	if (find_command(request.head.name) != NULL) {
		reply_failure(worker, header->tag, STEP_NAME, EEXIST);
		return;
	}
	slot = free_slot();
	if (slot == NULL) {
		reply_failure(worker, header->tag, STEP_RESOURCES, EUSERS);
		return;
	}
	plan.files = files_of(&request.head);
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
		forget_command(slot);
		reply_failure(worker, header->tag, failed, why);
	}
}
