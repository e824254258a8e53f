/* Workers: their connections, whole requests from bytes and descriptors, and the replies. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "spawner.h"

static uint64_t generations;            /* connections so far */

static void forget_request(struct worker *worker)
{
	for (size_t i = 0; i < worker->descriptors; i++)
		close_if_open(&worker->descriptor[i]);
	worker->descriptors = 0;
	worker->received = 0;
}

void disconnect(struct worker *worker)
{
	forget_request(worker);
	close_if_open(&worker->socket);
	free(worker->body);
	worker->body = NULL;
}

/* Replies are not queued: a worker that does not read them is disconnected, and can ask again. */
void send_message(struct worker *worker, uint32_t operation, uint64_t tag, const void *body, size_t length,
		 const int *descriptors, size_t count)
{
	struct header header = { .length = (uint32_t)length, .operation = operation, .tag = tag };
	struct iovec parts[2] = { { &header, sizeof(header) }, { (void *)body, length } };
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = length ? 2 : 1 };
	union {
		struct cmsghdr aligned;
		char space[CMSG_SPACE(2 * sizeof(int))];
	} control;

	if (count > 0) {
		memset(&control, 0, sizeof(control));
		message.msg_control = control.space;
		message.msg_controllen = CMSG_SPACE(count * sizeof(int));
		struct cmsghdr *first = CMSG_FIRSTHDR(&message);

		first->cmsg_level = SOL_SOCKET;
		first->cmsg_type = SCM_RIGHTS;
		first->cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(first), descriptors, count * sizeof(int));
	}
	if (worker->socket < 0)
		return;
	if (sendmsg(worker->socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)(sizeof(header) + length))
		disconnect(worker);
}

void reply_done(struct worker *worker)
{
	send_message(worker, worker->header.operation, worker->header.tag, NULL, 0, NULL, 0);
}

void reply_failure(struct worker *worker, uint64_t tag, enum step step, int error)
{
	struct failure failure = { .step = step, .error = error };

	send_message(worker, REPLY_FAILED, tag, &failure, sizeof(failure), NULL, 0);
}

/* Take the descriptors of a message. Returns -1 if there are more than a request may carry. */
static int take_descriptors(struct worker *worker, struct msghdr *message)
{
	int result = message->msg_flags & MSG_CTRUNC ? -1 : 0;

	for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part != NULL; part = CMSG_NXTHDR(message, part)) {
		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		for (size_t i = 0; i < count; i++) {
			int descriptor;

			memcpy(&descriptor, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
			if (worker->descriptors < MAX_DESCRIPTORS) {
				worker->descriptor[worker->descriptors++] = descriptor;
			} else {
				close(descriptor);
				result = -1;
			}
		}
	}
	return result;
}

/* Read the available part of one request, never beyond its end, and handle it when it is complete. */
void on_readable(struct worker *worker)
{
	union {
		struct cmsghdr aligned;
		char space[CMSG_SPACE(MAX_DESCRIPTORS * sizeof(int))];
	} control;
	struct iovec part;
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof(control.space),
	};
	size_t head = sizeof(worker->header);
	ssize_t got;

	if (worker->received < head) {
		part.iov_base = (char *)&worker->header + worker->received;
		part.iov_len = head - worker->received;
	} else {
		part.iov_base = worker->body + (worker->received - head);
		part.iov_len = head + worker->header.length - worker->received;
	}
	got = recvmsg(worker->socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0 || take_descriptors(worker, &message) != 0) {
		disconnect(worker);
		return;
	}
	worker->received += (size_t)got;
	if (worker->received < head)
		return;
	if (worker->header.length > MAX_BODY) {
		disconnect(worker);
		return;
	}
	if (worker->received == head + worker->header.length) {
		handle(worker);
		forget_request(worker);
	}
}

void on_connection(int listener)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);
	int socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (socket < 0)
		return;
	for (size_t i = 0; i < MAX_WORKERS; i++) {
		struct worker *worker = &workers[i];

		if (worker->socket >= 0)
			continue;
		if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 ||
		    (peer.uid != 0 && peer.uid != allowed_peer))
			break;
		worker->body = malloc(MAX_BODY);
		if (worker->body == NULL)
			break;
		worker->socket = socket;
		worker->generation = ++generations;
		if (watch(socket, worker) != 0)
			disconnect(worker);
		return;
	}
	close(socket);
}

int worker_connected(void)
{
	for (size_t i = 0; i < MAX_WORKERS; i++)
		if (workers[i].socket >= 0)
			return 1;
	return 0;
}
