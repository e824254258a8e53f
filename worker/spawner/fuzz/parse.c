/* Input for the parser of spawn requests; see `run`. The first byte of the input is the number of descriptors. */
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct command command;

	if (size == 0)
		return 0;
	size_t length = size - 1;
	/* Exactly as large as the message, so that a read of one byte beyond it is detected. */
	char *body = malloc(length ? length : 1);

	require(body != NULL);
	memcpy(body, data + 1, length);
	if (parse_spawn(body, length, data[0], &command) == 0) {
		const struct spawn *head = &command.head;

		require(valid_name(head->name));
		require(head->groups <= MAX_GROUPS && head->cgroups <= MAX_CGROUPS);
		require(data[0] == 1 + ((head->flags & SPAWN_STDIN) != 0) + head->cgroups);
		require(head->uid != UINT32_MAX && head->gid != UINT32_MAX);
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
	free(body);
	return 0;
}
