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

/*
 * Copy the head of a spawn request. Fields that the worker does not know are 0. Fields that this spawner does not know
 * must be 0, as in clone3(2). Returns the number of bytes in the message, or 0 if it is malformed.
 */
static size_t take_head(const char *body, size_t length, struct spawn *head)
{
	uint32_t size;

	if (length < SPAWN_BYTES)
		return 0;
	memcpy(&size, body, sizeof(size));
	if (size < SPAWN_BYTES || size > length)
		return 0;
	memset(head, 0, sizeof(*head));
	memcpy(head, body, size < sizeof(*head) ? size : sizeof(*head));
	for (size_t i = sizeof(*head); i < size; i++)
		if (body[i] != '\0')
			return 0;
	return size;
}

static int valid_terminal(const struct spawn *head)
{
	const struct terminal_size *size = &head->terminal;

	return head->input == INPUT_TERMINAL ||
	       (size->rows == 0 && size->columns == 0 && size->x_pixels == 0 && size->y_pixels == 0);
}

static int valid_isolation(const struct spawn *head)
{
	uint32_t known = CONFINE_MASKS | CONFINE_READ_ONLY | CONFINE_SCOPED | CONFINE_PASSWD |
			 CONFINE_CGROUP_FILES;
	int mounts = (head->confine & CONFINE_MASKS) != 0;

	if (head->isolation > ISOLATION_SEALED || (head->confine & ~known) || head->tmp > TMP_EXECUTION)
		return 0;
	if (head->masks > MAX_MASKS || (head->tmp != TMP_HOST && (head->tmp_bytes == 0 || head->tmp_inodes == 0)))
		return 0;
	/* What is done with mounts needs a mount namespace. */
	return mounts || (head->isolation == ISOLATION_SHARED && head->tmp == TMP_HOST && head->masks == 0 &&
			  !(head->confine & (CONFINE_READ_ONLY | CONFINE_PASSWD | CONFINE_CGROUP_FILES)));
}

/* Return the next string if it is an absolute path, or NULL. */
static char *next_path(char **cursor, size_t *left)
{
	char *path = next_string(cursor, left);

	return path != NULL && path[0] == '/' ? path : NULL;
}

/* Take the paths at the end of a request. Returns 0, or -1 if one of them is missing or is not absolute. */
static int take_paths(char *body, size_t length, struct command *command)
{
	const struct spawn *head = &command->head;

	command->tmp_folder = command->passwd = NULL;
	for (uint32_t i = 0; i < head->masks; i++)
		if ((command->mask[i] = next_path(&body, &length)) == NULL)
			return -1;
	if (head->tmp == TMP_REQUESTER && (command->tmp_folder = next_path(&body, &length)) == NULL)
		return -1;
	if ((head->confine & CONFINE_PASSWD) && (command->passwd = next_path(&body, &length)) == NULL)
		return -1;
	return length == 0 ? 0 : -1;
}

int parse_spawn(char *body, size_t length, size_t descriptors, struct command *command)
{
	struct spawn *head = &command->head;
	size_t size = take_head(body, length, head);
	size_t expected;
	size_t next = 0;

	if (size == 0)
		return -1;
	body += size;
	length -= size;

	if (!valid_name(head->name))
		return -1;
	if (head->flags & ~(uint32_t)(SPAWN_UNIFIED | SPAWN_PROBE))
		return -1;
	if (head->input > INPUT_TERMINAL || !valid_terminal(head))
		return -1;
	if (!valid_isolation(head))
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
	expected = 1 + (head->input == INPUT_FILE ? 1 : 0) + head->cgroups;
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
	return take_paths(body, length, command);
}

int parse_input(const char *body, size_t length, struct input_request *request, const char **bytes, size_t *count)
{
	if (length < sizeof(*request) || length > sizeof(*request) + INPUT_BYTES)
		return -1;
	memcpy(request, body, sizeof(*request));
	if (!valid_name(request->name))
		return -1;
	*bytes = body + sizeof(*request);
	*count = length - sizeof(*request);
	/* The offset after the last byte must be a number. */
	return request->offset <= UINT64_MAX - *count ? 0 : -1;
}
