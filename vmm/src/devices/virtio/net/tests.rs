use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{MsgFlags, send};
use proptest::prelude::*;
use protocol::machine::{self, Limit, PairCounters, Rate, RateLimits};
use virtio_bindings::virtio_net as net;

use super::handler::{TAP, TIMER};
use super::hostile::{MAC, guard, hostile_net, interface, sent};
use super::*;
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::testing::{
    BUFFERS, Bench, Driver, HIGH, INDIRECT, NEXT, REGION, Ring, WRITE, memory, transport,
};
use crate::devices::virtio::transport::TransportState;

const RX: usize = 0;
const TX: usize = 1;

/// One pair with both rings, and the other end of its tap.
struct Wire {
    device: Net,
    bench: Bench,
    end: OwnedFd,
}

fn wire(change: impl FnOnce(&mut machine::Net)) -> Wire {
    wire_without(0, change)
}

fn wire_without(features: u64, change: impl FnOnce(&mut machine::Net)) -> Wire {
    let (mut device, mut ends) = interface(1, change);
    let bench = Bench::without(features, &mut device, memory(), &[RX, TX]);
    Wire { device, bench, end: ends.remove(0) }
}

impl Wire {
    fn counters(&self) -> PairCounters {
        self.device.counters().now()[0]
    }

    /// Offers a frame in one buffer, header included.
    fn offer(&mut self, packet: &[u8]) {
        self.bench.put(BUFFERS, packet);
        self.bench.rings[TX].chain(&[(BUFFERS, packet.len() as u32, 0)]);
    }

    /// Sends it, and gives what left the machine.
    fn transmit(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        self.offer(packet);
        self.bench.kick(TX as u64).unwrap();
        sent(&self.end)
    }

    /// A frame arrives at the tap.
    fn arrive(&mut self, packet: &[u8]) {
        send(self.end.as_raw_fd(), packet, MsgFlags::MSG_DONTWAIT).unwrap();
        self.bench.kick(TAP).unwrap();
    }

    fn used(&self, ring: usize) -> Vec<u32> {
        self.bench.rings[ring].used(0)
    }

    /// Time passes; gives the interrupts.
    fn tick(&mut self) -> u32 {
        self.bench.kick(TIMER).unwrap();
        self.interrupts()
    }

    fn interrupts(&self) -> u32 {
        self.bench.interrupt.queue.swap(0, Ordering::SeqCst)
    }
}

/// A header that asks for nothing, and an IPv4 packet of `len` bytes from 10.0.0.2.
fn packet(len: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER + len];
    packet[HEADER..HEADER + 12].copy_from_slice(&[[0xff; 6], MAC].concat());
    packet[HEADER + 12..HEADER + 15].copy_from_slice(&[8, 0, 0x45]);
    packet[HEADER + 26..HEADER + 30].copy_from_slice(&[10, 0, 0, 2]);
    for (place, byte) in packet[HEADER + 34..].iter_mut().zip((0..=255).cycle()) {
        *place = byte;
    }
    packet
}

fn largest() -> Vec<u8> {
    packet(MAX_FRAME)
}

#[test]
fn what_the_guest_is_told() {
    let (device, _ends) = interface(2, |net| net.mtu = 9000);
    let mut config = [0xff; 14];
    device.read_config(0, &mut config);
    assert_eq!(config[..6], MAC);
    assert_eq!(config[6..], [1, 0, 2, 0, 0x28, 0x23, 0, 0]);
    assert_eq!(device.queue_sizes(), [256, 256, 256, 256, 16]);
    assert_ne!(device.features() & 1 << net::VIRTIO_NET_F_MQ, 0);
    let (device, _ends) = interface(1, |_| ());
    let several = 1 << net::VIRTIO_NET_F_MQ | 1 << net::VIRTIO_NET_F_CTRL_VQ;
    assert_eq!(device.features() & several, 0);
}

#[test]
fn descriptions_are_checked() {
    let refuse = |change: fn(&mut machine::Net), taps: usize| {
        let mut config =
            machine::Net { mac: MAC, mtu: 1500, taps: Vec::new(), limits: None, guard: None };
        change(&mut config);
        let tap = || Tap::socket(std::os::unix::net::UnixDatagram::unbound().unwrap().into());
        assert!(Net::on(&config, (0..taps).map(|_| tap()).collect()).is_err());
    };
    refuse(|_| (), 0);
    refuse(|_| (), usize::from(machine::MAX_QUEUE_PAIRS) + 1);
    refuse(|net| net.mac = [1, 0, 0, 0, 0, 0], 1);
    refuse(|net| net.mac = [0; 6], 1);
    refuse(|net| net.mtu = 67, 1);
    refuse(
        |net| {
            net.guard = Some(guard()).map(|mut guard| {
                guard.addresses[0].length = 33;
                guard
            })
        },
        1,
    );
    refuse(
        |net| {
            let never = Limit { bytes: Some(Rate { per_second: 0, burst: 9 }), packets: None };
            net.limits = Some(RateLimits { from_guest: never, ..RateLimits::default() });
        },
        1,
    );
}

#[test]
fn frames_leave_as_they_are() {
    let mut wire = wire(|_| ());
    for len in [14, 60, 66, 67, 1514] {
        let packet = packet(len.max(34));
        assert_eq!(wire.transmit(&packet), Some(packet));
    }
    assert_eq!(wire.used(TX), [0; 5]);
    assert_eq!((wire.interrupts(), wire.tick()), (0, 1));
    // Over several buffers, one of them across memory that is not there for reading alone.
    let whole = packet(9000);
    for cut in [1, 11, 12, 13, 65, 66, 67, 5000] {
        let (first, second) = whole.split_at(cut);
        wire.bench.put(BUFFERS, first);
        wire.bench.put(HIGH, second);
        wire.bench.rings[TX].chain(&[
            (BUFFERS, cut as u32, 0),
            (HIGH, 0, 0),
            (HIGH, second.len() as u32, 0),
        ]);
        wire.bench.kick(TX as u64).unwrap();
        assert_eq!(sent(&wire.end).as_deref(), Some(&*whole), "cut at {cut}");
    }
    let counters = wire.counters().from_guest;
    assert_eq!((counters.packets, counters.malformed), (13, 0));
    assert_eq!(wire.transmit(&largest()), Some(largest()));
}

#[test]
fn one_interrupt_is_for_many_frames() {
    let mut wire = wire(|_| ());
    let packet = packet(60);
    for _ in 0..40 {
        wire.offer(&packet);
    }
    wire.bench.kick(TX as u64).unwrap();
    assert_eq!((wire.used(TX).len(), wire.interrupts(), wire.tick()), (40, 0, 1));
}

#[test]
fn a_guest_that_lies_is_not_heard() {
    let mut wire = wire(|net| net.guard = Some(guard()));
    let honest = packet(60);
    assert_eq!(wire.transmit(&honest), Some(honest.clone()));
    let lies: [(usize, &[u8]); 5] = [
        (6, &[2, 0, 0, 0, 0, 8]),  // another's hardware address
        (26, &[10, 0, 0, 3]),      // another's IPv4 address
        (12, &[0x81, 0, 0, 1]),    // a VLAN tag
        (12, &[0x88, 0xa8, 0, 1]), // the other one
        (12, &[0x08, 0x06]),       // ARP, which it is not
    ];
    for (place, lie) in lies {
        let mut packet = honest.clone();
        packet[HEADER + place..][..lie.len()].copy_from_slice(lie);
        assert_eq!(wire.transmit(&packet), None, "{lie:x?} at {place}");
    }
    assert_eq!(wire.transmit(&honest[..HEADER + 33]), None, "truncated");
    let counters = wire.counters().from_guest;
    assert_eq!((counters.guard, counters.packets, counters.malformed), (6, 1, 0));
    // A checksum that the host would write over the source address.
    for start in [14u8, 24, 33] {
        let mut packet = honest.clone();
        packet[0] = 1;
        packet[6] = start;
        packet[8] = 2;
        assert_eq!(wire.transmit(&packet), None);
    }
    assert_eq!(wire.counters().from_guest.malformed, 3);
    assert_eq!(wire.used(TX).len(), 10, "all buffers came back");
}

#[test]
fn what_is_no_frame_is_dropped() {
    let mut wire = wire(|_| ());
    assert_eq!(wire.transmit(&packet(34)[..HEADER + 13]), None);
    assert_eq!(wire.transmit(&[0; 3]), None);
    assert_eq!(wire.transmit(&packet(MAX_FRAME + 1)), None);
    let mut segments = packet(2000);
    segments[..2].copy_from_slice(&[0, 1]);
    assert_eq!(wire.transmit(&segments), None, "segments without a checksum");
    let odd: [&[(u64, u32, u16)]; 6] = [
        &[(BUFFERS, 60, 0), (BUFFERS, 60, WRITE)],
        &[(BUFFERS, 60, WRITE)],
        &[(BUFFERS, u32::MAX, 0), (BUFFERS, u32::MAX, 0)],
        &[(REGION, 60, 0)],
        &[(u64::MAX - 5, 60, 0)],
        &[(BUFFERS, 60, 0), (HIGH + REGION - 1, 2, 0)],
    ];
    for buffers in odd {
        wire.bench.rings[TX].chain(buffers);
    }
    let many: Vec<_> = (0..65).map(|_| (BUFFERS, 1, 0)).collect();
    wire.bench.rings[TX].chain(&many);
    wire.bench.kick(TX as u64).unwrap();
    assert_eq!(sent(&wire.end), None);
    let counters = wire.counters().from_guest;
    assert_eq!((counters.malformed, counters.packets), (11, 0));
    assert_eq!(wire.used(TX), [0; 11]);
}

#[test]
fn loops_and_tables_of_descriptors() {
    let mut wire = wire(|_| ());
    let packet = packet(100);
    wire.bench.put(BUFFERS, &packet);
    let ring = &wire.bench.rings[TX];
    // Round and round, with and without bytes.
    for (index, len) in [(0, 1), (1, 0)] {
        ring.describe(index, BUFFERS, len, NEXT, index);
        ring.offer(index);
    }
    // A next one that does not exist.
    ring.describe(2, BUFFERS, packet.len() as u32, NEXT, 9999);
    ring.offer(2);
    // A table that is one, one in a table, one of no whole descriptors, one elsewhere.
    let table = BUFFERS + 0x8000;
    let mut entry = [0; 16];
    entry[..8].copy_from_slice(&BUFFERS.to_le_bytes());
    entry[8..12].copy_from_slice(&(packet.len() as u32).to_le_bytes());
    wire.bench.put(table, &entry);
    entry[12] = INDIRECT as u8;
    wire.bench.put(table + 16, &entry);
    let ring = &wire.bench.rings[TX];
    for (index, address, len) in
        [(3, table, 16), (4, table + 16, 16), (5, table, 17), (6, u64::MAX, 16), (7, table, 0)]
    {
        ring.describe(index, address, len, INDIRECT, 0);
        ring.offer(index);
    }
    wire.bench.kick(TX as u64).unwrap();
    assert_eq!(sent(&wire.end), Some(packet));
    assert_eq!(sent(&wire.end), None);
    assert_eq!(wire.counters().from_guest.malformed, 7);
    assert_eq!(wire.used(TX), [0; 8]);
}

#[test]
fn a_broken_ring_is_an_error() {
    for ring in [RX, TX] {
        let mut wire = wire(|_| ());
        wire.bench.rings[ring].offer(999);
        send(wire.end.as_raw_fd(), &packet(60), MsgFlags::empty()).unwrap();
        assert!(wire.bench.kick(ring as u64).is_err(), "a head beyond the table");
    }
}

/// Buffers of `size` bytes for frames, `count` of them.
fn bring(wire: &mut Wire, first: u64, count: u64, size: u32) {
    for index in first..first + count {
        wire.bench.rings[RX].chain(&[(HIGH + index * u64::from(size), size, WRITE)]);
    }
}

#[test]
fn a_frame_lies_in_as_many_buffers_as_it_needs() {
    let mut wire = wire(|_| ());
    let small = packet(60);
    bring(&mut wire, 0, 20, 1024);
    wire.arrive(&small);
    assert!(wire.used(RX).is_empty(), "the largest frame would not fit");
    bring(&mut wire, 20, 100, 1024);
    wire.bench.kick(RX as u64).unwrap();
    assert_eq!(wire.used(RX), [72]);
    let mut expected = small.clone();
    expected[10] = 1;
    assert_eq!(wire.bench.bytes(HIGH, 72), expected);
    // Buffers that it did not need are there for the next.
    let big = packet(3000);
    wire.arrive(&big);
    assert_eq!(wire.used(RX), [72, 1024, 1024, 964]);
    let mut expected = big.clone();
    expected[10] = 3;
    assert_eq!(wire.bench.bytes(HIGH + 1024, 3012), expected);
    wire.arrive(&largest());
    assert_eq!(wire.used(RX).len(), 4 + (MAX_FRAME + HEADER).div_ceil(1024));
    let counters = wire.counters().to_guest;
    let bytes = (60 + 3000 + MAX_FRAME) as u64;
    assert_eq!((counters.packets, counters.bytes, counters.malformed), (3, bytes, 0));
    assert_eq!(wire.interrupts(), 3);
    let queues = wire.bench.handler().queues();
    assert_eq!(queues[RX].1.next_avail, queues[RX].1.next_used);
}

#[test]
fn many_frames_are_one_interrupt_and_wait_for_their_turn() {
    let mut wire = wire(|_| ());
    bring(&mut wire, 0, 200, 2048);
    for _ in 0..70 {
        send(wire.end.as_raw_fd(), &packet(60), MsgFlags::MSG_DONTWAIT).unwrap();
    }
    wire.bench.kick(TAP).unwrap();
    assert_eq!((wire.used(RX).len(), wire.interrupts()), (64, 1));
    // The queue kicked itself.
    wire.bench.kick(RX as u64).unwrap();
    assert_eq!((wire.used(RX).len(), wire.interrupts()), (70, 1));
}

#[test]
fn headers_may_be_cut_anywhere() {
    let mut wire = wire(|_| ());
    wire.bench.rings[RX].chain(&[(BUFFERS, 11, WRITE), (BUFFERS + 0x100, 70_000, WRITE)]);
    wire.arrive(&packet(60));
    assert_eq!(wire.used(RX), [72]);
    assert_eq!(wire.bench.bytes(BUFFERS + 10, 1), [1]);
    assert_eq!(wire.bench.bytes(BUFFERS + 0x100, 1), [0]);
}

#[test]
fn a_driver_that_does_not_merge() {
    let mut wire = wire_without(1 << net::VIRTIO_NET_F_MRG_RXBUF, |_| ());
    bring(&mut wire, 0, 3, 2000);
    wire.arrive(&packet(1514));
    assert_eq!(wire.used(RX), [1526]);
    assert_eq!(wire.bench.bytes(HIGH + 10, 2), [1, 0]);
    wire.arrive(&packet(60));
    assert_eq!(wire.used(RX), [1526, 72]);
}

#[test]
fn frames_that_are_too_large_for_the_interface_are_dropped() {
    let segments = 1 << net::VIRTIO_NET_F_GUEST_TSO4 | 1 << net::VIRTIO_NET_F_GUEST_TSO6;
    let mut wire = wire_without(segments, |_| ());
    bring(&mut wire, 0, 4, 1000);
    wire.arrive(&packet(1519));
    assert_eq!((wire.used(RX).len(), wire.counters().to_guest.malformed), (0, 1));
    wire.arrive(&packet(1518));
    assert_eq!(wire.used(RX), [1000, 530]);
}

#[test]
fn buffers_that_are_none_are_given_back() {
    let mut wire = wire(|_| ());
    send(wire.end.as_raw_fd(), &packet(60), MsgFlags::empty()).unwrap();
    bring(&mut wire, 0, 2, 1024);
    wire.bench.rings[RX].chain(&[(BUFFERS, 1024, 0)]);
    wire.bench.rings[RX].chain(&[(BUFFERS, 11, WRITE)]);
    wire.bench.rings[RX].chain(&[(REGION, 100, WRITE)]);
    wire.bench.rings[RX].describe(200, BUFFERS, 100, NEXT | WRITE, 200);
    wire.bench.rings[RX].offer(200);
    wire.bench.kick(RX as u64).unwrap();
    assert_eq!(wire.used(RX), [0; 6]);
    assert_eq!(wire.counters().to_guest.malformed, 4);
    bring(&mut wire, 0, 70, 1024);
    wire.bench.kick(RX as u64).unwrap();
    assert_eq!(wire.used(RX)[6..], [72]);
}

#[test]
fn a_tap_that_is_full_is_waited_for() {
    let mut wire = wire(|_| ());
    let packet = packet(9000);
    wire.bench.put(BUFFERS, &packet);
    // Until nothing goes out any more.
    let mut offered = 0;
    while wire.used(TX).len() == offered {
        wire.bench.rings[TX].chain(&[(BUFFERS, packet.len() as u32, 0)]);
        wire.bench.kick(TX as u64).unwrap();
        offered += 1;
    }
    wire.bench.kick(TX as u64).unwrap();
    wire.bench.kick(TAP).unwrap();
    assert_eq!(wire.used(TX).len(), offered - 1);
    let mut arrived = 0;
    while sent(&wire.end).is_some() {
        arrived += 1;
    }
    wire.bench.event(TAP, EpollFlags::EPOLLOUT).unwrap();
    assert_eq!((arrived, wire.used(TX).len()), (offered - 1, offered));
    let counters = wire.counters().from_guest;
    assert_eq!((counters.packets, counters.tap), (offered as u64, 0), "none was lost");
}

#[test]
fn a_tap_that_refuses_costs_the_frame_alone() {
    let mut wire = wire(|_| ());
    let (other, _end) = std::os::unix::net::UnixStream::pair().unwrap();
    let end = std::mem::replace(&mut wire.end, other.into());
    // The other end is gone: EPIPE, as a tap's EIO when its interface is down.
    drop(end);
    wire.offer(&packet(60));
    wire.bench.kick(TX as u64).unwrap();
    assert_eq!((wire.used(TX).len(), wire.counters().from_guest.tap), (1, 1));
}

#[test]
fn limits_keep_frames_waiting() {
    let limit = Limit { packets: Some(Rate { per_second: 100, burst: 2 }), bytes: None };
    let limits = Some(RateLimits { to_guest: limit, from_guest: limit });
    let mut wire = wire(|net| net.limits = limits);
    let small = packet(60);
    bring(&mut wire, 0, 100, 1024);
    for _ in 0..4 {
        wire.offer(&small);
        send(wire.end.as_raw_fd(), &small, MsgFlags::empty()).unwrap();
    }
    let start = Instant::now();
    wire.bench.kick(TX as u64).unwrap();
    wire.bench.kick(TAP).unwrap();
    let passed = |wire: &Wire| (wire.used(TX).len(), wire.used(RX).len());
    if start.elapsed() < Duration::from_millis(10) {
        assert_eq!(passed(&wire), (2, 2));
    }
    while passed(&wire) != (4, 4) && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
        wire.bench.kick(TIMER).unwrap();
    }
    assert_eq!(passed(&wire), (4, 4));
    // Two of each way at once, and one in ten milliseconds.
    assert!(start.elapsed() >= Duration::from_millis(20));
    let counters = wire.counters();
    assert!(counters.to_guest.rate > 0 && counters.from_guest.rate > 0);
}

#[test]
fn a_driver_chooses_how_many_pairs_it_uses() {
    let (mut device, ends) = interface(2, |_| ());
    let mut bench = Bench::new(&mut device, memory(), &[0, 1, 2, 3, 4]);
    let arrive = |bench: &mut Bench, packet: &[u8]| {
        send(ends[1].as_raw_fd(), packet, MsgFlags::MSG_DONTWAIT).unwrap();
        bench.kick(TAP + 1).unwrap();
    };
    bench.rings[2].chain(&[(HIGH, 70_000, WRITE)]);
    arrive(&mut bench, &packet(60));
    assert!(bench.rings[2].used(0).is_empty(), "the second pair is not used yet");
    let answer = BUFFERS + 0x100;
    let command = |bench: &mut Bench, bytes: &[u8]| {
        bench.put(BUFFERS, bytes);
        bench.put(answer, &[9]);
        bench.rings[4].chain(&[
            (BUFFERS, 2, 0),
            (BUFFERS + 2, bytes.len() as u32 - 2, 0),
            (answer, 1, WRITE),
        ]);
        bench.kick(4).unwrap();
        bench.bytes(answer, 1)[0]
    };
    for refused in
        [&[4u8, 0, 0, 0][..], &[4, 0, 3, 0], &[4, 0, 255, 255], &[4, 1, 2, 0], &[1, 0, 2, 0]]
    {
        assert_eq!(command(&mut bench, refused), 1, "{refused:?}");
    }
    assert_eq!(command(&mut bench, &[4, 0, 2]), 1, "too short");
    assert_eq!(command(&mut bench, &[4, 0, 2, 0, 0]), 9, "too long");
    assert!(bench.rings[2].used(0).is_empty());
    assert_eq!(command(&mut bench, &[4, 0, 2, 0]), 0);
    assert_eq!(bench.rings[2].used(0), [72], "what waited there");
    assert_eq!(bench.handler().save(), [2]);
    assert_eq!(command(&mut bench, &[4, 0, 1, 0]), 0);
    // Without an answer there is nothing to do.
    bench.rings[4].chain(&[(BUFFERS, 4, 0)]);
    bench.rings[4].chain(&[(answer, 1, WRITE)]);
    bench.kick(4).unwrap();
    assert_eq!(bench.rings[4].used(0).len(), 11);
}

/// Saves a running interface, restores it into another one, and that goes on.
#[test]
fn an_interface_round_trips_while_it_runs() {
    let memory = memory();
    let (device, ends) = interface(1, |_| ());
    let first = transport(device, &memory);
    let mut rings = Driver(&first).start(&memory, &[0, 1]);
    let room = |ring: &mut Ring, index: u64| {
        ring.chain(&[(HIGH + index * 0x1_2000, 0x1_2000, WRITE)]);
    };
    for index in 0..3 {
        room(&mut rings[0], index);
    }
    Driver(&first).write(0x50, 0);
    send(ends[0].as_raw_fd(), &packet(60), MsgFlags::empty()).unwrap();
    assert_eq!(rings[0].wait(1), [72]);
    first.pause();
    let state = first.save();
    let bytes = postcard::to_stdvec(&state).unwrap();
    assert_eq!(postcard::from_bytes::<TransportState>(&bytes).unwrap(), state);
    let queue = state.handler.as_ref().unwrap().queues[0].1;
    assert_eq!((queue.next_used, queue.next_avail), (1, 1), "buffers in hand are not lost");

    let (other, _) = interface(1, |net| net.mtu = 9000);
    assert!(transport(other, &memory).restore(state.clone()).is_err());
    let (several, _) = interface(2, |_| ());
    assert!(transport(several, &memory).restore(state.clone()).is_err());
    let (device, ends) = interface(1, |_| ());
    let second = transport(device, &memory);
    second.restore(state.clone()).unwrap();
    assert_eq!(second.save(), state);
    second.resume();
    send(ends[0].as_raw_fd(), &packet(100), MsgFlags::empty()).unwrap();
    assert_eq!(rings[0].wait(2), [72, 112]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_driver_breaks_it(data in prop::collection::vec(any::<u8>(), 8..600)) {
        hostile_net(&data);
    }
}

mod kicks;
mod moderation;
mod real;
mod sizes;
