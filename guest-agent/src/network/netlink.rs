//! rtnetlink(7): a request, and the kernel's answer. A crate for it would be larger than
//! the rest of the agent's own code.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// More than the kernel puts into one packet of a dump (`net/netlink/af_netlink.c`).
const PACKET: usize = 64 << 10;

const NLM_F_REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const NLM_F_ACK: u16 = libc::NLM_F_ACK as u16;
const NLM_F_DUMP: u16 = libc::NLM_F_DUMP as u16;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;

/// A socket of NETLINK_ROUTE.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> Result<Netlink, Errno> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Has the kernel carry out a request. It answers within the call.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change(&mut self, kind: u16, flags: u16, payload: &[u8]) -> Result<(), Errno> {
        self.send(kind, flags | NLM_F_ACK, payload)?;
        self.answers(|_, _| {})
    }

    /// All objects that a request names.
    ///
    /// # Errors
    /// The kernel's.
    pub fn dump(&mut self, kind: u16, payload: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
        self.send(kind, NLM_F_DUMP, payload)?;
        let mut all = Vec::new();
        self.answers(|_, payload| all.push(payload.to_vec()))?;
        Ok(all)
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

    /// Hands each object of the answer on, until its end.
    fn answers(&mut self, mut object: impl FnMut(u16, &[u8])) -> Result<(), Errno> {
        let mut packet = vec![0; PACKET];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty())?;
            for message in messages(&packet[..length]) {
                let Message { kind, sequence, payload } = message;
                if sequence != self.sequence {
                    continue;
                }
                match (kind, payload.first_chunk()) {
                    // A dump that failed half-way has its errno at the end as well.
                    (NLMSG_ERROR | NLMSG_DONE, Some(code)) => {
                        return outcome(i32::from_ne_bytes(*code));
                    }
                    (NLMSG_DONE, None) => return Ok(()),
                    _ => object(kind, payload),
                }
            }
        }
    }
}

/// What the kernel says of a request: 0, or an errno, negative.
fn outcome(code: i32) -> Result<(), Errno> {
    if code < 0 { Err(Errno::from_raw(code.saturating_neg())) } else { Ok(()) }
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

fn messages(mut packet: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = packet.first_chunk()?;
        let length = u32_at(header, 0)? as usize;
        let payload = packet.get(HEADER..length)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32_at(header, 8)?;
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, sequence, payload })
    })
}

/// Type and value of each attribute (`struct rtattr`).
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & !NESTED;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Flags in an attribute's type: NLA_F_NESTED, NLA_F_NET_BYTEORDER.
const NESTED: u16 = 0xc000;

/// Appends an attribute.
pub fn push(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (4 + value.len()) as u16;
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The number at an offset.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_round_trip_and_crooked_ones_end() {
        let mut bytes = Vec::new();
        push(&mut bytes, 3, b"eth0\0");
        push(&mut bytes, 4, &1500u32.to_ne_bytes());
        assert_eq!(bytes.len() % 4, 0);
        let all: Vec<_> = attributes(&bytes).collect();
        assert_eq!(all, [(3, &b"eth0\0"[..]), (4, &1500u32.to_ne_bytes()[..])]);
        for crooked in [&[0, 0, 1, 0][..], &[3, 0, 1, 0], &[200, 0, 1, 0, 1, 2], &[4]] {
            assert_eq!(attributes(crooked).count(), 0, "{crooked:?}");
        }
        assert_eq!(messages(&[0; 16]).count(), 0);
        assert_eq!(messages(&[255; 20]).count(), 0);
    }
}
