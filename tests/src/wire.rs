//! Frames that pass the host's interfaces, before any of its rules.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
};

/// What may wait to be looked at.
const BUFFER: usize = 64 << 20;

/// A frame at one of the interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The interface.
    pub interface: String,
    /// The destination.
    pub to: [u8; 6],
    /// The type: what follows a VLAN tag, which the kernel takes off.
    pub kind: [u8; 2],
}

/// All that arrives at, or leaves by, any interface of this network namespace.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// From now on.
    ///
    /// # Panics
    /// When it may not listen.
    pub fn listen() -> Wire {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let all = SockProtocol::EthAll;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, all).expect("root");
        setsockopt(&socket.as_fd(), RcvBufForce, &BUFFER).expect("root");
        Wire(socket)
    }

    /// What has passed since it was last asked.
    ///
    /// # Panics
    /// When the socket fails.
    pub fn seen(&self) -> Vec<Seen> {
        let (mut all, mut head) = (Vec::new(), [0; 14]);
        loop {
            let (length, from) = match recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut head) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return all,
                Err(Errno::EINTR | Errno::ENETDOWN) => continue,
                Err(errno) => panic!("cannot listen: {errno}"),
            };
            let Some(from) = from.filter(|_| length == head.len()) else { continue };
            let name = nix::net::if_::if_indextoname(from.ifindex() as u32);
            all.push(Seen {
                interface: name.map_or("?".into(), |name| name.to_string_lossy().into_owned()),
                to: *head[..6].first_chunk().expect("six bytes"),
                kind: [head[12], head[13]],
            });
        }
    }
}
