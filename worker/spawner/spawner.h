/* What the parts of the spawner share: workers, held commands, and the functions of each part. */
#ifndef TACHIKOMA_SPAWNER_H
#define TACHIKOMA_SPAWNER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "input.h"
#include "protocol.h"

#define MAX_WORKERS 4
#define MAX_COMMANDS 4096
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
	pid_t init;                     /* first process of its PID namespace; 0: it has none of its own */
	int init_pidfd;                 /* -1: none */
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
	int terminal_unused;            /* no process has the terminal open, while the command runs on */
	uint32_t output_watched;
	uint32_t input_watched;
	uint32_t reported_flags;        /* flags of the terminal that the workers know */
	struct held held;
	struct worker *asked_by;        /* the worker that requested the start */
	uint64_t asked_generation;
	uint64_t asked_tag;
};

extern struct worker workers[MAX_WORKERS];
extern struct held_command commands[MAX_COMMANDS];
extern size_t slots;                    /* number of `commands` that were ever used */
extern struct rlimit files_before;      /* RLIMIT_NOFILE before the spawner raised its own */
extern uid_t allowed_peer;
extern int privileged;
extern uint64_t capabilities;           /* bits of those that a command may keep at most */
extern int null_device;
extern int own_pid_namespace;           /* -1: without /proc */
extern int events;                      /* the epoll instance */

/* spawner.c */
_Noreturn void die(const char *what);
void close_if_open(int *descriptor);
int watch(int descriptor, void *source);
void watch_for(int descriptor, uint32_t *watched, uint32_t wanted, void *source);
void handle(struct worker *worker);

/* workers.c */
void disconnect(struct worker *worker);
void send_message(struct worker *worker, uint32_t operation, uint64_t tag, const void *body, size_t length,
		 const int *descriptors, size_t count);
void reply_done(struct worker *worker);
void reply_failure(struct worker *worker, uint64_t tag, enum step step, int error);
void on_readable(struct worker *worker);
void on_connection(int listener);
int worker_connected(void);

/* commands.c */
struct held_command *find_command(const char *name);
struct held_command *free_slot(void);
void close_terminal(struct held_command *command);
void forget_command(struct held_command *command);
int count_running(int exited_too);
const struct held *describe(struct held_command *command);
void on_report(struct held_command *command);
void on_exit_of(struct held_command *command);
void list_commands(struct worker *worker);
void take_command(struct worker *worker);
void release_command(struct worker *worker);

/* start.c */
void spawn(struct worker *worker);

/* session.c */
struct input_status status_of(const struct held_command *command);
void send_input_event(struct held_command *command);
void settle(struct held_command *command);
void continue_input(struct held_command *command);
void continue_output(struct held_command *command);
void on_terminal(struct held_command *command, uint32_t ready);
void take_input(struct worker *worker);
void resize(struct worker *worker);
void hang_up(struct worker *worker);

/* orphans.c */
void on_orphans(void);
void adopt_orphans(void);
int collects_orphans(void);

/* pid_namespace.c */
int start_init(struct held_command *command);
void leave_pid_namespace(void);
void kill_init(struct held_command *command);
void forget_init(struct held_command *command);

/* scratch.c */
int make_tmp_folders(const struct command *command);
void drop_tmp(struct worker *worker);
void drop_all_tmp(void);

/* killing.c */
void kill_command(struct worker *worker);
void signal_command(struct worker *worker);
void sweep(struct worker *worker);

#endif
