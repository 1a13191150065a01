//! What property tests and the fuzz target share.

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use protocol::machine;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{ETHERNET, HEADER, MAX_FRAME, Net, Tap};
use crate::devices::virtio::testing::{Bench, memory};

/// Hardware address of interfaces in tests.
pub(super) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// An interface with these pairs and the other ends of its taps, which are sockets.
pub(super) fn interface(
    pairs: usize,
    change: impl FnOnce(&mut machine::Net),
) -> (Net, Vec<OwnedFd>) {
    let mut config =
        machine::Net { mac: MAC, mtu: 1500, taps: Vec::new(), limits: None, guard: None };
    change(&mut config);
    let (mut taps, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
        let (ours, theirs) = pair.expect("two descriptors");
        taps.push(Tap::socket(ours));
        ends.push(theirs);
    }
    (Net::on(&config, taps).expect("a good description"), ends)
}

/// For `10.0.0.2` alone.
pub(super) fn guard() -> machine::Guard {
    let address = Ipv4Addr::new(10, 0, 0, 2).into();
    machine::Guard { addresses: vec![machine::Prefix { address, length: 32 }] }
}

/// The next frame that left the machine, with its header.
pub(super) fn sent(end: &OwnedFd) -> Option<Vec<u8>> {
    let mut frame = vec![0; HEADER + MAX_FRAME + 1];
    let len = recv(end.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT).ok()?;
    frame.truncate(len);
    Some(frame)
}

/// A hostile driver of a guarded interface; the first byte chooses the queue. Whatever it does,
/// it sends from its own address, and its headers fit its frames.
pub fn hostile_net(data: &[u8]) {
    let (mut device, ends) = interface(2, |net| net.guard = Some(guard()));
    let mut bench = Bench::new(&mut device, memory(), &[0, 1, 2, 3, 4]);
    let queue = [0, 1, 4][usize::from(data.first().copied().unwrap_or(0) % 3)];
    // What a frame that may pass begins with, where the buffers begin: some do.
    let mut frame = vec![0; HEADER + 12];
    frame[HEADER + 6..].copy_from_slice(&MAC);
    frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
    bench.hostile_with(queue, queue as u64, data, &frame, || {
        for size in [0, 11, 12, 60, 1514 + HEADER, 9000] {
            let _ = send(ends[0].as_raw_fd(), &vec![7; size], MsgFlags::MSG_DONTWAIT);
        }
    });
    while let Some(frame) = sent(&ends[0]) {
        let (header, frame) = frame.split_at(HEADER);
        assert!(frame.len() >= ETHERNET && frame.len() <= MAX_FRAME);
        assert_eq!(frame[6..12], MAC);
        assert!(frame[12..14] != [0x81, 0]);
        if frame[12..14] == [8, 0] {
            assert_eq!(frame[26..30], [10, 0, 0, 2]);
        }
        let place = u16::from_le_bytes([header[6], header[7]]);
        assert!(header[0] == 0 || usize::from(place) >= ETHERNET + 20);
    }
}
