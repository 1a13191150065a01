//! rtnetlink(7): requests, dumps and news, as bytes. The crates of netlink messages parse
//! whole objects; here most of an object is passed on as it is.

use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::Emitable;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// More than the kernel puts into one packet of a dump (net/netlink/af_netlink.c).
const PACKET: usize = 64 << 10;
/// Objects of a dump that are looked at.
const MAX_OBJECTS: usize = 16 << 10;
/// Dumps that others may disturb before one is taken as it is: news of it follow.
const TRIES: usize = 4;

const NLM_F_REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const NLM_F_ACK: u16 = libc::NLM_F_ACK as u16;
const NLM_F_DUMP: u16 = libc::NLM_F_DUMP as u16;
const NLM_F_DUMP_INTR: u16 = libc::NLM_F_DUMP_INTR as u16;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;

/// What is told of a namespace.
const GROUPS: i32 = libc::RTMGRP_LINK
    | libc::RTMGRP_NEIGH
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;

/// A socket for requests to the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> Result<Netlink, Errno> {
        Ok(Netlink { socket: route_socket(SockFlag::SOCK_CLOEXEC)?, sequence: 0 })
    }

    /// Has the kernel carry out a request. It answers within the call.
    pub(super) fn change(
        &mut self,
        kind: u16,
        flags: i32,
        message: &impl Emitable,
    ) -> Result<(), Errno> {
        let mut payload = vec![0; message.buffer_len()];
        message.emit(&mut payload);
        self.send(kind, flags as u16 | NLM_F_ACK, &payload)?;
        self.answers(|_| {}).map(drop)
    }

    /// The object that answers a question, if one does.
    pub(super) fn ask(
        &mut self,
        kind: u16,
        message: &impl Emitable,
    ) -> Result<Option<Vec<u8>>, Errno> {
        let mut payload = vec![0; message.buffer_len()];
        message.emit(&mut payload);
        self.send(kind, NLM_F_ACK, &payload)?;
        let mut first = None;
        self.answers(|object| first = first.take().or_else(|| Some(object.to_vec())))?;
        Ok(first)
    }

    /// All objects of a kind, each without its netlink header. `header` is the fixed part of
    /// the request.
    pub(super) fn dump(&mut self, kind: u16, header: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
        for left in (0..TRIES).rev() {
            self.send(kind, NLM_F_DUMP, header)?;
            let (mut all, mut too_many) = (Vec::new(), false);
            let whole = self.answers(|object| match all.len() < MAX_OBJECTS {
                true => all.push(object.to_vec()),
                false => too_many = true,
            })?;
            if too_many {
                return Err(Errno::E2BIG);
            }
            if whole || left == 0 {
                return Ok(all);
            }
        }
        unreachable!("the last try returns")
    }

    fn send(&mut self, kind: u16, flags: u16, payload: &[u8]) -> Result<(), Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = (HEADER + payload.len()) as u32;
        let mut message = Vec::with_capacity(length as usize);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(payload);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty()).map(drop)
    }

    /// Hands each object of the answer on, until its end. Says whether nothing changed
    /// meanwhile.
    fn answers(&mut self, mut object: impl FnMut(&[u8])) -> Result<bool, Errno> {
        let mut packet = vec![0; PACKET];
        let mut whole = true;
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            for Message { kind, flags, sequence, payload } in messages(&packet[..length]) {
                if sequence != self.sequence {
                    continue;
                }
                whole &= flags & NLM_F_DUMP_INTR == 0;
                match (kind, payload.first_chunk()) {
                    // A dump that failed half-way has its errno at the end as well.
                    (NLMSG_ERROR | NLMSG_DONE, Some(code)) => {
                        return outcome(i32::from_ne_bytes(*code)).map(|()| whole);
                    }
                    (NLMSG_DONE, None) => return Ok(whole),
                    _ => object(payload),
                }
            }
        }
    }
}

/// A socket that becomes readable when something changes in the network namespace in which
/// it was opened.
pub(super) fn news() -> Result<OwnedFd, Errno> {
    let socket = route_socket(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS as u32))?;
    Ok(socket)
}

fn route_socket(flags: SockFlag) -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)
}

/// What the kernel says of a request: 0, or an errno, negative.
fn outcome(code: i32) -> Result<(), Errno> {
    if code < 0 { Err(Errno::from_raw(code.saturating_neg())) } else { Ok(()) }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

fn messages(mut packet: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = packet.first_chunk()?;
        let length = u32_at(header, 0)? as usize;
        let payload = packet.get(HEADER..length)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let sequence = u32_at(header, 8)?;
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, sequence, payload })
    })
}

/// Type, with its flags, and value of each attribute (`struct rtattr`).
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header: &[u8; 4] = bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([header[2], header[3]]), value))
    })
}

/// The value of the first attribute of this type.
pub(super) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value)| (kind_of(kind) == wanted).then_some(value))
}

/// A type without the flags NLA_F_NESTED and NLA_F_NET_BYTEORDER.
pub(super) fn kind_of(kind: u16) -> u16 {
    kind & 0x3fff
}

/// Appends an attribute.
pub(super) fn push(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((value.len() + 4) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The number at an offset.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_ends_the_list() {
        let mut bytes = Vec::new();
        push(&mut bytes, 1 | 0x8000, &[1, 2, 3]);
        push(&mut bytes, 2, &[4]);
        assert_eq!(attributes(&bytes).count(), 2);
        assert_eq!(attribute(&bytes, 1), Some(&[1, 2, 3][..]));
        assert_eq!(attributes(&bytes[..bytes.len() - 4]).count(), 1);
        // Shorter than its own header: no progress, and so the end.
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(messages(&[0; 16]).count(), 0);
    }

    #[test]
    fn the_kernel_answers() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.dump(libc::RTM_GETLINK, &[0; 16]).unwrap();
        assert!(links.iter().any(|link| u32_at(link, 4) == Some(1)), "a loopback interface");
        let request = netlink_packet_route::link::LinkMessage::default();
        let refused = netlink.change(libc::RTM_NEWLINK, 0, &request);
        assert!(refused.is_err(), "names no interface");
    }
}
