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

#[test]
fn it_waits_for_as_many_small_buffers_as_well() {
    let mut wire = wire(|_| ());
    bring(&mut wire, 0, 60, 300);
    wire.arrive(&packet(MAX_FRAME));
    wire.arrive(&packet(60));
    assert!(wire.used(RX).is_empty());
    bring(&mut wire, 60, 190, 300);
    wire.bench.kick(RX as u64).unwrap();
    assert_eq!(wire.used(RX).len(), (HEADER + MAX_FRAME).div_ceil(300));
    bring(&mut wire, 0, 200, 300);
    wire.bench.kick(RX as u64).unwrap();
    assert_eq!(wire.used(RX)[219..], [72]);
    assert_eq!(wire.counters().to_guest.malformed, 0);
}

/// No driver's that we know.
#[test]
fn a_large_frame_is_lost_where_buffers_become_small_and_few() {
    let mut wire = wire(|_| ());
    bring(&mut wire, 0, 50, BUFFER as u32);
    for _ in 0..40 {
        wire.arrive(&packet(60));
    }
    bring(&mut wire, 50, 40, 300);
    wire.arrive(&packet(MAX_FRAME));
    assert_eq!((wire.used(RX).len(), wire.counters().to_guest.malformed), (40, 1));
    // The next are read the other way, for which there is not room enough yet.
    wire.arrive(&packet(70));
    assert_eq!(wire.used(RX).len(), 40);
    bring(&mut wire, 7, 1, 0x1_2000);
    wire.bench.kick(RX as u64).unwrap();
    assert_eq!(wire.used(RX)[40..], [82]);
}

#[test]
fn buffers_of_many_pieces() {
    let mut wire = wire(|_| ());
    // 43 such buffers are more pieces than one call takes, with 64 each of an indirect table.
    let table = BUFFERS + 0x8000;
    for piece in 0..64u64 {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&(HIGH + piece * 24).to_le_bytes());
        entry[8..12].copy_from_slice(&24u32.to_le_bytes());
        entry[12] = (WRITE | if piece < 63 { NEXT } else { 0 }) as u8;
        entry[14] = piece as u8 + 1;
        wire.bench.put(table + piece * 16, &entry);
    }
    for index in 0..100 {
        wire.bench.rings[RX].describe(index, table, 64 * 16, INDIRECT, 0);
        wire.bench.rings[RX].offer(index);
    }
    for len in [60, MAX_FRAME, 1524, MAX_FRAME, 3000] {
        wire.arrive(&packet(len));
    }
    // What is longer than one call takes is lost, and nothing is told to be whole that is not.
    let counters = wire.counters().to_guest;
    let lost = counters.malformed as usize;
    let lengths = wire.used(RX);
    let bytes: usize = lengths.iter().map(|&len| len as usize).sum();
    assert_eq!((counters.packets as usize + lost, lost), (5, 2));
    assert_eq!(bytes, 60 + 1524 + 3000 + 3 * HEADER);
}

#[test]
fn without_merging_a_frame_has_one_buffer() {
    let mut wire = wire_without(1 << net::VIRTIO_NET_F_MRG_RXBUF, |_| ());
    bring(&mut wire, 0, 3, 1526);
    for len in [1514, 1515, 60] {
        wire.arrive(&packet(len));
    }
    assert_eq!(wire.used(RX), [1526, 72]);
    assert_eq!(wire.counters().to_guest.malformed, 1);
}

/// Those of one descriptor stay in hand from one event to the next; others go back to the ring.
#[test]
fn buffers_stay_in_order_where_some_are_in_pieces() {
    let mut wire = wire(|_| ());
    let place = |index: usize| HIGH + index as u64 * BUFFER;
    for index in 0..120 {
        let pieces = if index % 5 == 3 { 2 } else { 1 };
        let len = BUFFER / pieces;
        let piece = |piece| (place(index) + piece * len, len as u32, WRITE);
        let chain: Vec<_> = (0..pieces).map(piece).collect();
        wire.bench.rings[RX].chain(&chain);
    }
    let mut taken = 0;
    // The first and the third event take many buffers, of which some are left.
    for len in [60, 61, MAX_FRAME, 62, 63, 3000, 64] {
        let mut packet = packet(len);
        wire.arrive(&packet);
        let buffers = packet.len().div_ceil(BUFFER as usize);
        assert_eq!(wire.bench.rings[RX].used(taken as u16).len(), buffers, "of {len} bytes");
        packet[10..12].copy_from_slice(&(buffers as u16).to_le_bytes());
        assert!(wire.bench.bytes(place(taken), packet.len()) == packet, "a frame of {len} bytes");
        taken += buffers;
        let queue = wire.bench.handler().queues()[RX].1;
        assert_eq!((queue.next_avail, queue.next_used), (taken as u16, taken as u16));
    }
    assert_eq!(wire.counters().to_guest.malformed, 0);
}
