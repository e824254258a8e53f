/*
 * The messages between the worker and the spawner on their unix stream socket.
 *
 * Every message is a header and a body, whose length is in the header, in the byte order of the host. A request may
 * carry descriptors (SCM_RIGHTS, unix(7)), attached to its first byte. Each request gets exactly one reply, with the
 * same tag. Events are sent without a request, to all workers. The other side is
 * tachikoma_worker/confinement/protocol.py.
 *
 * Versions. Header, OP_HELLO and `struct hello` are the same in all versions. A worker refuses a spawner of another
 * version in words, since a spawner outlives its worker. A field at the end of `struct spawn` needs no new version:
 * `size` says how much of it the worker knows.
 */
#ifndef TACHIKOMA_PROTOCOL_H
#define TACHIKOMA_PROTOCOL_H

#include <stddef.h>
#include <stdint.h>

#define PROTOCOL_VERSION 2

/* Bounds. The body holds 128 KiB of arguments, 128 KiB of environment, and the rest of a request. */
#define MAX_BODY (320 * 1024)
#define MAX_STRINGS 1400        /* argv and envp together: those of the request, and those that the agent adds */
#define MAX_GROUPS 256
#define MAX_CGROUPS 8
#define MAX_DESCRIPTORS (2 + MAX_CGROUPS)
#define MAX_LISTED_PIDS 32
#define MAX_MASKS 64
#define MAX_LISTED 256
#define DEFAULT_FILES 65536     /* open files of each process of a command, where a request has no limit */
#define NAME_BYTES 64           /* an execution id and the NUL that ends it */
#define INPUT_BYTES (256 * 1024) /* of one INPUT request, and of the input that waits until the command reads it */

enum operation {
	OP_HELLO = 1,           /* -> struct hello */
	OP_SPAWN = 2,           /* struct spawn, strings; executable, [stdin,] cgroups -> struct spawned; stdout, stderr */
	OP_SIGNAL = 3,          /* struct signal_request -> nothing */
	OP_KILL = 4,            /* name -> struct survivors */
	OP_SWEEP = 5,           /* nothing; one cgroup -> struct survivors */
	OP_LIST = 6,            /* uint32_t first slot -> struct listed, struct held[] */
	OP_TAKE = 7,            /* name -> struct held; stdout, stderr */
	OP_RELEASE = 8,         /* name -> nothing */
	OP_STOP = 9,            /* -> nothing, then the spawner exits; fails if commands are held */
	OP_INPUT = 10,          /* struct input_request, bytes -> struct input_state */
	OP_END_INPUT = 11,      /* struct input_request -> struct input_state */
	OP_RESIZE = 12,         /* struct resize -> nothing */
	OP_HANG_UP = 13,        /* name -> nothing; the terminal is closed, as if its line were lost */
	OP_DROP_TMP = 14,       /* path, ended by NUL -> nothing; a requester's temporary folders are removed */
	REPLY_FAILED = 64,      /* struct failure */
	EVENT_EXITED = 65,      /* struct held */
	EVENT_INPUT = 66,       /* struct input_state: there is room again, or the terminal's flags have changed */
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
	STEP_TERMINAL,          /* the terminal cannot be opened, or the command has none */
	STEP_INPUT,             /* the input leaves a gap, comes after its end, or the command takes none */
	STEP_INIT,              /* the first process of the PID namespace */
	STEP_NAMESPACES,
	STEP_MOUNTS,            /* mounts cannot be made private */
	STEP_READ_ONLY,         /* the host's files cannot be made read-only */
	STEP_CGROUP_FILES,      /* the files of cgroups cannot be made read-only */
	STEP_MASK,              /* a path of the agent cannot be masked */
	STEP_TMP,
	STEP_DEVICES,
	STEP_ACCOUNTS,          /* /etc/passwd with the user of the command */
	STEP_PROC,
	STEP_NETWORK,
	STEP_SCOPES,            /* Landlock */
	STEP_SYSTEM_CALLS,      /* seccomp */
	STEP_RUN,               /* /run of a command of root */
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
	SPAWN_UNIFIED = 1,      /* the cgroup is a directory of cgroup v2 */
	SPAWN_PROBE = 2,        /* do all steps but the last: exit with 0 instead of executing the program */
};

/* How far the command is isolated; each level includes the one before it. */
enum isolation {
	ISOLATION_SHARED = 0,
	ISOLATION_PRIVATE = 1,  /* namespaces of processes, mounts, IPC and cgroups; no keyrings */
	ISOLATION_SEALED = 2,   /* a network namespace, a list of denied system calls */
};

/* Parts that do not depend on the level alone. */
enum confine_flag {
	CONFINE_MASKS = 1,      /* a mount namespace with the masks; each level above shared has it */
	CONFINE_READ_ONLY = 2,  /* and all files read-only, other than temporary ones, with few devices, without /run */
	CONFINE_SCOPED = 4,     /* no signals to other executions, no abstract sockets of theirs (Landlock, ABI 6) */
	CONFINE_PASSWD = 8,     /* another file in place of /etc/passwd */
	CONFINE_CGROUP_FILES = 16, /* the cgroups at /sys/fs/cgroup are read-only */
};

/* Whose temporary folders the command has. */
enum tmp_scope {
	TMP_HOST = 0,
	TMP_REQUESTER = 1,      /* those below a folder, which are made when they are missing */
	TMP_EXECUTION = 2,
};

/* Where a command's standard input comes from. */
enum input_mode {
	INPUT_NULL = 0,         /* /dev/null */
	INPUT_FILE = 1,         /* an attached descriptor */
	INPUT_PIPE = 2,         /* a pipe that INPUT requests fill */
	INPUT_TERMINAL = 3,     /* a terminal that INPUT requests type into; its output comes through the pipe of stdout */
};

struct terminal_size {
	uint16_t rows;
	uint16_t columns;
	uint16_t x_pixels;
	uint16_t y_pixels;
};

struct spawn {
	uint32_t size;          /* of this structure; a longer one is accepted if the rest of it is 0 */
	uint32_t flags;
	uint32_t uid;
	uint32_t gid;
	uint32_t umask;
	uint32_t groups;
	uint32_t arguments;
	uint32_t variables;
	uint32_t cgroups;
	uint32_t input;         /* enum input_mode */
	uint64_t capabilities;  /* those that stay in the bounding set; only for uid 0 */
	struct terminal_size terminal;
	char name[NAME_BYTES];
	uint32_t isolation;     /* enum isolation */
	uint32_t confine;       /* enum confine_flag */
	uint32_t tmp;           /* enum tmp_scope; only with a mount namespace */
	uint32_t masks;
	uint64_t tmp_bytes;     /* of each temporary folder, or of all of a requester; not 0 if they are made */
	uint64_t tmp_inodes;
	uint64_t open_files;    /* of each process, RLIMIT_NOFILE, at most those of the spawner; 0: its default */
	/* uint32_t group[groups];
	 * then, each ended by NUL: root of the working directory, working directory beneath it,
	 * executable, argv[arguments], envp[variables], mask[masks],
	 * for TMP_REQUESTER its folder, for CONFINE_PASSWD the file */
};

/* Size of the structure in version 2, the least that is accepted. */
#define SPAWN_BYTES 120

struct spawned {
	uint32_t pid;
	uint32_t reserved;
};

struct signal_request {
	char name[NAME_BYTES];
	uint32_t number;
	uint32_t foreground;    /* 1: to the foreground process group of the terminal instead of the command's own */
};

struct resize {
	char name[NAME_BYTES];
	struct terminal_size size;
};

struct input_request {
	char name[NAME_BYTES];
	uint64_t offset;        /* of the first byte, or of the end, from the beginning of all input */
};

enum input_flag {
	INPUT_ENDED = 1,        /* END_INPUT was accepted */
	INPUT_BROKEN = 2,       /* the command reads no more input, or has ended; further input is dropped */
	TERMINAL_ECHO = 4,      /* the terminal echoes what is typed (termios ECHO) */
	TERMINAL_CANONICAL = 8, /* the terminal edits lines (termios ICANON) */
};

/*
 * The spawner owns the offset: bytes below it are accepted, and reach the command exactly once. A request is accepted
 * as far as there is room; when there is room again, EVENT_INPUT is sent.
 */
struct input_status {
	uint64_t offset;        /* bytes that are accepted, from the beginning of all input */
	uint32_t mode;          /* enum input_mode */
	uint32_t flags;         /* enum input_flag */
	uint32_t room;          /* bytes that an INPUT request can contain now */
	uint32_t reserved;
	struct terminal_size size;
};

struct input_state {
	char name[NAME_BYTES];
	struct input_status status;
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
	struct input_status input;
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
	char *mask[MAX_MASKS];
	char *tmp_folder;       /* NULL: none */
	char *passwd;           /* NULL: the host's */
	char *strings[MAX_STRINGS + 2];
};

/*
 * Parse the body of a spawn request. The body is not modified and must outlive the result.
 * `descriptors` is the number of attached descriptors. Returns 0, or -1 if the request is malformed.
 */
int parse_spawn(char *body, size_t length, size_t descriptors, struct command *command);

/*
 * Parse the body of an INPUT request, or of END_INPUT, which has no bytes. `bytes` then points into the body.
 * Returns 0, or -1 if the request is malformed.
 */
int parse_input(const char *body, size_t length, struct input_request *request, const char **bytes, size_t *count);

/* Return whether NAME_BYTES bytes contain an execution id, ended and padded by NUL. */
int valid_name(const char *name);

#endif
