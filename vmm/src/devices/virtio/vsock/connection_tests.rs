//! A connection between a scripted host and a scripted guest.

use std::collections::VecDeque;
use std::num::Wrapping;

use proptest::prelude::*;
use vm_memory::Bytes;

use super::super::credit::BUF_ALLOC;
use super::*;

/// A socket whose peer is the test.
#[derive(Default)]
struct Double {
    /// What the host wrote and we have not read.
    inbound: VecDeque<u8>,
    /// What we wrote.
    outbound: Vec<u8>,
    /// Room of the socket buffer.
    room: usize,
    /// Largest transfer of one call.
    chunk: usize,
    ended: bool,
    deaf: bool,
    shut_read: bool,
    shut_write: bool,
}

impl HostStream for Double {
    fn take(&mut self, into: &mut VolatileSlice) -> io::Result<usize> {
        let count = into.len().min(self.inbound.len()).min(self.chunk);
        if count == 0 && !self.ended {
            return Err(ErrorKind::WouldBlock.into());
        }
        let bytes: Vec<u8> = self.inbound.drain(..count).collect();
        into.write_slice(&bytes, 0).unwrap();
        Ok(count)
    }

    fn put(&mut self, from: &VolatileSlice) -> io::Result<usize> {
        if self.deaf {
            return Err(ErrorKind::BrokenPipe.into());
        }
        assert!(!self.shut_write, "wrote after the guest's end of file");
        let count = from.len().min(self.room).min(self.chunk);
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut bytes = vec![0; count];
        from.read_slice(&mut bytes, 0).unwrap();
        self.outbound.extend(bytes);
        self.room -= count;
        Ok(count)
    }

    fn half_close(&mut self, how: Shutdown) {
        match how {
            Shutdown::Read => self.shut_read = true,
            Shutdown::Write => self.shut_write = true,
            Shutdown::Both => unreachable!(),
        }
    }
}

const PORTS: Ports = Ports { host: 7, guest: 1024 };

fn double() -> Double {
    Double { chunk: usize::MAX, room: usize::MAX, ..Double::default() }
}

fn packet(op: u16, flags: u32) -> Header {
    Header { op, flags, buf_alloc: 1 << 16, ..Header::default() }
}

fn established() -> Connection<Double> {
    let mut connection = Connection::grant(double(), PORTS, &packet(op::REQUEST, 0));
    assert_eq!(take(&mut connection, 0).0.op, op::RESPONSE);
    connection
}

fn take(connection: &mut Connection<Double>, room: usize) -> (Header, Vec<u8>) {
    try_take(connection, room).expect("a packet")
}

fn try_take(connection: &mut Connection<Double>, room: usize) -> Option<(Header, Vec<u8>)> {
    let mut bytes = vec![0; room];
    let header = connection.next_packet(&mut [VolatileSlice::from(bytes.as_mut_slice())])?;
    bytes.truncate(header.len as usize);
    Some((header, bytes))
}

fn give(connection: &mut Connection<Double>, bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    connection.guest_packet(&packet(op::RW, 0), &[VolatileSlice::from(bytes.as_mut_slice())]);
}

#[test]
fn host_connects() {
    let mut connection = Connection::request(double(), PORTS);
    let (request, _) = take(&mut connection, 0);
    assert_eq!((request.op, request.src_port, request.dst_port), (op::REQUEST, 7, 1024));
    assert_eq!(request.buf_alloc, BUF_ALLOC);
    connection.guest_packet(&packet(op::RESPONSE, 0), &[]);
    assert_eq!(connection.stream.outbound, b"OK 7\n");
    // The answer is no business of the guest's credit.
    give(&mut connection, b"x");
    connection.due.credit = true;
    assert_eq!(take(&mut connection, 0).0.fwd_cnt, 1);
}

#[test]
fn a_refused_request_ends_without_ok() {
    let mut connection = Connection::request(double(), PORTS);
    take(&mut connection, 0);
    connection.guest_packet(&packet(op::RST, 0), &[]);
    assert!(connection.is_finished());
    assert!(connection.stream.outbound.is_empty());
}

#[test]
fn a_host_that_gives_up_resets_the_request() {
    let mut connection = Connection::request(double(), PORTS);
    connection.host_ready(true, true, true);
    assert!(connection.is_finished(), "the guest never heard of it");
    let mut connection = Connection::request(double(), PORTS);
    take(&mut connection, 0);
    connection.host_ready(true, true, true);
    assert_eq!(take(&mut connection, 0).0.op, op::RST);
    assert!(connection.is_finished());
}

#[test]
fn end_of_file_goes_both_ways_and_data_still_flows() {
    let mut connection = established();
    connection.stream.inbound.extend(b"last");
    connection.stream.ended = true;
    connection.host_ready(true, false, false);
    assert_eq!(take(&mut connection, 100).1, b"last");
    let (header, _) = take(&mut connection, 100);
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, shutdown::SEND));
    assert!(!connection.has_packet());
    give(&mut connection, b"answer");
    assert_eq!(connection.stream.outbound, b"answer");
    connection.guest_packet(&packet(op::SHUTDOWN, shutdown::SEND), &[]);
    assert!(connection.stream.shut_write && !connection.is_finished());
    connection.guest_packet(&packet(op::SHUTDOWN, shutdown::BOTH), &[]);
    assert_eq!(take(&mut connection, 0).0.op, op::RST);
    assert!(connection.is_finished());
}

#[test]
fn what_the_guest_wrote_before_closing_arrives() {
    let mut connection = established();
    connection.stream.room = 3;
    give(&mut connection, b"abcdef");
    connection.guest_packet(&packet(op::SHUTDOWN, shutdown::BOTH), &[]);
    assert_eq!(take(&mut connection, 0).0.op, op::RST);
    assert!(connection.is_detached() && !connection.is_finished());
    // An impatient guest.
    connection.guest_packet(&packet(op::RST, 0), &[]);
    connection.stream.room = 100;
    connection.host_ready(false, true, false);
    assert_eq!(connection.stream.outbound, b"abcdef");
    assert!(connection.is_finished() && connection.stream.shut_write);
}

#[test]
fn a_closed_host_end_tells_the_guest() {
    let mut connection = established();
    connection.stream.deaf = true;
    give(&mut connection, b"unread");
    let (header, _) = take(&mut connection, 10);
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, shutdown::RECEIVE));
    connection.stream.ended = true;
    connection.host_ready(true, true, true);
    let (header, _) = take(&mut connection, 10);
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, shutdown::BOTH));
    assert_eq!(header.fwd_cnt, 6, "discarded bytes give their credit back");
}

#[test]
fn violations_reset() {
    let too_much = vec![0; BUF_ALLOC as usize];
    let mut connection = established();
    connection.stream.room = 0;
    give(&mut connection, &too_much);
    assert!(!connection.is_detached());
    give(&mut connection, b"x");
    assert_eq!(take(&mut connection, 0).0.op, op::RST);
    for bad in [op::REQUEST, op::RESPONSE, 0, 99] {
        let mut connection = established();
        connection.guest_packet(&packet(bad, 0), &[]);
        assert_eq!(take(&mut connection, 0).0.op, op::RST);
        assert!(connection.is_finished());
    }
    let mut connection = established();
    connection.guest_packet(&packet(op::SHUTDOWN, shutdown::SEND), &[]);
    give(&mut connection, b"x");
    assert_eq!(take(&mut connection, 0).0.op, op::RST);
}

#[test]
fn a_buffer_without_room_is_used_and_forgotten() {
    let mut connection = established();
    connection.stream.inbound.extend(b"data");
    connection.host_ready(true, false, false);
    assert_eq!(take(&mut connection, 0).0.op, op::CREDIT_UPDATE);
    assert_eq!(take(&mut connection, 9).1, b"data");
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    HostWrites(u16),
    HostReads(u16),
    GuestWrites(u16),
    GuestReads(u16),
    GuestTakes(u16),
    Chunk(u8),
    AskCredit,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<u16>().prop_map(Step::HostWrites),
        any::<u16>().prop_map(Step::HostReads),
        any::<u16>().prop_map(Step::GuestWrites),
        any::<u16>().prop_map(Step::GuestReads),
        (0u16..9000).prop_map(Step::GuestTakes),
        any::<u8>().prop_map(Step::Chunk),
        Just(Step::AskCredit),
    ]
}

/// A guest that keeps its books.
#[derive(Default)]
struct Guest {
    sent: Wrapping<u32>,
    host_fwd: Wrapping<u32>,
    received: Vec<u8>,
    forwarded: u32,
}

const GUEST_BUF: u32 = 20_000;

impl Guest {
    fn header(&self, op: u16, flags: u32) -> Header {
        Header { op, flags, buf_alloc: GUEST_BUF, fwd_cnt: self.forwarded, ..Header::default() }
    }

    fn credit(&self) -> usize {
        (BUF_ALLOC - (self.sent - self.host_fwd).0) as usize
    }

    fn take(&mut self, connection: &mut Connection<Double>, room: usize) -> bool {
        let Some((header, bytes)) = try_take(connection, room) else { return false };
        self.host_fwd = Wrapping(header.fwd_cnt);
        self.received.extend(bytes);
        assert!(self.received.len() - self.forwarded as usize <= GUEST_BUF as usize, "credit");
        if header.op == op::CREDIT_REQUEST {
            connection.guest_packet(&self.header(op::CREDIT_UPDATE, 0), &[]);
        }
        true
    }
}

fn pattern(from: usize, len: usize) -> impl Iterator<Item = u8> {
    (from..from + len).map(|i| (i * 31 + i / 251) as u8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_byte_is_lost_doubled_or_moved(steps in prop::collection::vec(step(), 1..120)) {
        let mut guest = Guest::default();
        let mut connection = Connection::grant(double(), PORTS, &guest.header(op::REQUEST, 0));
        connection.stream.room = 0;
        let (mut host_wrote, mut guest_wrote) = (0usize, 0usize);
        for step in steps {
            match step {
                Step::HostWrites(len) => {
                    connection.stream.inbound.extend(pattern(host_wrote, len.into()));
                    host_wrote += usize::from(len);
                    connection.host_ready(true, false, false);
                }
                Step::HostReads(len) => {
                    connection.stream.room += usize::from(len);
                    connection.host_ready(false, true, false);
                }
                Step::GuestWrites(len) => {
                    let len = guest.credit().min(len.into());
                    let mut bytes: Vec<u8> = pattern(guest_wrote, len).collect();
                    let (first, second) = bytes.split_at_mut(len / 3);
                    guest_wrote += len;
                    guest.sent += len as u32;
                    connection.guest_packet(
                        &guest.header(op::RW, 0),
                        &[VolatileSlice::from(first), VolatileSlice::from(second)],
                    );
                }
                Step::GuestReads(len) => {
                    guest.forwarded =
                        (guest.forwarded + u32::from(len)).min(guest.received.len() as u32);
                    connection.guest_packet(&guest.header(op::CREDIT_UPDATE, 0), &[]);
                }
                Step::GuestTakes(room) => { guest.take(&mut connection, room.into()); }
                Step::Chunk(chunk) => connection.stream.chunk = usize::from(chunk) + 1,
                Step::AskCredit => {
                    connection.guest_packet(&guest.header(op::CREDIT_REQUEST, 0), &[]);
                }
            }
            // What has no packet must not claim one, or the pump spins.
            if !connection.has_packet() {
                prop_assert!(try_take(&mut connection, 100).is_none());
            }
            prop_assert!(!connection.is_detached());
        }
        // Let everything through; it must come to rest.
        connection.stream.room = usize::MAX;
        connection.stream.ended = true;
        connection.host_ready(true, true, false);
        for round in 0.. {
            prop_assert!(round < 1_000_000, "never rests");
            guest.forwarded = guest.received.len() as u32;
            connection.guest_packet(&guest.header(op::CREDIT_UPDATE, 0), &[]);
            if !guest.take(&mut connection, 4000) { break; }
        }
        prop_assert!(guest.received.iter().copied().eq(pattern(0, host_wrote)));
        prop_assert!(connection.stream.outbound.iter().copied().eq(pattern(0, guest_wrote)));
        connection.guest_packet(&guest.header(op::SHUTDOWN, shutdown::BOTH), &[]);
        guest.take(&mut connection, 0);
        prop_assert!(connection.is_finished());
    }
}
