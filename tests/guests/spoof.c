/* Sends frames that its machine may not send, and some that it may: by a packet socket, below
 * all that the guest's own kernel checks. Each has a destination of its own, by which whoever
 * listens tells them apart: 03:62:6b:68:KIND:NUMBER, a group's address, which a bridge hands
 * to everybody.
 *
 *	spoof INTERFACE OWN4 OWN6 OTHER4 OTHER6 KIND...
 *
 * Kinds are the letters of main(). Prints, for each, how many frames the guest's kernel took,
 * and how many it did not. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

typedef unsigned char byte;

static struct sockaddr_ll to;
static int plain, with_header;
static byte own_mac[6], own4[4], own6[16], other4[4], other6[16];
static const byte other_mac[6] = { 2, 0, 0, 0, 0, 0x66 };
static byte frame[1 << 17];
static size_t length;
static byte kind, number;
static unsigned sent, refused;

static void put(const void *bytes, size_t count)
{
	memcpy(frame + length, bytes, count);
	length += count;
}

static void put16(unsigned value)
{
	byte bytes[2] = { value >> 8, value };

	put(bytes, 2);
}

static void zeros(size_t count)
{
	memset(frame + length, 0, count);
	length += count;
}

static void send_by(int socket, const void *before, size_t more)
{
	static byte both[sizeof(frame) + 64];

	memcpy(both, before, more);
	memcpy(both + more, frame, length);
	if (sendto(socket, both, more + length, 0, (struct sockaddr *)&to, sizeof(to)) < 0)
		refused++;
	else
		sent++;
}

static void send_frame(void)
{
	send_by(plain, "", 0);
}

/* The beginning of a frame, up to its type. */
static void begin(const byte *source)
{
	byte destination[6] = { 3, 0x62, 0x6b, 0x68, kind, ++number };

	length = 0;
	put(destination, 6);
	put(source, 6);
}

/* The sum of RFC 1071, on top of another one. */
static unsigned sum(const byte *bytes, size_t count, unsigned before)
{
	for (size_t i = 0; i + 1 < count; i += 2)
		before += bytes[i] << 8 | bytes[i + 1];
	while (before >> 16)
		before = (before & 0xffff) + (before >> 16);
	return before;
}

/* A datagram to port 9 of `destination`. */
static void ipv4(const byte *source, const byte *destination, size_t payload)
{
	size_t at;
	unsigned check;

	put16(ETHERTYPE_IP);
	at = length;
	put("\x45\0", 2);
	put16(20 + 8 + payload);
	put("\0\0\0\0\x40\x11\0\0", 8);
	put(source, 4);
	put(destination, 4);
	check = ~sum(frame + at, 20, 0);
	frame[at + 10] = check >> 8;
	frame[at + 11] = check;
	put16(9);
	put16(9);
	put16(8 + payload);
	zeros(2 + payload);
}

/* The header alone. */
static void ipv6(const byte *source, const byte *destination, byte next, size_t payload)
{
	put16(ETHERTYPE_IPV6);
	put("\x60\0\0\0", 4);
	put16(payload);
	put(&next, 1);
	put("\xff", 1);
	put(source, 16);
	put(destination, 16);
}

static void datagram6(const byte *source, const byte *destination)
{
	ipv6(source, destination, IPPROTO_UDP, 8);
	put16(9);
	put16(9);
	put16(8);
	zeros(2);
}

/* A message of ICMPv6, `count` bytes from its type on, with a checksum. */
static void icmp6(const byte *source, const byte *destination, const byte *message, size_t count)
{
	size_t at;
	unsigned check;

	ipv6(source, destination, IPPROTO_ICMPV6, count);
	at = length;
	put(message, count);
	check = ~sum(frame + at, count, sum(frame + at - 32, 32, count + IPPROTO_ICMPV6));
	frame[at + 2] = check >> 8;
	frame[at + 3] = check;
}

static void arp(byte operation, const byte *mac, const byte *sender, const byte *target)
{
	put16(ETHERTYPE_ARP);
	put("\0\1\x08\0\6\4\0", 7);
	put(&operation, 1);
	put(mac, 6);
	put(sender, 4);
	zeros(6);
	put(target, 4);
	/* Up to the least length of Ethernet. */
	zeros(18);
}

static const byte all_nodes[16] = { 0xff, 2, [15] = 1 };

static void honest(void)
{
	begin(own_mac);
	ipv4(own4, other4, 100);
	send_frame();
	begin(own_mac);
	datagram6(own6, other6);
	send_frame();
	begin(own_mac);
	arp(1, own_mac, own4, other4);
	send_frame();
}

/* What the machine's monitor sees by itself to be another's. */
static void spoofed(void)
{
	static const byte strange4[][4] = { { 0 }, { 127, 0, 0, 1 }, { 255, 255, 255, 255 },
					    { 169, 254, 169, 254 }, { 224, 0, 0, 1 } };
	static const byte strange6[][16] = {
		{ [15] = 1 },
		{ 0xfe, 0x80, [15] = 1 },
		{ [10] = 0xff, 0xff, 127, 0, 0, 1 },
		{ 0xff, 2, [15] = 1 },
	};
	static const byte macs[][6] = { { 2, 0, 0, 0, 0, 0x66 }, { 0 },
					{ 0xff, 0xff, 0xff, 0xff, 0xff, 0xff },
					{ 1, 0x80, 0xc2, 0, 0, 0 } };
	static const unsigned types[] = { 0x8035 /* RARP */, 0x8864 /* PPPoE */, 0x88cc /* LLDP */,
					  0x8847 /* MPLS */, 0x888e /* 802.1X */, 0x88e5 /* MACsec */,
					  38 /* 802.2 */, 0x22f0, 0xffff };

	for (size_t i = 0; i < sizeof(macs) / sizeof(macs[0]); i++) {
		begin(macs[i]);
		ipv4(own4, other4, 100);
		send_frame();
		begin(macs[i]);
		datagram6(own6, other6);
		send_frame();
		begin(macs[i]);
		arp(1, own_mac, own4, other4);
		send_frame();
	}
	begin(own_mac);
	ipv4(other4, other4, 100);
	send_frame();
	for (size_t i = 0; i < sizeof(strange4) / sizeof(strange4[0]); i++) {
		begin(own_mac);
		ipv4(strange4[i], other4, 100);
		send_frame();
	}
	begin(own_mac);
	datagram6(other6, other6);
	send_frame();
	for (size_t i = 0; i < sizeof(strange6) / sizeof(strange6[0]); i++) {
		begin(own_mac);
		datagram6(strange6[i], other6);
		send_frame();
	}
	/* Claims of ARP: another's address, by another's and by the own hardware address. */
	for (byte operation = 1; operation <= 2; operation++) {
		begin(own_mac);
		arp(operation, own_mac, other4, other4);
		send_frame();
		begin(own_mac);
		arp(operation, other_mac, other4, own4);
		send_frame();
		begin(own_mac);
		arp(operation, other_mac, own4, own4);
		send_frame();
	}
	/* VLAN tags: one, the priority alone, QinQ, and the older form of that. */
	static const unsigned tags[][4] = { { 0x8100, 7 }, { 0x8100, 0xe000 },
					    { 0x88a8, 7, 0x8100, 8 }, { 0x9100, 7, 0x8100, 8 },
					    { 0x8100, 7, 0x8100, 8 } };

	for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) {
		begin(own_mac);
		for (size_t word = 0; word < 4 && tags[i][word]; word++)
			put16(tags[i][word]);
		ipv4(own4, other4, 100);
		send_frame();
	}
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		begin(own_mac);
		ipv4(own4, other4, 100);
		frame[12] = types[i] >> 8;
		frame[13] = types[i];
		send_frame();
	}
	/* Cut off within what has to be looked at. */
	for (size_t cut = 14; cut < 34; cut += 5) {
		begin(own_mac);
		ipv4(own4, other4, 100);
		length = cut;
		send_frame();
		begin(own_mac);
		arp(1, own_mac, own4, other4);
		length = cut;
		send_frame();
		begin(own_mac);
		datagram6(own6, other6);
		length = cut + 20 > 53 ? 53 : cut + 20;
		send_frame();
	}
}

/* Under the own address: neighbour and router advertisements for another's. */
static void claim(void)
{
	byte message[32] = { 136, 0, 0, 0, 0x20 };

	memcpy(message + 8, other6, 16);
	message[24] = 2;
	message[25] = 1;
	memcpy(message + 26, own_mac, 6);
	begin(own_mac);
	icmp6(own6, all_nodes, message, sizeof(message));
	send_frame();
	static const byte router[16] = { 134, 0, 0, 0, 64, 0, 7, 8 };

	begin(own_mac);
	icmp6(own6, all_nodes, router, sizeof(router));
	send_frame();
}

/* Of the own address, and too long for the network. */
static void too_long(void)
{
	static const size_t sizes[] = { 1600, 4000, 9000, 30000, 65000 };

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		begin(own_mac);
		ipv4(own4, other4, sizes[i]);
		send_frame();
	}
}

static void with(byte flags, byte gso, unsigned header_length, unsigned gso_size, unsigned start,
		 unsigned offset)
{
	struct virtio_net_hdr header = { flags, gso, header_length, gso_size, start, offset };

	send_by(with_header, &header, sizeof(header));
}

/* Requests to the host's kernel that would change what was checked, or that make no sense. */
static void headers(void)
{
	/* A checksum over the source address, over the type, at the very end. */
	static const unsigned places[][2] = { { 14, 0 }, { 14, 12 }, { 16, 10 }, { 26, 0 }, { 28, 0 },
					      { 14, 10 } };

	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		begin(own_mac);
		ipv4(own4, other4, 100);
		with(1, 0, 0, 0, places[i][0], places[i][1]);
	}
	/* Segments of each kind and of odd sizes: by the guest's kernel, if it takes them, or by
	 * the host's. Another's address is in each. */
	static const byte kinds[] = { 1, 3, 4, 5, 0x81, 0x84, 0x7f, 0xff };
	static const unsigned sizes[] = { 0, 1, 8, 100, 1448, 65535 };

	for (size_t i = 0; i < sizeof(kinds); i++)
		for (size_t j = 0; j < sizeof(sizes) / sizeof(sizes[0]); j++)
			for (byte flags = 0; flags < 3; flags++) {
				begin(own_mac);
				ipv4(other4, other4, 3000);
				frame[14 + 9] = kinds[i] == 5 || kinds[i] == 3 ? 17 : 6;
				frame[34 + 12] = 0x50;
				with(flags, kinds[i], 54, sizes[j], 34, 16);
			}
}

static void parse(int family, const char *text, byte *address)
{
	if (inet_pton(family, text, address) != 1) {
		fprintf(stderr, "%s is no address\n", text);
		exit(2);
	}
}

static int packet_socket(void)
{
	int fd = socket(AF_PACKET, SOCK_RAW, 0), size = 1 << 22;

	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	if (fd < 0) {
		perror("a packet socket");
		exit(2);
	}
	return fd;
}

int main(int count, char **words)
{
	struct ifreq request = { 0 };
	int one = 1;

	if (count < 7)
		return 2;
	plain = packet_socket();
	with_header = packet_socket();
	if (setsockopt(with_header, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one))) {
		perror("PACKET_VNET_HDR");
		return 2;
	}
	strncpy(request.ifr_name, words[1], IFNAMSIZ - 1);
	if (ioctl(plain, SIOCGIFHWADDR, &request)) {
		perror(words[1]);
		return 2;
	}
	memcpy(own_mac, request.ifr_hwaddr.sa_data, 6);
	to = (struct sockaddr_ll){ .sll_family = AF_PACKET,
				   .sll_ifindex = if_nametoindex(words[1]) };
	parse(AF_INET, words[2], own4);
	parse(AF_INET6, words[3], own6);
	parse(AF_INET, words[4], other4);
	parse(AF_INET6, words[5], other6);
	for (int word = 6; word < count; word++) {
		kind = words[word][0];
		number = sent = refused = 0;
		switch (kind) {
		case 'h': case 'H': honest(); break;
		case 's': spoofed(); break;
		case 'c': claim(); break;
		case 'l': too_long(); break;
		case 'g': headers(); break;
		default: return 2;
		}
		printf("%c %u %u\n", kind, sent, refused);
	}
	return 0;
}
