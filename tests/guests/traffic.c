/*
 * Both ends of what a network must carry. A static program: it runs in images without
 * libraries, and on the host.
 *
 *   traffic serve                  port 7 echoes datagrams (UDP) and short messages of any
 *                                  number of connections at once (TCP); port 8 reads a line,
 *                                  a number, and sends as many MiB of noise
 *   traffic noise MIB              the same noise to standard output
 *   traffic datagram IP SIZE       one of SIZE bytes, never in fragments, is echoed
 *   traffic fragments IP SIZE      one that may be
 *   traffic connections IP COUNT   COUNT connections, all open before the first one speaks,
 *                                  and each is answered what it said
 *   traffic requests IP COUNT EACH COUNT clients, all connected at once, ask an HTTP server
 *                                  EACH times for /, and each answer is a whole one
 *
 * IPv4 and IPv6. The status is 0 if all went well, or else 1 and a line tells.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* A host that is emulated, and busy, takes long. */
enum { ECHO = 7, NOISE = 8, SECONDS = 120, ATTEMPTS = 3 };

static void fail(const char *format, ...)
{
	int error = errno;
	va_list words;

	va_start(words, format);
	vfprintf(stderr, format, words);
	va_end(words);
	fprintf(stderr, ": %s\n", strerror(error));
	exit(1);
}

/* IPv4 addresses as IPv6 knows them. */
static struct sockaddr_in6 at(const char *ip, int port)
{
	struct sockaddr_in6 to = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	char mapped[64];

	snprintf(mapped, sizeof(mapped), "%s%s", ip && !strchr(ip, ':') ? "::ffff:" : "", ip ? ip : "::");
	if (inet_pton(AF_INET6, mapped, &to.sin6_addr) != 1)
		fail("%s is no address", ip);
	return to;
}

static int socket_of(int kind)
{
	int fd = socket(AF_INET6, kind, 0), no = 0;

	if (fd < 0 || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no)))
		fail("socket");
	return fd;
}

static int bound(int kind, int port)
{
	struct sockaddr_in6 here = at(NULL, port);
	int fd = socket_of(kind), yes = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	if (bind(fd, (struct sockaddr *)&here, sizeof(here)))
		fail("port %d", port);
	if (kind == SOCK_STREAM && listen(fd, 4096))
		fail("listen");
	return fd;
}

static void write_all(int fd, const void *data, size_t size)
{
	while (size) {
		ssize_t sent = write(fd, data, size);

		if (sent < 0)
			fail("write");
		data = (const char *)data + sent;
		size -= sent;
	}
}

/* No two blocks of it are the same. */
static void noise(int fd, unsigned long mib)
{
	enum { WORDS = (1 << 20) / 8 };
	static uint64_t block[WORDS];
	uint64_t state = 0x9e3779b97f4a7c15;

	for (int i = 0; i < WORDS; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		block[i] = state;
	}
	for (unsigned long i = 0; i < mib; i++) {
		for (int j = 0; j < WORDS; j += 512)
			block[j] = i * WORDS + j;
		write_all(fd, block, sizeof(block));
	}
}

static void send_noise(int fd)
{
	char line[32] = "";

	if (fork())
		return;
	for (size_t got = 0; got < sizeof(line) - 1 && !strchr(line, '\n'); got++)
		if (read(fd, line + got, 1) != 1)
			exit(1);
	noise(fd, strtoul(line, NULL, 10));
	exit(0);
}

static void echo_datagram(int fd)
{
	static char data[65536];
	struct sockaddr_in6 from;
	socklen_t size = sizeof(from);
	ssize_t got = recvfrom(fd, data, sizeof(data), 0, (struct sockaddr *)&from, &size);

	if (got >= 0)
		sendto(fd, data, got, 0, (struct sockaddr *)&from, size);
}

static void watch(int all, int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

	if (epoll_ctl(all, EPOLL_CTL_ADD, fd, &event))
		fail("epoll");
}

static void serve(void)
{
	int all = epoll_create1(0), datagrams = bound(SOCK_DGRAM, ECHO);
	int echo = bound(SOCK_STREAM, ECHO), noises = bound(SOCK_STREAM, NOISE);
	struct epoll_event event;
	char data[4096];

	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_IGN);
	watch(all, datagrams);
	watch(all, echo);
	watch(all, noises);
	while (epoll_wait(all, &event, 1, -1) == 1 || errno == EINTR) {
		int fd = event.data.fd, new;
		ssize_t got;

		if (fd == datagrams) {
			echo_datagram(fd);
		} else if (fd == echo || fd == noises) {
			new = accept(fd, NULL, NULL);
			if (new < 0)
				fail("accept");
			if (fd == echo) {
				watch(all, new);
				continue;
			}
			send_noise(new);
			close(new);
		} else {
			got = read(fd, data, sizeof(data));
			if (got <= 0 || write(fd, data, got) != got)
				close(fd);
		}
	}
	fail("epoll_wait");
}

static void datagram(const char *ip, size_t size, int whole)
{
	static char sent[65536], back[65536];
	struct sockaddr_in6 to = at(ip, ECHO);
	struct timeval limit = { .tv_sec = SECONDS / ATTEMPTS };
	int fd = socket_of(SOCK_DGRAM), discover = IP_PMTUDISC_DO;

	if (whole && (setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &discover, sizeof(discover)) ||
		      setsockopt(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, &discover, sizeof(discover))))
		fail("IP_MTU_DISCOVER");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	for (size_t i = 0; i < size; i++)
		sent[i] = i * 7 + (i >> 8);
	/* Nobody promises that each one arrives, least of all while a neighbour is looked for. */
	for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
		if (sendto(fd, sent, size, 0, (struct sockaddr *)&to, sizeof(to)) != (ssize_t)size)
			fail("sendto %s", ip);
		if (recv(fd, back, sizeof(back), 0) != (ssize_t)size)
			continue;
		if (memcmp(sent, back, size))
			fail("%s sent something else back", ip);
		return;
	}
	fail("%s did not send %zu bytes back", ip, size);
}

/* So many of them, all open. */
static int *connected(const char *ip, int port, int count)
{
	struct sockaddr_in6 to = at(ip, port);
	int *fds = calloc(count, sizeof(*fds));

	for (int i = 0; i < count; i++) {
		fds[i] = socket_of(SOCK_STREAM | SOCK_NONBLOCK);
		if (connect(fds[i], (struct sockaddr *)&to, sizeof(to)) && errno != EINPROGRESS)
			fail("connection %d to %s", i, ip);
	}
	for (int i = 0; i < count; i++) {
		struct pollfd one = { .fd = fds[i], .events = POLLOUT };
		socklen_t size = sizeof(errno);

		if (poll(&one, 1, SECONDS * 1000) != 1)
			fail("connection %d to %s takes too long", i, ip);
		if (getsockopt(fds[i], SOL_SOCKET, SO_ERROR, &errno, &size) || errno)
			fail("connection %d to %s", i, ip);
	}
	return fds;
}

static size_t read_some(int fd, char *data, size_t size, int client)
{
	struct pollfd one = { .fd = fd, .events = POLLIN };
	ssize_t got;

	if (poll(&one, 1, SECONDS * 1000) != 1)
		fail("client %d has no answer", client);
	got = read(fd, data, size);
	if (got <= 0)
		fail("client %d lost its connection", client);
	return got;
}

static void connections(const char *ip, int count)
{
	int *fds = connected(ip, ECHO, count);
	char said[32], back[32];

	/* The last one first: they are all there. */
	for (int i = count - 1; i >= 0; i--)
		write_all(fds[i], said, snprintf(said, sizeof(said), "this is %d", i));
	for (int i = 0; i < count; i++) {
		size_t size = snprintf(said, sizeof(said), "this is %d", i);

		if (read_some(fds[i], back, sizeof(back), i) != size || memcmp(said, back, size))
			fail("connection %d to %s was answered something else", i, ip);
	}
}

static void requests(const char *ip, int count, int each)
{
	static const char request[] = "GET / HTTP/1.1\r\nHost: traffic\r\n\r\n";
	int *fds = connected(ip, 80, count);
	char answer[8192];

	for (; each > 0; each--) {
		for (int i = 0; i < count; i++)
			write_all(fds[i], request, sizeof(request) - 1);
		for (int i = 0; i < count; i++) {
			char *body = NULL, *length = NULL;
			size_t got = 0;

			do {
				got += read_some(fds[i], answer + got, sizeof(answer) - 1 - got, i);
				answer[got] = 0;
				body = strstr(answer, "\r\n\r\n");
				length = strstr(answer, "Content-Length: ");
			} while (!body || !length || answer + got < body + 4 + atoi(length + 16));
			if (strncmp(answer, "HTTP/1.1 200 ", 13))
				fail("client %d was answered %.30s", i, answer);
		}
	}
}

int main(int count, char **words)
{
	const char *verb = count > 1 ? words[1] : "";
	struct rlimit files;

	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	if (!strcmp(verb, "serve"))
		serve();
	else if (!strcmp(verb, "noise") && count == 3)
		noise(1, strtoul(words[2], NULL, 10));
	else if (!strcmp(verb, "datagram") && count == 4)
		datagram(words[2], strtoul(words[3], NULL, 10), 1);
	else if (!strcmp(verb, "fragments") && count == 4)
		datagram(words[2], strtoul(words[3], NULL, 10), 0);
	else if (!strcmp(verb, "connections") && count == 4)
		connections(words[2], atoi(words[3]));
	else if (!strcmp(verb, "requests") && count == 5)
		requests(words[2], atoi(words[3]), atoi(words[4]));
	else {
		errno = EINVAL;
		fail("traffic %s", verb);
	}
	return 0;
}
