//! Which frames a guest may send: pure logic on their first bytes.
//!
//! Whoever shares a network with the container is to be able to trust source addresses, as
//! behind a veth pair whose container lacks CAP_NET_RAW and CAP_NET_ADMIN. Not looked at is
//! what a frame carries behind its addresses: a neighbour advertisement can name another's
//! IPv6 address, though only the guest's own hardware address can have sent it.

use std::net::{IpAddr, Ipv6Addr};

use protocol::machine::{self, MAX_PREFIXES};

use super::ETHERNET;

/// Bytes that a check looks at: an Ethernet and an IPv6 header.
pub(super) const CHECKED: usize = ETHERNET + 40;

const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Ethernet and IPv4: hardware type, protocol type, their lengths (RFC 826).
const ARP_OF_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];

/// Addresses as numbers, with a mask.
#[derive(Debug, Clone, Copy)]
struct Range<T> {
    first: T,
    mask: T,
}

/// What one interface may send.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    mac: [u8; 6],
    link_local: u128,
    v4: Vec<Range<u32>>,
    v6: Vec<Range<u128>>,
}

impl Guard {
    /// For an interface with this hardware address; in words if the description is wrong.
    pub(super) fn new(mac: [u8; 6], allowed: &machine::Guard) -> Result<Guard, String> {
        if allowed.addresses.len() > MAX_PREFIXES {
            let count = allowed.addresses.len();
            return Err(format!("{count} prefixes; a guard takes {MAX_PREFIXES}"));
        }
        let mut guard = Guard { mac, link_local: link_local(mac), v4: Vec::new(), v6: Vec::new() };
        for prefix in &allowed.addresses {
            let wrong = || format!("/{} is no prefix of {}", prefix.length, prefix.address);
            let length = u32::from(prefix.length);
            match prefix.address {
                IpAddr::V4(address) => {
                    let rest = 32u32.checked_sub(length).ok_or_else(wrong)?;
                    let mask = u32::MAX.checked_shl(rest).unwrap_or(0);
                    guard.v4.push(Range { first: u32::from(address) & mask, mask });
                }
                IpAddr::V6(address) => {
                    let rest = 128u32.checked_sub(length).ok_or_else(wrong)?;
                    let mask = u128::MAX.checked_shl(rest).unwrap_or(0);
                    guard.v6.push(Range { first: u128::from(address) & mask, mask });
                }
            }
        }
        Ok(guard)
    }

    /// Whether a frame may pass that begins with `head`, which is the whole frame or at least
    /// [`CHECKED`] bytes. Gives the number of bytes that must stay as they are.
    pub(super) fn check(&self, head: &[u8]) -> Option<usize> {
        if head.get(6..12)? != self.mac {
            return None;
        }
        // A VLAN tag (0x8100, 0x88a8) stands where the type would: it is another type.
        match *head.get(12..14)?.as_array()? {
            IPV4 => self.ipv4(head),
            IPV6 => self.ipv6(head),
            ARP => self.arp(head),
            _ => None,
        }
    }

    fn ipv4(&self, head: &[u8]) -> Option<usize> {
        let header: &[u8; 20] = head.get(ETHERNET..ETHERNET + 20)?.as_array()?;
        let source = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
        (header[0] >> 4 == 4 && self.has_v4(source)).then_some(ETHERNET + 20)
    }

    fn ipv6(&self, head: &[u8]) -> Option<usize> {
        let header: &[u8; 40] = head.get(ETHERNET..ETHERNET + 40)?.as_array()?;
        let source = u128::from_be_bytes(*header[8..24].as_array()?);
        let known = source == self.link_local
            || self.v6.iter().any(|range| source & range.mask == range.first);
        // Who has no address yet asks its neighbours (RFC 4862) and joins groups (RFC 3590).
        let asks = source == 0 && header[24..26] == [0xff, 0x02];
        (header[0] >> 4 == 6 && (known || asks)).then_some(ETHERNET + 40)
    }

    fn arp(&self, head: &[u8]) -> Option<usize> {
        let packet: &[u8; 28] = head.get(ETHERNET..ETHERNET + 28)?.as_array()?;
        let sender = u32::from_be_bytes([packet[14], packet[15], packet[16], packet[17]]);
        // A probe (RFC 5227) is kept by nobody.
        let probe = sender == 0 && packet[6..8] == ARP_REQUEST;
        let passes = packet[..6] == ARP_OF_IPV4
            && packet[8..14] == self.mac
            && (probe || self.has_v4(sender));
        passes.then_some(ETHERNET + 28)
    }

    fn has_v4(&self, source: u32) -> bool {
        self.v4.iter().any(|range| source & range.mask == range.first)
    }
}

/// The address that Linux gives an interface by itself (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> u128 {
    let pair = |high, low| u16::from_be_bytes([high, low]);
    let (g, h) = (pair(a ^ 2, b), pair(c, 0xff));
    Ipv6Addr::new(0xfe80, 0, 0, 0, g, h, pair(0xfe, d), pair(e, f)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::machine::Prefix;

    const MAC: [u8; 6] = [2, 0x42, 10, 0, 0, 2];

    fn guard() -> Guard {
        let prefix = |address: &str, length| Prefix { address: address.parse().unwrap(), length };
        let addresses = vec![
            prefix("10.0.0.2", 32),
            prefix("192.168.7.99", 24),
            prefix("fd00:1::2", 128),
            prefix("fd00:2::", 32),
        ];
        Guard::new(MAC, &machine::Guard { addresses }).unwrap()
    }

    fn ethernet(kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
        [&[0xff; 6], &MAC[..], &kind, payload].concat()
    }

    fn ipv4(source: [u8; 4]) -> Vec<u8> {
        let mut header = [0; 20];
        header[0] = 0x45;
        header[12..16].copy_from_slice(&source);
        ethernet(IPV4, &header)
    }

    fn ipv6(source: &str, destination: &str) -> Vec<u8> {
        let octets = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let mut header = [0; 40];
        header[0] = 0x60;
        header[8..24].copy_from_slice(&octets(source));
        header[24..40].copy_from_slice(&octets(destination));
        ethernet(IPV6, &header)
    }

    fn arp(operation: u8, sender: [u8; 4]) -> Vec<u8> {
        let mut packet = [0; 28];
        packet[..6].copy_from_slice(&ARP_OF_IPV4);
        packet[7] = operation;
        packet[8..14].copy_from_slice(&MAC);
        packet[14..18].copy_from_slice(&sender);
        ethernet(ARP, &packet)
    }

    #[test]
    fn own_addresses_pass_and_no_others() {
        let guard = guard();
        let passes = |frame: &[u8]| guard.check(frame).is_some();
        assert_eq!(guard.check(&ipv4([10, 0, 0, 2])), Some(34));
        assert!(passes(&ipv4([192, 168, 7, 1])));
        for spoofed in [[10, 0, 0, 3], [192, 168, 8, 1], [0; 4], [255; 4], [127, 0, 0, 1]] {
            assert!(!passes(&ipv4(spoofed)), "{spoofed:?}");
        }
        assert_eq!(guard.check(&ipv6("fd00:1::2", "::1")), Some(54));
        assert!(passes(&ipv6("fd00:2:ffff::9", "::1")));
        assert!(passes(&ipv6("fe80::42:aff:fe00:2", "fe80::1")));
        assert!(passes(&ipv6("::", "ff02::1:ff00:2")) && passes(&ipv6("::", "ff02::16")));
        for spoofed in ["fd00:1::3", "fe80::1", "fe80::42:aff:fe00:3", "::1", "::ffff:10.0.0.2"] {
            assert!(!passes(&ipv6(spoofed, "ff02::1")), "{spoofed}");
        }
        assert!(!passes(&ipv6("::", "fd00::1")) && !passes(&ipv6("::", "ff05::2")));
    }

    #[test]
    fn arp_tells_the_truth() {
        let guard = guard();
        let passes = |frame: &[u8]| guard.check(frame).is_some();
        assert!(passes(&arp(1, [10, 0, 0, 2])) && passes(&arp(2, [10, 0, 0, 2])));
        assert!(passes(&arp(1, [0; 4])), "a probe");
        assert!(!passes(&arp(2, [0; 4])) && !passes(&arp(1, [10, 0, 0, 1])));
        let mut of_another = arp(2, [10, 0, 0, 2]);
        of_another[ETHERNET + 8] ^= 4;
        assert!(!passes(&of_another));
        for byte in 0..6 {
            let mut odd = arp(1, [10, 0, 0, 2]);
            odd[ETHERNET + byte] ^= 1;
            assert!(!passes(&odd));
        }
    }

    #[test]
    fn other_frames_do_not_pass() {
        let guard = guard();
        let honest = ipv4([10, 0, 0, 2]);
        for kind in [[0x81, 0], [0x88, 0xa8], [0x80, 0x35], [0x88, 0xcc], [0, 38], [0x88, 0x64]] {
            let mut frame = honest.clone();
            frame[12..14].copy_from_slice(&kind);
            assert_eq!(guard.check(&frame), None, "{kind:x?}");
        }
        let mut frame = honest.clone();
        frame[11] ^= 1;
        assert_eq!(guard.check(&frame), None, "another hardware address");
        for (version, mut frame) in
            [(6, honest.clone()), (4, ipv6("fd00:1::2", "::1")), (0, honest.clone())]
        {
            frame[ETHERNET] = version << 4;
            assert_eq!(guard.check(&frame), None);
        }
        for whole in [honest, ipv6("fd00:1::2", "::1"), arp(1, [10, 0, 0, 2])] {
            for length in 0..whole.len() {
                assert_eq!(guard.check(&whole[..length]), None, "truncated to {length}");
            }
        }
    }

    #[test]
    fn descriptions_are_checked() {
        let with = |address: &str, length| {
            let prefix = Prefix { address: address.parse().unwrap(), length };
            Guard::new(MAC, &machine::Guard { addresses: vec![prefix] })
        };
        assert!(with("10.0.0.0", 33).is_err() && with("::", 129).is_err());
        assert!(with("10.0.0.0", 0).unwrap().check(&ipv4([0; 4])).is_some());
        assert!(with("fd00::", 0).unwrap().check(&ipv6("::1", "::2")).is_some());
        assert!(with("0.0.0.0", 32).unwrap().check(&ipv4([0; 4])).is_some(), "DHCP");
        let prefix = Prefix { address: "::".parse().unwrap(), length: 1 };
        let addresses = vec![prefix; MAX_PREFIXES + 1];
        assert!(Guard::new(MAC, &machine::Guard { addresses }).is_err());
    }

    proptest! {
        /// What passes has a source that is one of ours, by another way of reading it.
        #[test]
        fn whatever_passes_is_ours(
            kind in prop::sample::select(vec![IPV4, IPV6, ARP, [0x81, 0]]),
            own_mac: bool,
            payload in prop::collection::vec(any::<u8>(), 0..60),
            source in prop::sample::select(vec![[10u8, 0, 0, 2], [10, 0, 0, 9], [0; 4]]),
        ) {
            let mut frame = ethernet(kind, &payload);
            frame[6] ^= u8::from(!own_mac) << 1;
            if let Some(place) = frame.get_mut(26..30) {
                place.copy_from_slice(&source);
            }
            if let Some(version) = frame.get_mut(14).filter(|_| kind == IPV4) {
                *version = 0x45;
            }
            if guard().check(&frame[..frame.len().min(CHECKED)]).is_some() {
                prop_assert!(own_mac);
                match kind {
                    IPV4 => prop_assert_eq!(source, [10, 0, 0, 2]),
                    ARP => prop_assert_eq!(&frame[22..28], &MAC),
                    IPV6 => {
                        let range = &frame[22..26];
                        let first = range == [0xfd, 0, 0, 1] || range == [0xfd, 0, 0, 2];
                        prop_assert!(first || range == [0xfe, 0x80, 0, 0] || range == [0; 4]);
                    }
                    _ => prop_assert!(false, "a VLAN tag"),
                }
            }
        }
    }
}
