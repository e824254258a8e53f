/*
 * Input for the parsers of requests; see `run`. The first byte of the input selects the parser: 255 for that of INPUT,
 * otherwise it is the number of descriptors of a spawn request.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../protocol.h"

static void require(int condition)
{
	if (!condition)
		abort();
}

/* Require that a string is completely within the message. */
static void inside(const char *text, const char *body, size_t length)
{
	require(text >= body && text < body + length);
	require(text + strlen(text) < body + length);
}

static void spawn_request(char *body, size_t length, size_t descriptors)
{
	static struct command command;

	if (parse_spawn(body, length, descriptors, &command) != 0)
		return;
	const struct spawn *head = &command.head;
	const struct terminal_size *size = &head->terminal;

	require(valid_name(head->name));
	require(head->size >= SPAWN_BYTES && head->size <= length);
	require(head->groups <= MAX_GROUPS && head->cgroups <= MAX_CGROUPS && head->input <= INPUT_TERMINAL);
	require(descriptors == 1 + (head->input == INPUT_FILE) + head->cgroups);
	require(head->uid != UINT32_MAX && head->gid != UINT32_MAX);
	require(head->input == INPUT_TERMINAL || !(size->rows | size->columns | size->x_pixels | size->y_pixels));
	inside(command.work_dir_root, body, length);
	inside(command.work_dir, body, length);
	inside(command.executable, body, length);
	require(command.work_dir_root[0] == '/' && command.work_dir[0] != '/' && command.executable[0] == '/');
	for (uint32_t i = 0; i < head->arguments; i++)
		inside(command.argv[i], body, length);
	require(command.argv[head->arguments] == NULL);
	for (uint32_t i = 0; i < head->variables; i++)
		inside(command.envp[i], body, length);
	require(command.envp[head->variables] == NULL);
}

static void input_request(const char *body, size_t length)
{
	struct input_request request;
	const char *bytes;
	size_t count;

	if (parse_input(body, length, &request, &bytes, &count) != 0)
		return;
	require(valid_name(request.name));
	require(count <= INPUT_BYTES && bytes + count == body + length);
	require(request.offset + count >= request.offset);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size == 0)
		return 0;
	size_t length = size - 1;
	/* Exactly as large as the message, so that a read of one byte beyond it is detected. */
	char *body = malloc(length ? length : 1);

	require(body != NULL);
	memcpy(body, data + 1, length);
	if (data[0] == 255)
		input_request(body, length);
	else
		spawn_request(body, length, data[0]);
	free(body);
	return 0;
}
