/* The namespaces and mounts of a command. */
#ifndef TACHIKOMA_ISOLATION_H
#define TACHIKOMA_ISOLATION_H

#include "protocol.h"

/* Isolate this process as a request says, while it has all privileges, or report the step that failed and exit. */
void isolate(const struct command *command);

/* Let this process send no signals to, and open no abstract sockets of, processes outside it. Or report and exit. */
void limit_scopes(void);

#endif
