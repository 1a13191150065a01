//! /dev/net/tun (Documentation/networking/tuntap.rst).
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// The device. A descriptor belongs to the network namespace of the thread that opens it.
pub const DEVICE: &str = "/dev/net/tun";

/// A queue of no interface yet.
///
/// # Errors
/// When the device is not there, or a cgroup's rules forbid it.
pub fn open() -> std::io::Result<OwnedFd> {
    File::options().read(true).write(true).open(DEVICE).map(OwnedFd::from)
}

/// How a queue becomes one of a tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// The only one, of a tap that is made with it and whose frames have no header.
    Bare,
    /// The only one, of a tap that is made with it.
    Only,
    /// The first of several, of a tap that is made with it.
    First,
    /// A further one of a tap that is there.
    Further,
}

/// Makes `fd` a queue of the tap `name`, whose frames have a virtio-net header unless it is
/// [`Queue::Bare`]. The tap ends with its last queue.
///
/// # Errors
/// As TUNSETIFF; EBUSY where a tap that is to be made is there.
pub fn attach(fd: BorrowedFd, name: &str, queue: Queue) -> nix::Result<()> {
    let how = match queue {
        Queue::Bare => libc::IFF_TUN_EXCL,
        Queue::Only => libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL,
        Queue::First => libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | libc::IFF_TUN_EXCL,
        Queue::Further => libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE,
    };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | how;
    // SAFETY: zeros are a request without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(nix::Error::ENAMETOOLONG);
    }
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = byte as libc::c_char;
    }
    // The bits of a u16, which the kernel takes as such.
    request.ifr_ifru.ifru_flags = flags as u16 as libc::c_short;
    // SAFETY: the kernel reads and writes a `struct ifreq`, which this is.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    nix::Error::result(result).map(drop)
}
