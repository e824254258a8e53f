/*
 * Input: accepted once, by its offset, and written without blocking.
 *
 * A worker that was killed does not know how much of its last request was accepted, so the spawner counts. An accepted
 * byte is in the pipe, in the terminal, or in `waiting`. All three live as long as the command.
 */
#define _GNU_SOURCE
#include "input.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

/* Room for the characters that end the input of a terminal, beyond INPUT_BYTES. */
#define END_BYTES 2

size_t input_room(const struct input *input)
{
	return input->flags & INPUT_ENDED ? 0 : INPUT_BYTES - (input->end - input->begin);
}

static void drop_waiting(struct input *input)
{
	free(input->waiting);
	input->waiting = NULL;
	input->begin = input->end = 0;
}

void input_break(struct input *input)
{
	drop_waiting(input);
	/* The master of a terminal belongs to its output too. */
	if (input->mode == INPUT_PIPE && input->descriptor >= 0)
		close(input->descriptor);
	input->descriptor = -1;
	input->flags |= INPUT_BROKEN;
}

/* Write bytes until they are all written or the command takes no more. Returns the number, or -1 on an error. */
static ssize_t write_some(int descriptor, const char *bytes, size_t count)
{
	size_t done = 0;

	while (done < count) {
		ssize_t written = write(descriptor, bytes + done, count - done);

		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			return errno == EAGAIN ? (ssize_t)done : -1;
		/* A terminal may take nothing without an error. */
		if (written == 0)
			break;
		done += (size_t)written;
	}
	return (ssize_t)done;
}

/* Append bytes to those that wait. Returns 0, or ENOMEM. */
static int keep(struct input *input, const char *bytes, size_t count)
{
	if (count == 0)
		return 0;
	if (input->waiting == NULL) {
		input->waiting = malloc(INPUT_BYTES + END_BYTES);
		if (input->waiting == NULL)
			return ENOMEM;
	}
	memmove(input->waiting, input->waiting + input->begin, input->end - input->begin);
	input->end -= input->begin;
	input->begin = 0;
	memcpy(input->waiting + input->end, bytes, count);
	input->end += count;
	return 0;
}

int input_accept(struct input *input, uint64_t offset, const char *bytes, size_t count)
{
	uint64_t known;
	ssize_t written = 0;
	size_t kept;

	if (input->mode != INPUT_PIPE && input->mode != INPUT_TERMINAL)
		return ENOTCONN;
	if (offset > input->offset)
		return EINVAL;
	known = input->offset - offset;
	if (known >= count)
		return 0;
	bytes += known;
	count -= (size_t)known;
	if (input->flags & INPUT_ENDED)
		return EPIPE;
	if (input->end == input->begin && !(input->flags & INPUT_BROKEN)) {
		written = write_some(input->descriptor, bytes, count);
		if (written < 0)
			input_break(input);
	}
	if (input->flags & INPUT_BROKEN) {
		input->offset += count;
		return 0;
	}
	kept = count - (size_t)written;
	if (kept > input_room(input)) {
		kept = input_room(input);
		input->room_wanted = 1;
	}
	if (keep(input, bytes + written, kept) != 0) {
		kept = 0;
		input->room_wanted = 1;
	}
	if ((size_t)written + kept > 0)
		input->last = bytes[(size_t)written + kept - 1];
	input->offset += (size_t)written + kept;
	return 0;
}

/* Type the character that ends input. After an incomplete line, the first one only completes the line (termios(3)). */
static void type_end(struct input *input)
{
	struct termios modes;
	char end[END_BYTES];

	if (tcgetattr(input->descriptor, &modes) != 0 || !(modes.c_lflag & ICANON) ||
	    modes.c_cc[VEOF] == _POSIX_VDISABLE)
		return;
	memset(end, (char)modes.c_cc[VEOF], sizeof(end));
	keep(input, end, input->offset == 0 || input->last == '\n' ? 1 : END_BYTES);
}

int input_end(struct input *input, uint64_t offset)
{
	if (input->mode != INPUT_PIPE && input->mode != INPUT_TERMINAL)
		return ENOTCONN;
	if (offset != input->offset)
		return EINVAL;
	if (input->flags & INPUT_ENDED)
		return 0;
	if (input->mode == INPUT_TERMINAL && input->descriptor >= 0)
		type_end(input);
	input->flags |= INPUT_ENDED;
	input_flush(input);
	return 0;
}

int input_flush(struct input *input)
{
	if (input->end > input->begin) {
		ssize_t written = write_some(input->descriptor, input->waiting + input->begin, input->end - input->begin);

		if (written < 0) {
			input_break(input);
			return 0;
		}
		input->begin += (size_t)written;
	}
	if (input->end > input->begin)
		return 1;
	drop_waiting(input);
	if (input->mode == INPUT_PIPE && (input->flags & INPUT_ENDED) && input->descriptor >= 0) {
		close(input->descriptor);
		input->descriptor = -1;
	}
	return 0;
}
