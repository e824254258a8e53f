/* Sessions: input of commands on its way in, output of terminals on its way out, sizes and hang-ups. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#include "spawner.h"
#include "terminal.h"

#define MOVE_BYTES (64 * 1024)  /* of a terminal's output at a time, so that other commands get their turn */

static uint32_t input_flags(const struct held_command *command)
{
	return command->input.flags | terminal_flags(command->terminal);
}

struct input_status status_of(const struct held_command *command)
{
	return (struct input_status){
		.offset = command->input.offset, .mode = command->input.mode, .flags = input_flags(command),
		.room = (uint32_t)input_room(&command->input),
		.size = command->terminal >= 0 ? size_of_terminal(command->terminal) : command->held.input.size,
	};
}

void send_input_event(struct held_command *command)
{
	struct input_state state = { .status = status_of(command) };

	memcpy(state.name, command->name, NAME_BYTES);
	command->reported_flags = state.status.flags;
	command->input.room_wanted = 0;
	for (size_t i = 0; i < MAX_WORKERS; i++)
		send_message(&workers[i], EVENT_INPUT, 0, &state, sizeof(state), NULL, 0);
}

/* Watch what can make progress: a full pipe or a full terminal is watched for room, and not for more to put into it. */
void settle(struct held_command *command)
{
	struct input *input = &command->input;
	uint32_t waiting = input->end > input->begin ? EPOLLOUT : 0;

	if (command->terminal >= 0) {
		int full = pipe_full(command->terminal_output);
		uint32_t wanted = (full ? 0 : EPOLLIN) | waiting;

		/* A terminal that is not open anywhere is ready without end, so only changes count. */
		if (wanted != 0 && command->terminal_unused)
			wanted |= EPOLLET;
		watch_for(command->terminal, &command->terminal_watched, wanted, &command->terminal_kind);
		watch_for(command->terminal_output, &command->output_watched, full ? EPOLLOUT : 0, &command->output_kind);
	} else if (input->mode == INPUT_PIPE && input->descriptor >= 0) {
		watch_for(input->descriptor, &command->input_watched, waiting, &command->input_kind);
	} else {
		command->input_watched = 0;
	}
}

/* Write input that waits. A worker that found no room continues when all of it is written. */
void continue_input(struct held_command *command)
{
	int waits = input_flush(&command->input);

	settle(command);
	if (!waits && command->input.room_wanted)
		send_input_event(command);
}

/* Move the terminal's output on, and close the terminal after the last of it. */
void continue_output(struct held_command *command)
{
	size_t most = command->held.exited ? command->last_bytes : MOVE_BYTES;
	size_t moved;
	enum output_stop stop = move_output(command->terminal, command->terminal_output, most, &moved);

	/*
	 * Many programs close all that they have open before they exit. If the terminal were closed then, the kernel would
	 * send them SIGHUP, and that would be their end.
	 */
	command->terminal_unused = stop == OUTPUT_UNUSED;
	if (command->held.exited) {
		command->last_bytes -= moved;
		/* Nothing is left, or other processes write on. A full pipe may have room again: that says nothing. */
		if (stop == OUTPUT_TAKEN || stop == OUTPUT_UNUSED || command->last_bytes == 0)
			stop = OUTPUT_ENDED;
	}
	if (stop == OUTPUT_ENDED)
		close_terminal(command);
	/* A prompt for a password switches the echo off before it writes. */
	if (input_flags(command) != command->reported_flags)
		send_input_event(command);
	settle(command);
}

void on_terminal(struct held_command *command, uint32_t ready)
{
	if (ready & (EPOLLOUT | EPOLLERR | EPOLLHUP))
		continue_input(command);
	if (command->terminal < 0)
		return;
	/* Without a process on the terminal, its input is lost; otherwise the loop would spin until the pipe has room. */
	if ((ready & (EPOLLERR | EPOLLHUP)) && pipe_full(command->terminal_output)) {
		input_break(&command->input);
		settle(command);
	} else {
		continue_output(command);
	}
}

/* Reply to INPUT or END_INPUT, depending on the operation. */
void take_input(struct worker *worker)
{
	struct header *header = &worker->header;
	struct input_request request;
	struct input_state state = { 0 };
	struct held_command *command;
	const char *bytes;
	size_t count;
	int why;

	if (parse_input(worker->body, header->length, &request, &bytes, &count) != 0 ||
	    (header->operation == OP_END_INPUT && count > 0)) {
		reply_failure(worker, header->tag, STEP_REQUEST, EINVAL);
		return;
	}
	command = find_command(request.name);
	if (command == NULL || !command->started) {
		reply_failure(worker, header->tag, STEP_NAME, ESRCH);
		return;
	}
	why = header->operation == OP_INPUT ? input_accept(&command->input, request.offset, bytes, count)
					    : input_end(&command->input, request.offset);
	settle(command);
	if (why != 0) {
		reply_failure(worker, header->tag, STEP_INPUT, why);
		return;
	}
	memcpy(state.name, command->name, NAME_BYTES);
	state.status = status_of(command);
	send_message(worker, header->operation, header->tag, &state, sizeof(state), NULL, 0);
}

/* Return the command that a request names if it has a terminal; otherwise reply that it has none. */
static struct held_command *find_terminal(struct worker *worker)
{
	struct held_command *command = find_command(worker->body);

	if (command == NULL)
		reply_failure(worker, worker->header.tag, STEP_NAME, ESRCH);
	else if (command->terminal < 0)
		reply_failure(worker, worker->header.tag, STEP_TERMINAL, ENOTTY);
	return command == NULL || command->terminal < 0 ? NULL : command;
}

void resize(struct worker *worker)
{
	struct resize request;
	struct held_command *command = find_terminal(worker);

	memcpy(&request, worker->body, sizeof(request));
	if (command == NULL)
		return;
	if (resize_terminal(command->terminal, &request.size) != 0)
		reply_failure(worker, worker->header.tag, STEP_TERMINAL, errno);
	else
		reply_done(worker);
}

void hang_up(struct worker *worker)
{
	struct held_command *command = find_terminal(worker);
	size_t moved;

	if (command == NULL)
		return;
	/* Its last output, as far as the pipe takes it. */
	(void)move_output(command->terminal, command->terminal_output, LAST_BYTES, &moved);
	close_terminal(command);
	send_input_event(command);
	reply_done(worker);
}
