/* A server that was activated by its sockets, see sd_listen_fds(3): what a client sends
 * comes back when the client has ended its half. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char text[1 << 21];

static void serve(int client)
{
	size_t length = 0;
	ssize_t count;

	while ((count = read(client, text + length, sizeof(text) - length)) > 0)
		length += count;
	for (size_t sent = 0; sent < length; sent += count)
		if ((count = write(client, text + sent, length - sent)) <= 0)
			break;
	close(client);
}

int main(void)
{
	int sockets = atoi(getenv("LISTEN_FDS"));
	struct pollfd fds[8];

	if (atoi(getenv("LISTEN_PID")) != getpid() || sockets > 8)
		return 1;
	for (int i = 0; i < sockets; i++)
		fds[i] = (struct pollfd){ .fd = 3 + i, .events = POLLIN };
	printf("%d sockets\n", sockets);
	fflush(stdout);
	for (;;) {
		poll(fds, sockets, -1);
		for (int i = 0; i < sockets; i++)
			if (fds[i].revents)
				serve(accept(fds[i].fd, NULL, NULL));
	}
}
