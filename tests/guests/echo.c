/* Echoes datagrams of UDP, of IPv4 and IPv6, at port 7. With an address (of IPv4 as
 * ::ffff:1.2.3.4), it sends one there and prints what comes back. */
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>

static int ask(int fd, const char *address)
{
	struct sockaddr_in6 to = { .sin6_family = AF_INET6, .sin6_port = htons(7) };
	struct timeval limit = { .tv_sec = 2 };
	char answer[64];

	if (inet_pton(AF_INET6, address, &to.sin6_addr) != 1)
		return 2;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	for (int attempt = 0; attempt < 5; attempt++) {
		ssize_t got;

		sendto(fd, "hello", 5, 0, (struct sockaddr *)&to, sizeof(to));
		got = recv(fd, answer, sizeof(answer), 0);
		if (got >= 0)
			return printf("%.*s\n", (int)got, answer) < 0;
	}
	return 1;
}

int main(int count, char **words)
{
	static char data[65536];
	struct sockaddr_in6 to = { .sin6_family = AF_INET6, .sin6_port = htons(7) }, from;
	int fd = socket(AF_INET6, SOCK_DGRAM, 0);

	if (count == 2)
		return ask(fd, words[1]);
	if (fd < 0 || bind(fd, (struct sockaddr *)&to, sizeof(to))) {
		perror("port 7");
		return 1;
	}
	for (;;) {
		socklen_t size = sizeof(from);
		ssize_t got = recvfrom(fd, data, sizeof(data), 0, (struct sockaddr *)&from, &size);

		if (got >= 0)
			sendto(fd, data, got, 0, (struct sockaddr *)&from, size);
	}
}
