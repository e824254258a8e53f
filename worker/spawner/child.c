/*
 * The child: it drops its privileges step by step and becomes the command.
 *
 * It makes only system calls and allocates no memory, because it runs after a fork without the C library's
 * preparations. The order matters: cgroups while it is root; groups before ids; paths with the rights of the target
 * user; no_new_privs before the exec.
 */
#define _GNU_SOURCE
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "isolation.h"
#include "system_calls.h"
#include "work_dir.h"

/* Numbers of the two descriptors that the child still needs when it closes all higher ones. */
#define REPORT 3
#define EXECUTABLE 4

static int report_to;

_Noreturn void fail(enum step step)
{
	struct failure failure = { .step = step, .error = errno };
	ssize_t written = write(report_to, &failure, sizeof(failure));

	_exit(written == (ssize_t)sizeof(failure) ? 126 : 125);
}

/* Join a cgroup: "0" is the process that writes it. On v1, `tasks` is 5 ms faster than `cgroup.procs`. */
static void join_cgroup(int directory, int unified)
{
	int file = openat(directory, unified ? "cgroup.procs" : "tasks", O_WRONLY | O_CLOEXEC);

	if (file < 0 || write(file, "0", 1) != 1)
		fail(STEP_CGROUP);
	close(file);
}

/* A core dump would copy the command's memory to disk. */
static void limit_resources(void)
{
	struct rlimit none = { .rlim_cur = 0, .rlim_max = 0 };

	if (setrlimit(RLIMIT_CORE, &none) != 0)
		fail(STEP_LIMITS);
}

/* When only standard streams are open: until then the child has the descriptors of all commands of the spawner. */
static void limit_files(const struct plan *plan)
{
	if (setrlimit(RLIMIT_NOFILE, &plan->files) != 0)
		fail(STEP_LIMITS);
}

/*
 * The service manager may protect the agent from the kernel's choice when memory is short. A command is not protected.
 * A value that makes it more likely to be chosen is retained. Without /proc there is nothing to change.
 */
static void give_up_protection(void)
{
	char text[16] = "";
	int file = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);

	if (file < 0 && errno == ENOENT)
		return;
	if (file < 0 || read(file, text, sizeof(text) - 1) < 0)
		fail(STEP_LIMITS);
	if (text[0] == '-' && write(file, "0", 1) != 1)
		fail(STEP_LIMITS);
	close(file);
}

/* A new session has no terminal until its leader takes one, so TIOCSCTTY needs no right (tty_ioctl(4)). */
static void begin_session(const struct plan *plan)
{
	if (setsid() < 0)
		fail(STEP_SESSION);
	if (plan->terminal && ioctl(plan->standard_input, TIOCSCTTY, 0) != 0)
		fail(STEP_TERMINAL);
}

static void set_stdio(const struct plan *plan)
{
	if (dup2(plan->standard_input, 0) < 0 || dup2(plan->standard_output, 1) < 0 ||
	    dup2(plan->standard_error, 2) < 0)
		fail(STEP_STDIO);
}

/* The spawner's bounding set lacks the capabilities that no command may have; drop the others that this one may not. */
static void drop_capabilities(uint64_t present, uint64_t kept)
{
	for (int capability = 0; capability < 64; capability++)
		if ((present & ~kept & (1ULL << capability)) && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0)
			fail(STEP_CAPABILITIES);
}

static void change_identity(const struct command *command)
{
	const struct spawn *head = &command->head;

	if (setgroups(head->groups, command->group) != 0)
		fail(STEP_GROUPS);
	/* The system calls themselves: the functions of the C library look for other threads first. */
	if (syscall(SYS_setresgid, head->gid, head->gid, head->gid) != 0)
		fail(STEP_GROUPS);
	if (syscall(SYS_setresuid, head->uid, head->uid, head->uid) != 0)
		fail(STEP_USER);
}

/* With the rights of the user. No link that another user could have placed is followed, and none out of the root. */
static void enter_work_dir(const struct command *command)
{
	int directory = open_work_dir(-1, command->work_dir_root);

	if (directory < 0)
		fail(STEP_WORK_DIR_ROOT);
	if (command->work_dir[0] != '\0') {
		int beneath = open_work_dir(directory, command->work_dir);

		if (beneath < 0)
			fail(STEP_WORK_DIR);
		close(directory);
		directory = beneath;
	}
	if (fchdir(directory) != 0)
		fail(STEP_WORK_DIR);
	close(directory);
}

/* The checked file is executed. Check that the user has access to its path, and that the path still names it. */
static void reach_executable(const struct plan *plan)
{
	struct stat named, checked;
	int file = open(plan->command->executable, O_PATH | O_CLOEXEC);

	if (file < 0 || fstat(file, &named) != 0 || fstat(plan->executable, &checked) != 0)
		fail(STEP_REACH);
	if (named.st_dev != checked.st_dev || named.st_ino != checked.st_ino) {
		errno = ESTALE;
		fail(STEP_SWAPPED);
	}
	close(file);
}

_Noreturn void become(const struct plan *plan)
{
	const struct command *command = plan->command;
	const struct spawn *head = &command->head;

	report_to = plan->report;
	for (int i = 0; i < plan->cgroups; i++)
		join_cgroup(plan->cgroup[i], head->flags & SPAWN_UNIFIED);
	limit_resources();
	give_up_protection();
	umask((mode_t)head->umask);
	begin_session(plan);
	set_stdio(plan);
	isolate(command);
	if (plan->privileged) {
		drop_capabilities(plan->capabilities, head->uid == 0 ? head->capabilities : 0);
		change_identity(command);
	}
	enter_work_dir(command);
	reach_executable(plan);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		fail(STEP_PRIVILEGES);
	if (head->confine & CONFINE_SCOPED)
		limit_scopes();
	/* None of the plan's descriptors is 3 or 4: the spawner keeps those numbers in use. */
	if (dup3(plan->report, REPORT, O_CLOEXEC) < 0)
		fail(STEP_DESCRIPTORS);
	report_to = REPORT;
	if (dup3(plan->executable, EXECUTABLE, O_CLOEXEC) < 0)
		fail(STEP_DESCRIPTORS);
	if (syscall(SYS_close_range, EXECUTABLE + 1, ~0U, 0) != 0)
		fail(STEP_DESCRIPTORS);
	limit_files(plan);
	if (head->isolation != ISOLATION_SHARED && deny_system_calls(head->isolation) != 0)
		fail(STEP_SYSTEM_CALLS);
	if (head->flags & SPAWN_PROBE)
		_exit(0);
	syscall(SYS_execveat, EXECUTABLE, "", command->argv, command->envp, AT_EMPTY_PATH);
	fail(STEP_EXECUTE);
}
