//! Frames of all sizes in turn, which are read in two ways (see rx.rs).

use super::*;

/// Bytes of a buffer of Linux's.
const BUFFER: u64 = 1536;
/// Buffers of the largest frame.
const MANY: usize = (HEADER + MAX_FRAME).div_ceil(BUFFER as usize);

/// A driver that takes each frame out of its buffers, and brings them again.
struct Reader {
    wire: Wire,
    taken: u16,
}

impl Reader {
    fn new() -> Reader {
        let mut wire = wire(|_| ());
        bring(&mut wire, 0, 200, BUFFER as u32);
        Reader { wire, taken: 0 }
    }

    /// The frame that came last, of so many buffers.
    fn frame(&mut self, buffers: usize) -> Vec<u8> {
        let used = self.wire.bench.rings[RX].used(self.taken);
        assert_eq!(used.len(), buffers);
        let mut frame = Vec::new();
        for length in used {
            let buffer = u64::from(self.taken) % 256;
            frame.extend(self.wire.bench.bytes(HIGH + buffer * BUFFER, length as usize));
            bring(&mut self.wire, (buffer + 200) % 256, 1, BUFFER as u32);
            self.taken += 1;
        }
        frame
    }

    fn passes(&mut self, len: usize) {
        let packet = packet(len);
        let buffers = packet.len().div_ceil(BUFFER as usize);
        self.wire.arrive(&packet);
        let mut expected = packet;
        expected[10..12].copy_from_slice(&(buffers as u16).to_le_bytes());
        assert!(self.frame(buffers) == expected, "a frame of {len} bytes");
    }
}

#[test]
fn large_frames_come_among_small_ones() {
    let mut reader = Reader::new();
    for len in [60, MAX_FRAME, MAX_FRAME, 60, 1524, 1525, 3060, 3061] {
        reader.passes(len);
    }
    // Long after a large one as well.
    for _ in 0..3 {
        (0..20).for_each(|_| reader.passes(1518));
        reader.passes(40_000);
    }
    let counters = reader.wire.counters().to_guest;
    assert_eq!((counters.packets, counters.malformed), (71, 0));
    let queue = reader.wire.bench.handler().queues()[RX].1;
    assert_eq!(queue.next_avail, queue.next_used, "buffers in hand are not lost");
}

#[test]
fn a_large_frame_after_small_ones_of_one_event() {
    let mut reader = Reader::new();
    for len in [60, MAX_FRAME, 100] {
        send(reader.wire.end.as_raw_fd(), &packet(len), MsgFlags::MSG_DONTWAIT).unwrap();
    }
    reader.wire.bench.kick(TAP).unwrap();
    let used = reader.wire.used(RX);
    assert_eq!((used.len(), used[0], used[MANY + 1]), (MANY + 2, 72, 112));
    assert_eq!(used[1..=MANY].iter().sum::<u32>() as usize, HEADER + MAX_FRAME);
    assert_eq!(reader.wire.interrupts(), 1);
}

#[test]
fn a_large_frame_waits_where_buffers_are_few() {
    let mut wire = wire(|_| ());
    let few = MANY as u64 - 1;
    bring(&mut wire, 0, few, BUFFER as u32);
    wire.arrive(&packet(MAX_FRAME));
    assert!(wire.used(RX).is_empty());
    bring(&mut wire, few, 2, BUFFER as u32);
    wire.bench.kick(RX as u64).unwrap();
    assert_eq!(wire.used(RX).len(), MANY);
    assert_eq!(wire.counters().to_guest.malformed, 0);
}

/// Many buffers, which are together too small for it: no driver's that we know.
#[test]
fn a_large_frame_is_lost_in_buffers_that_are_too_small() {
    let mut wire = wire(|_| ());
    bring(&mut wire, 0, 60, 300);
    wire.arrive(&packet(60));
    wire.arrive(&packet(MAX_FRAME));
    assert_eq!((wire.used(RX), wire.counters().to_guest.malformed), (vec![72], 1));
    // Read the other way now, for which there is no room yet.
    wire.arrive(&packet(70));
    assert_eq!(wire.used(RX), [72]);
    bring(&mut wire, 60, 190, 300);
    bring(&mut wire, 250, 1, 40_000);
    wire.bench.kick(RX as u64).unwrap();
    assert_eq!(wire.used(RX), [72, 82]);
}
