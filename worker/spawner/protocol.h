/*
 * What the worker and the spawner say to each other over their unix stream socket.
 *
 * Every message is a header and a body of the length it names, in the byte order of the host. A request may carry
 * descriptors (SCM_RIGHTS, unix(7)), attached to its first byte. Each request gets exactly one reply with its tag;
 * `EVENT_EXITED` comes by itself. tachikoma_worker/spawner.py is the other side.
 */
#ifndef TACHIKOMA_PROTOCOL_H
#define TACHIKOMA_PROTOCOL_H

#include <stddef.h>
#include <stdint.h>

#define PROTOCOL_VERSION 1

/* Bounds. Arguments and environment: 128 KiB each, and one pointer's worth of separators. */
#define MAX_BODY (320 * 1024)
#define MAX_STRINGS 1400        /* argv and envp together: what a request may have, and what the agent adds */
#define MAX_GROUPS 256
#define MAX_CGROUPS 8
#define MAX_DESCRIPTORS (2 + MAX_CGROUPS)
#define MAX_TOLD_PIDS 32
#define MAX_LISTED 256
#define NAME_BYTES 64           /* an execution id and its closing NUL */

enum operation {
	OP_HELLO = 1,           /* -> struct hello */
	OP_SPAWN = 2,           /* struct spawn, strings; executable, [stdin,] cgroups -> struct spawned; stdout, stderr */
	OP_SIGNAL = 3,          /* struct signal_request -> nothing */
	OP_KILL = 4,            /* name -> struct survivors */
	OP_SWEEP = 5,           /* nothing; one cgroup -> struct survivors */
	OP_LIST = 6,            /* uint32_t first place -> struct listed, struct held[] */
	OP_TAKE = 7,            /* name -> nothing; stdout, stderr */
	OP_RELEASE = 8,         /* name -> nothing */
	OP_STOP = 9,            /* -> nothing, and the end, unless commands are held */
	REPLY_FAILED = 64,      /* struct failure */
	EVENT_EXITED = 65,      /* struct held */
};

/* Where it failed; `tachikoma_worker.confinement.spawner.Step` has the same numbers. */
enum step {
	STEP_REQUEST = 1,       /* the request is malformed */
	STEP_NAME,              /* no such command is held, or the name is taken */
	STEP_RESOURCES,         /* descriptors, memory or processes of the spawner itself */
	STEP_FORK,
	STEP_CGROUP,
	STEP_LIMITS,
	STEP_SESSION,
	STEP_STDIO,
	STEP_CAPABILITIES,
	STEP_GROUPS,
	STEP_USER,
	STEP_WORK_DIR_ROOT,
	STEP_WORK_DIR,
	STEP_REACH,             /* the user cannot come to the executable */
	STEP_SWAPPED,           /* its path now names another file than the one that was checked */
	STEP_PRIVILEGES,
	STEP_DESCRIPTORS,
	STEP_EXECUTE,
	STEP_SIGNAL,
	STEP_HELD,              /* commands are held, so it cannot stop */
};

struct header {
	uint32_t length;        /* of the body */
	uint32_t operation;
	uint64_t tag;
};

struct hello {
	uint32_t version;
	uint32_t uid;           /* whom it runs as: 0, or it cannot change identity */
	uint64_t capabilities;  /* the most that a command may keep */
};

enum spawn_flag {
	SPAWN_STDIN = 1,        /* a descriptor for standard input comes along; otherwise it is /dev/null */
	SPAWN_UNIFIED = 2,      /* the cgroup is one of cgroup v2 */
};

struct spawn {
	uint32_t uid;
	uint32_t gid;
	uint32_t umask;
	uint32_t flags;
	uint64_t capabilities;  /* those left in the bounding set; for uid 0 only */
	uint32_t groups;
	uint32_t arguments;
	uint32_t variables;
	uint32_t cgroups;
	char name[NAME_BYTES];
	/* uint32_t group[groups];
	 * then, each closed by NUL: root of the working directory, working directory beneath it,
	 * executable, argv[arguments], envp[variables] */
};

struct spawned {
	uint32_t pid;
	uint32_t reserved;
};

struct signal_request {
	char name[NAME_BYTES];
	uint32_t number;
	uint32_t reserved;
};

struct survivors {
	uint32_t count;
	uint32_t told;
	uint32_t pid[MAX_TOLD_PIDS];
};

struct held {
	char name[NAME_BYTES];
	uint32_t pid;
	uint32_t exited;        /* 0 while it runs */
	int32_t code;           /* si_code: CLD_EXITED, CLD_KILLED or CLD_DUMPED */
	int32_t status;         /* exit code or signal */
	uint64_t user_micros;   /* CPU time of the command and of the children it waited for, when it exited */
	uint64_t system_micros;
};

struct listed {
	uint32_t next;          /* where to go on; 0: that was all */
	uint32_t count;
};

struct failure {
	uint32_t step;
	int32_t error;          /* errno */
};

/* A spawn request taken apart. Its pointers lead into the message, and into `strings`. */
struct command {
	struct spawn head;
	uint32_t group[MAX_GROUPS];
	char *work_dir_root;
	char *work_dir;
	char *executable;
	char **argv;            /* both closed by NULL */
	char **envp;
	char *strings[MAX_STRINGS + 2];
};

/*
 * Takes a message's body apart. The body is changed by nobody and must outlive the result.
 * Returns 0, or -1 when it is malformed; `descriptors` is how many came along.
 */
int parse_spawn(char *body, size_t length, size_t descriptors, struct command *command);

/* Whether NAME_BYTES bytes hold an execution id closed and filled up by NUL. */
int valid_name(const char *name);

#endif
