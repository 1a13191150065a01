//! The network of a machine, as its guest is to have it: that of a network namespace of
//! the host, whose interfaces the machine takes over.
//!
//! Addresses, routes and neighbours are the kernel's own messages (rtnetlink(7)), header and
//! attributes without the netlink header, as the host's kernel tells them. Both kernels speak
//! that protocol, so that nothing of a route is lost on the way, metrics and types included.
//! The numbers of interfaces in them are the host's; the agent puts the guest's there.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Most interfaces, addresses, routes and neighbours together.
pub const MAX_ITEMS: usize = 4096;

/// Longest message in bytes.
pub const MAX_MESSAGE: usize = 4096;

/// All of it. The guest drops what it was told before and is not told again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Interfaces beside the loopback one.
    pub links: Vec<Link>,
    /// `struct ifaddrmsg` and attributes.
    #[serde(default)]
    pub addresses: Vec<Item>,
    /// `struct rtmsg` and attributes; those to gateways after those that lead there.
    #[serde(default)]
    pub routes: Vec<Item>,
    /// `struct ndmsg` and attributes, of neighbours that somebody has set.
    #[serde(default)]
    pub neighbours: Vec<Item>,
    /// A loopback address at whose port 53 a resolver answers on the host's side. The guest
    /// has it there as well, by [`Resolve`].
    #[serde(default)]
    pub resolver: Option<Ipv4Addr>,
}

/// What a connection to [`crate::vsock::RESOLVER_PORT`] is for: its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolve {
    /// A datagram of this length follows; the answer is one, behind its length as two bytes
    /// in network order.
    Datagram(u16),
    /// What is sent over a TCP connection, both ways.
    Stream,
}

/// Bytes of a [`Resolve`].
pub const RESOLVE_HEADER: usize = 3;

/// The bytes of `resolve`.
pub fn resolve_header(resolve: Resolve) -> [u8; RESOLVE_HEADER] {
    match resolve {
        Resolve::Datagram(length) => {
            let [high, low] = length.to_be_bytes();
            [b'D', high, low]
        }
        Resolve::Stream => [b'S', 0, 0],
    }
}

/// What these bytes say, if anything.
pub fn parse_resolve(header: [u8; RESOLVE_HEADER]) -> Option<Resolve> {
    match header {
        [b'D', high, low] => Some(Resolve::Datagram(u16::from_be_bytes([high, low]))),
        [b'S', 0, 0] => Some(Resolve::Stream),
        _ => None,
    }
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its number on the host, as the messages have it; not 0.
    pub index: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its hardware address, by which the guest finds it.
    pub mac: [u8; 6],
    /// Largest packet, without the Ethernet header.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// N of the PCI device `0000:00:N.0`, where it came after the boot: see
    /// [`crate::machine::Reply::Net`].
    #[serde(default)]
    pub device: Option<u8>,
    /// Its settings of IPv6, where the host has any.
    #[serde(default)]
    pub ipv6: Option<Ipv6>,
}

/// Settings of IPv6 of an interface, as sysctls of those names have them
/// (Documentation/networking/ip-sysctl.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6 {
    /// disable_ipv6.
    pub disable: i32,
    /// accept_ra.
    pub accept_ra: i32,
    /// autoconf.
    pub autoconf: i32,
}

impl Default for Ipv6 {
    /// The kernel's own.
    fn default() -> Ipv6 {
        Ipv6 { disable: 0, accept_ra: 1, autoconf: 1 }
    }
}

/// A message of rtnetlink(7) without its `struct nlmsghdr`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Item(#[serde(with = "crate::bytes")] pub Vec<u8>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_round_trips() {
        let link = Link {
            index: 2,
            name: "eth0".into(),
            mac: [2; 6],
            mtu: 1500,
            up: true,
            device: None,
            ipv6: Some(Ipv6 { disable: 1, ..Ipv6::default() }),
        };
        let item = |byte| vec![Item(vec![byte; 20])];
        let network = Network {
            links: vec![link],
            addresses: item(1),
            routes: item(255),
            neighbours: Vec::new(),
            resolver: Some(Ipv4Addr::new(127, 0, 0, 11)),
        };
        let json = serde_json::to_string(&network).unwrap();
        assert_eq!(serde_json::from_str::<Network>(&json).unwrap(), network);
        assert!(serde_json::from_str::<Item>("\"!\"").is_err());
    }

    #[test]
    fn headers_round_trip() {
        for resolve in [Resolve::Datagram(0), Resolve::Datagram(u16::MAX), Resolve::Stream] {
            assert_eq!(parse_resolve(resolve_header(resolve)), Some(resolve));
        }
        assert_eq!(parse_resolve(*b"S\0\x01"), None);
        assert_eq!(parse_resolve(*b"GET"), None);
    }
}
