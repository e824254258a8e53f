/* The steps between fork and exec. */
#ifndef TACHIKOMA_CHILD_H
#define TACHIKOMA_CHILD_H

#include <sys/resource.h>

#include "protocol.h"

struct plan {
	struct command *command;
	int executable;
	int standard_input;
	int standard_output;
	int standard_error;
	int terminal;           /* whether standard input is a terminal, which then controls the new session */
	int report;             /* receives a struct failure; closed by exec */
	int cgroup[MAX_CGROUPS];
	int cgroups;            /* number of those that are still to be joined */
	int privileged;         /* whether identity and capabilities are set */
	uint64_t capabilities;  /* those in the spawner's bounding set */
	struct rlimit files;    /* RLIMIT_NOFILE of the command */
};

/* Report the step that failed, with errno, and exit. */
_Noreturn void fail(enum step step);

/* Become the command, or report the step that failed and exit. */
_Noreturn void become(const struct plan *plan);

#endif
