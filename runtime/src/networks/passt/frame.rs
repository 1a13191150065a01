//! What a frame between the guest and passt is part of. passt makes a socket of the host's for
//! what opens a conversation, and looks at nothing but headers, as here: where the two could
//! read a frame differently, it is none.

use std::net::IpAddr;

const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const SYN: u8 = 2;

/// Protocols of IP that passt knows.
pub(super) const ICMP: u8 = libc::IPPROTO_ICMP as u8;
pub(super) const TCP: u8 = libc::IPPROTO_TCP as u8;
pub(super) const UDP: u8 = libc::IPPROTO_UDP as u8;
pub(super) const ICMPV6: u8 = libc::IPPROTO_ICMPV6 as u8;

/// A conversation between the guest and somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) protocol: u8,
    /// The other one, and its port.
    pub(super) remote: IpAddr,
    pub(super) port: u16,
    /// The guest's port, or its number of an echo.
    pub(super) own: u16,
}

/// What the guest sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// For passt itself: who has an address.
    Neighbours,
    /// Of a conversation that is under way, or of none: opens nothing.
    Further,
    /// What may open one.
    Opens(Flow),
    /// Nothing that passt serves.
    Other,
}

struct Packet<'a> {
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    /// From the header of the protocol on.
    rest: &'a [u8],
}

/// A packet that is whole, and no fragment.
fn packet(frame: &[u8]) -> Option<Packet<'_>> {
    let kind = frame.get(12..ETHERNET)?;
    let packet = &frame[ETHERNET..];
    if kind == IPV4 {
        let header: &[u8; 20] = packet.first_chunk()?;
        let length = usize::from(header[0] & 0xf) * 4;
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
        if header[0] >> 4 != 4 || length < 20 || fragment {
            return None;
        }
        let address = |at: usize| header[at..].first_chunk().map(|it: &[u8; 4]| IpAddr::from(*it));
        return Some(Packet {
            protocol: header[9],
            source: address(12)?,
            destination: address(16)?,
            rest: packet.get(length..)?,
        });
    }
    let header: &[u8; 40] = packet.first_chunk()?;
    if kind != IPV6 || header[0] >> 4 != 6 {
        return None;
    }
    let address = |at: usize| header[at..].first_chunk().map(|it: &[u8; 16]| IpAddr::from(*it));
    Some(Packet {
        protocol: header[6],
        source: address(8)?,
        destination: address(24)?,
        rest: &packet[40..],
    })
}

/// Ports of TCP or UDP: the sender's, the receiver's.
fn ports(rest: &[u8]) -> Option<(u16, u16)> {
    let ports: &[u8; 4] = rest.first_chunk()?;
    Some((u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
}

/// What a frame of the guest's is.
pub(super) fn sent(frame: &[u8]) -> Sent {
    if frame.get(12..ETHERNET) == Some(&ARP) {
        return Sent::Neighbours;
    }
    let Some(Packet { protocol, destination: remote, rest, .. }) = packet(frame) else {
        return Sent::Other;
    };
    let echo = match (protocol, remote, rest.first()) {
        // Solicitations and advertisements of routers and neighbours.
        (ICMPV6, IpAddr::V6(_), Some(133..=136)) => return Sent::Neighbours,
        (ICMP, IpAddr::V4(_), Some(8)) | (ICMPV6, IpAddr::V6(_), Some(128)) => true,
        (TCP | UDP, ..) => false,
        _ => return Sent::Other,
    };
    if echo {
        let id = rest.get(4..6).map(|id| u16::from_be_bytes([id[0], id[1]]));
        return id.map_or(Sent::Other, |own| Sent::Opens(Flow { protocol, remote, port: 0, own }));
    }
    let Some((own, port)) = ports(rest) else { return Sent::Other };
    match (protocol, rest.get(13)) {
        (TCP, None) => Sent::Other,
        (TCP, Some(flags)) if flags & SYN == 0 => Sent::Further,
        _ => Sent::Opens(Flow { protocol, remote, port, own }),
    }
}

/// The conversation that somebody has with the guest, of a frame that may open it.
pub(super) fn received(frame: &[u8]) -> Option<Flow> {
    let Packet { protocol, source: remote, rest, .. } = packet(frame)?;
    let (port, own) = ports(rest)?;
    let opens = match protocol {
        UDP => true,
        TCP => rest.get(13)? & SYN != 0,
        _ => false,
    };
    opens.then_some(Flow { protocol, remote, port, own })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A packet from one to the other, with these first bytes of its protocol's.
    pub(in super::super) fn frame(from: &str, to: &str, protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        match (from.parse().unwrap(), to.parse().unwrap()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend(IPV4);
                frame.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]);
                frame.extend([from.octets(), to.octets()].concat());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend(IPV6);
                frame.extend([0x60, 0, 0, 0, 0, 0, protocol, 64]);
                frame.extend([from.octets(), to.octets()].concat());
            }
            _ => panic!("two versions"),
        }
        frame.extend(rest);
        frame
    }

    pub(in super::super) fn tcp(own: u16, port: u16, flags: u8) -> Vec<u8> {
        let mut header = [own.to_be_bytes(), port.to_be_bytes()].concat();
        header.resize(20, 0);
        (header[12], header[13]) = (0x50, flags);
        header
    }

    pub(in super::super) fn udp(own: u16, port: u16) -> Vec<u8> {
        [own, port, 8, 0].map(u16::to_be_bytes).concat()
    }

    #[test]
    fn what_opens_a_conversation() {
        let flow = |protocol, remote: &str, port, own| {
            Sent::Opens(Flow { protocol, remote: remote.parse().unwrap(), port, own })
        };
        let of = |to: &str, protocol, rest: &[u8]| {
            let from = if to.contains(':') { "fd86::2" } else { "10.86.0.2" };
            sent(&frame(from, to, protocol, rest))
        };
        for to in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(of(to, TCP, &tcp(4000, 80, SYN)), flow(TCP, to, 80, 4000));
            // passt opens one for whatever has SYN.
            assert_eq!(of(to, TCP, &tcp(4000, 80, SYN | 16)), flow(TCP, to, 80, 4000));
            assert_eq!(of(to, TCP, &tcp(4000, 80, 16)), Sent::Further);
            assert_eq!(of(to, UDP, &udp(4000, 53)), flow(UDP, to, 53, 4000));
            assert_eq!(of(to, 132, &udp(4000, 53)), Sent::Other, "SCTP");
            assert_eq!(of(to, TCP, &tcp(1, 2, SYN)[..13]), Sent::Other);
        }
        let echo = [8, 0, 0, 0, 0, 7, 0, 1];
        assert_eq!(of("192.0.2.1", ICMP, &echo), flow(ICMP, "192.0.2.1", 0, 7));
        assert_eq!(of("2001:db8::1", ICMP, &echo), Sent::Other);
        assert_eq!(of("192.0.2.1", ICMP, &[5, 0, 0, 0, 0, 7]), Sent::Other, "a redirect");
        assert_eq!(of("ff02::1", ICMPV6, &[135, 0]), Sent::Neighbours);
        assert_eq!(of("ff02::16", 0, &[58, 0]), Sent::Other, "extension headers");
        let mut arp = vec![0; 42];
        arp[12..14].copy_from_slice(&ARP);
        assert_eq!(sent(&arp), Sent::Neighbours);
    }

    #[test]
    fn fragments_and_options() {
        let mut packet = frame("10.86.0.2", "192.0.2.1", UDP, &udp(1, 2));
        for fragment in [[0x20, 0], [0, 1], [0x1f, 0xff]] {
            packet[20..22].copy_from_slice(&fragment);
            assert_eq!(sent(&packet), Sent::Other);
        }
        packet[20..22].copy_from_slice(&[0x40, 0]);
        assert!(matches!(sent(&packet), Sent::Opens(_)), "only: do not fragment");
        packet[14] = 0x44;
        assert_eq!(sent(&packet), Sent::Other);
        packet[14] = 0x46;
        assert!(matches!(sent(&packet), Sent::Opens(Flow { own: 8, .. })), "after the options");
    }

    #[test]
    fn what_comes_to_the_guest() {
        let of = |protocol, rest: &[u8]| {
            received(&frame("10.86.0.1", "10.86.0.2", protocol, rest)).map(|it| (it.port, it.own))
        };
        assert_eq!(of(UDP, &udp(5000, 53)), Some((5000, 53)));
        assert_eq!(of(TCP, &tcp(5000, 80, SYN)), Some((5000, 80)));
        assert_eq!(of(TCP, &tcp(5000, 80, 16)), None);
        assert_eq!(of(ICMP, &[8, 0, 0, 0]), None);
    }

    proptest! {
        /// Whatever opens a conversation says so where passt looks.
        #[test]
        fn destinations_are_where_passt_looks(bytes in prop::collection::vec(any::<u8>(), 0..90)) {
            if let Sent::Opens(flow) = sent(&bytes) {
                let at = if flow.remote.is_ipv4() { 30..34 } else { 38..54 };
                let octets = match flow.remote {
                    IpAddr::V4(four) => four.octets().to_vec(),
                    IpAddr::V6(six) => six.octets().to_vec(),
                };
                prop_assert_eq!(&bytes[at], octets);
            }
            let _ = received(&bytes);
        }
    }
}
