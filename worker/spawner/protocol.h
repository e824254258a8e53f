/*
 * The messages between the worker and the spawner on their unix stream socket.
 *
 * Every message is a header and a body, whose length is in the header, in the byte order of the host. A request may
 * carry descriptors (SCM_RIGHTS, unix(7)), attached to its first byte. Each request gets exactly one reply, with the
 * same tag. `EVENT_EXITED` is sent without a request. tachikoma_worker/confinement/protocol.py is the other side.
 */
#ifndef TACHIKOMA_PROTOCOL_H
#define TACHIKOMA_PROTOCOL_H

#include <stddef.h>
#include <stdint.h>

#define PROTOCOL_VERSION 1

/* Bounds. The body holds 128 KiB of arguments, 128 KiB of environment, and the rest of a request. */
#define MAX_BODY (320 * 1024)
#define MAX_STRINGS 1400        /* argv and envp together: those of the request, and those that the agent adds */
#define MAX_GROUPS 256
#define MAX_CGROUPS 8
#define MAX_DESCRIPTORS (2 + MAX_CGROUPS)
#define MAX_LISTED_PIDS 32
#define MAX_LISTED 256
#define NAME_BYTES 64           /* an execution id and the NUL that ends it */

enum operation {
	OP_HELLO = 1,           /* -> struct hello */
	OP_SPAWN = 2,           /* struct spawn, strings; executable, [stdin,] cgroups -> struct spawned; stdout, stderr */
	OP_SIGNAL = 3,          /* struct signal_request -> nothing */
	OP_KILL = 4,            /* name -> struct survivors */
	OP_SWEEP = 5,           /* nothing; one cgroup -> struct survivors */
	OP_LIST = 6,            /* uint32_t first slot -> struct listed, struct held[] */
	OP_TAKE = 7,            /* name -> nothing; stdout, stderr */
	OP_RELEASE = 8,         /* name -> nothing */
	OP_STOP = 9,            /* -> nothing, then the spawner exits; fails if commands are held */
	REPLY_FAILED = 64,      /* struct failure */
	EVENT_EXITED = 65,      /* struct held */
};

/* The step that failed; `tachikoma_worker.confinement.protocol.Step` has the same numbers. */
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
	STEP_REACH,             /* the user has no access to the executable */
	STEP_SWAPPED,           /* the path names another file than the checked one */
	STEP_PRIVILEGES,
	STEP_DESCRIPTORS,
	STEP_EXECUTE,
	STEP_SIGNAL,
	STEP_HELD,              /* commands are held, so the spawner cannot stop */
};

struct header {
	uint32_t length;        /* of the body */
	uint32_t operation;
	uint64_t tag;
};

struct hello {
	uint32_t version;
	uint32_t uid;           /* user of the spawner; only 0 can change identity */
	uint64_t capabilities;  /* bits of those that a command may keep at most */
};

enum spawn_flag {
	SPAWN_STDIN = 1,        /* a descriptor for standard input is attached; otherwise it is /dev/null */
	SPAWN_UNIFIED = 2,      /* the cgroup is a directory of cgroup v2 */
};

struct spawn {
	uint32_t uid;
	uint32_t gid;
	uint32_t umask;
	uint32_t flags;
	uint64_t capabilities;  /* those that stay in the bounding set; only for uid 0 */
	uint32_t groups;
	uint32_t arguments;
	uint32_t variables;
	uint32_t cgroups;
	char name[NAME_BYTES];
	/* uint32_t group[groups];
	 * then, each ended by NUL: root of the working directory, working directory beneath it,
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
	uint32_t count;         /* all of them */
	uint32_t listed;        /* those in `pid` */
	uint32_t pid[MAX_LISTED_PIDS];
};

struct held {
	char name[NAME_BYTES];
	uint32_t pid;
	uint32_t exited;        /* 0 while it runs */
	int32_t code;           /* si_code: CLD_EXITED, CLD_KILLED or CLD_DUMPED */
	int32_t status;         /* exit code or signal */
	uint64_t user_micros;   /* CPU time at exit, with the children that the command waited for */
	uint64_t system_micros;
};

struct listed {
	uint32_t next;          /* first slot of the next request; 0 after the last command */
	uint32_t count;
};

struct failure {
	uint32_t step;
	int32_t error;          /* errno */
};

/* A parsed spawn request. Its pointers point into the message, and into `strings`. */
struct command {
	struct spawn head;
	uint32_t group[MAX_GROUPS];
	char *work_dir_root;
	char *work_dir;
	char *executable;
	char **argv;            /* both ended by NULL */
	char **envp;
	char *strings[MAX_STRINGS + 2];
};

/*
 * Parse the body of a spawn request. The body is not modified and must outlive the result.
 * `descriptors` is the number of attached descriptors. Returns 0, or -1 if the request is malformed.
 */
int parse_spawn(char *body, size_t length, size_t descriptors, struct command *command);

/* Return whether NAME_BYTES bytes contain an execution id, ended and padded by NUL. */
int valid_name(const char *name);

#endif
