/* What happens between fork and exec. */
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
	int report;             /* gets a struct failure; closed by exec */
	int cgroup[MAX_CGROUPS];
	int cgroups;            /* those still to be joined */
	int privileged;         /* whether identity and capabilities are set */
	uint64_t capabilities;  /* those that the spawner has left in its bounding set */
	struct rlimit files;    /* RLIMIT_NOFILE as it was before the spawner raised its own */
};

/* Becomes the command, or reports the step that failed and exits. */
_Noreturn void become(const struct plan *plan);

#endif
