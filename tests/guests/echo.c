/* Echoes datagrams of UDP, of IPv4 and IPv6, at port 7. */
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>

int main(void)
{
	static char data[65536];
	struct sockaddr_in6 to = { .sin6_family = AF_INET6, .sin6_port = htons(7) }, from;
	int fd = socket(AF_INET6, SOCK_DGRAM, 0);

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
