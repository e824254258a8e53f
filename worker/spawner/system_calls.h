/* The system calls that a command may not make. */
#ifndef TACHIKOMA_SYSTEM_CALLS_H
#define TACHIKOMA_SYSTEM_CALLS_H

/* Deny this process the system calls of a level (enum isolation). Needs no_new_privs. Returns 0, or -1 with errno. */
int deny_system_calls(unsigned int isolation);

#endif
