/* Parsing of requests. It is independent of processes, so that it can be fuzzed alone. */
#include "protocol.h"

#include <string.h>

int valid_name(const char *name)
{
	const char *end = memchr(name, '\0', NAME_BYTES);
	size_t length = end == NULL ? 0 : (size_t)(end - name);

	if (length == 0)
		return 0;
	for (size_t i = 0; i < length; i++) {
		char c = name[i];
		int alphanumeric = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');

		if (!alphanumeric && !(i > 0 && (c == '_' || c == '-')))
			return 0;
	}
	for (size_t i = length; i < NAME_BYTES; i++)
		if (name[i] != '\0')
			return 0;
	return 1;
}

/* Return the next NUL-terminated string, or NULL if there is none. */
static char *next_string(char **cursor, size_t *left)
{
	char *start = *cursor;
	char *end = *left ? memchr(start, '\0', *left) : NULL;

	if (end == NULL)
		return NULL;
	*left -= (size_t)(end - start) + 1;
	*cursor = end + 1;
	return start;
}

int parse_spawn(char *body, size_t length, size_t descriptors, struct command *command)
{
	struct spawn *head = &command->head;
	size_t expected;
	size_t next = 0;

	if (length < sizeof(*head))
		return -1;
	memcpy(head, body, sizeof(*head));
	body += sizeof(*head);
	length -= sizeof(*head);

	if (!valid_name(head->name))
		return -1;
	if (head->flags & ~(uint32_t)(SPAWN_STDIN | SPAWN_UNIFIED))
		return -1;
	if (head->groups > MAX_GROUPS || head->cgroups > MAX_CGROUPS || head->umask > 0777)
		return -1;
	if ((head->flags & SPAWN_UNIFIED) && head->cgroups != 1)
		return -1;
	/* With (uint32_t)-1, setresuid(2) and setresgid(2) change nothing. */
	if (head->uid == UINT32_MAX || head->gid == UINT32_MAX)
		return -1;
	if (head->arguments == 0 || head->arguments > MAX_STRINGS || head->variables > MAX_STRINGS ||
	    head->arguments + head->variables > MAX_STRINGS)
		return -1;
	expected = 1 + ((head->flags & SPAWN_STDIN) ? 1 : 0) + head->cgroups;
	if (descriptors != expected)
		return -1;

	if (length < head->groups * sizeof(uint32_t))
		return -1;
	memcpy(command->group, body, head->groups * sizeof(uint32_t));
	for (uint32_t i = 0; i < head->groups; i++)
		if (command->group[i] == UINT32_MAX)
			return -1;
	body += head->groups * sizeof(uint32_t);
	length -= head->groups * sizeof(uint32_t);

	command->work_dir_root = next_string(&body, &length);
	command->work_dir = next_string(&body, &length);
	command->executable = next_string(&body, &length);
	if (command->work_dir_root == NULL || command->work_dir == NULL || command->executable == NULL)
		return -1;
	if (command->work_dir_root[0] != '/' || command->work_dir[0] == '/' || command->executable[0] != '/')
		return -1;

	command->argv = command->strings;
	for (uint32_t i = 0; i < head->arguments; i++)
		if ((command->strings[next++] = next_string(&body, &length)) == NULL)
			return -1;
	command->strings[next++] = NULL;
	command->envp = command->strings + next;
	for (uint32_t i = 0; i < head->variables; i++)
		if ((command->strings[next++] = next_string(&body, &length)) == NULL)
			return -1;
	command->strings[next] = NULL;
	return length == 0 ? 0 : -1;
}
