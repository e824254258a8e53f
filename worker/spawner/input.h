/* The input of one command: bytes that the worker sent, on their way into a pipe or a terminal. */
#ifndef TACHIKOMA_INPUT_H
#define TACHIKOMA_INPUT_H

#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

struct input {
	int descriptor;         /* write end of the pipe, or master of the terminal; not blocking; -1: closed */
	uint64_t offset;        /* bytes that were accepted */
	uint32_t mode;          /* enum input_mode */
	uint32_t flags;         /* INPUT_ENDED, INPUT_BROKEN */
	int room_wanted;        /* the last request was not accepted as a whole */
	char last;              /* the last byte that was accepted */
	char *waiting;          /* accepted bytes that the command has not taken yet; NULL: none */
	size_t begin;           /* of the bytes in `waiting` */
	size_t end;
};

/* Return how many bytes can be accepted now. */
size_t input_room(const struct input *input);

/*
 * Accept the bytes of a request from its offset on, as far as there is room. Bytes that were accepted before are
 * skipped. Returns 0, or an errno: EINVAL for a gap before the bytes, EPIPE for bytes after the end of the input,
 * ENOTCONN for a command that takes no input, ENOMEM.
 */
int input_accept(struct input *input, uint64_t offset, const char *bytes, size_t count);

/*
 * Accept the end of the input at an offset. A pipe is closed once it has taken all bytes. In a terminal that edits
 * lines, the character for the end of input is typed. Returns 0, or an errno as `input_accept`.
 */
int input_end(struct input *input, uint64_t offset);

/* Write as much as the command takes. Returns whether bytes still wait. */
int input_flush(struct input *input);

/* Drop the bytes that wait, and all that follow. A pipe is closed. */
void input_break(struct input *input);

#endif
