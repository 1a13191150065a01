//! The muxer with real sockets and a scripted guest.

use std::io::{Read, Write};
use std::sync::Mutex;

use super::super::packet::shutdown;
use super::*;

type Offered = Arc<Mutex<Vec<(u32, UnixStream)>>>;

fn muxer() -> (Muxer, Offered) {
    let offered = Offered::default();
    let sink = Arc::clone(&offered);
    let on_connect = move |port, fd: OwnedFd| {
        sink.lock().unwrap().push((port, fd.into()));
        port != 13
    };
    (Muxer::new(16, Arc::new(on_connect)), offered)
}

fn from_guest(op: u16, host: u32, guest: u32) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        kind: TYPE_STREAM,
        op,
        buf_alloc: 1 << 18,
        ..Header::default()
    }
}

fn take(muxer: &mut Muxer) -> Option<(Header, Vec<u8>)> {
    let mut bytes = vec![0; 4096];
    let header = muxer.next_packet(&mut [VolatileSlice::from(bytes.as_mut_slice())])?;
    bytes.truncate(header.len as usize);
    Some((header, bytes))
}

/// Does what the event loop would do.
fn host_event(muxer: &mut Muxer) {
    for id in muxer.ids().collect::<Vec<_>>() {
        muxer.host_ready(id, true, true, false);
    }
}

fn dial(muxer: &mut Muxer, line: &[u8], now: Instant) -> UnixStream {
    let (mut host, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    host.set_nonblocking(true).unwrap();
    host.write_all(line).unwrap();
    muxer.accept(ours, now);
    host_event(muxer);
    host
}

#[test]
fn the_host_dials_and_its_early_data_arrives() {
    let (mut muxer, _) = muxer();
    let mut host = dial(&mut muxer, b"CONNECT 1024\nearly", Instant::now());
    let (request, _) = take(&mut muxer).unwrap();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 1024));
    assert!(take(&mut muxer).is_none());
    muxer.guest_packet(&from_guest(op::RESPONSE, request.src_port, 1024), &[]);
    assert_eq!(take(&mut muxer).unwrap().1, b"early");
    let mut line = [0; 64];
    let count = host.read(&mut line).unwrap();
    assert_eq!(&line[..count], format!("OK {}\n", request.src_port).as_bytes());
}

#[test]
fn a_refused_dial_is_closed_without_ok() {
    let (mut muxer, _) = muxer();
    let mut host = dial(&mut muxer, b"CONNECT 9\n", Instant::now());
    let (request, _) = take(&mut muxer).unwrap();
    muxer.guest_packet(&from_guest(op::RST, request.src_port, 9), &[]);
    drop(muxer.take_changes());
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(muxer.ids().count(), 0);
}

#[test]
fn the_guest_dials() {
    let (mut muxer, offered) = muxer();
    muxer.guest_packet(&from_guest(op::REQUEST, 1026, 5000), &[]);
    let (response, _) = take(&mut muxer).unwrap();
    assert_eq!((response.op, response.dst_port, response.src_port), (op::RESPONSE, 5000, 1026));
    let (port, mut host) = offered.lock().unwrap().pop().unwrap();
    assert_eq!(port, 1026);
    let mut bytes = *b"hello";
    let data = VolatileSlice::from(bytes.as_mut_slice());
    muxer.guest_packet(&from_guest(op::RW, 1026, 5000), &[data]);
    let mut heard = [0; 5];
    host.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    // A second request on the same ports is a violation.
    muxer.guest_packet(&from_guest(op::REQUEST, 1026, 5000), &[]);
    assert_eq!(take(&mut muxer).unwrap().0.op, op::RST);
    drop(muxer.take_changes());
    assert_eq!(host.read(&mut heard).unwrap(), 0);
}

#[test]
fn the_host_may_refuse_and_strays_are_reset() {
    let (mut muxer, _) = muxer();
    muxer.guest_packet(&from_guest(op::REQUEST, 13, 1), &[]);
    muxer.guest_packet(&from_guest(op::RW, 77, 1), &[]);
    muxer.guest_packet(&Header { kind: 2, ..from_guest(op::REQUEST, 78, 1) }, &[]);
    muxer.guest_packet(&Header { dst_cid: 9, ..from_guest(op::REQUEST, 79, 1) }, &[]);
    muxer.guest_packet(&Header { src_cid: 9, ..from_guest(op::REQUEST, 80, 1) }, &[]);
    muxer.guest_packet(&from_guest(op::RST, 81, 1), &[]);
    for port in [13, 77, 78, 79] {
        let (header, _) = take(&mut muxer).unwrap();
        assert_eq!((header.op, header.src_port), (op::RST, port));
        assert_eq!(header.src_cid, if port == 79 { 9 } else { HOST_CID });
    }
    assert!(take(&mut muxer).is_none());
}

#[test]
fn a_storm_is_bounded() {
    let (mut muxer, offered) = muxer();
    let mut port = 0;
    while muxer.takes_packets() {
        port += 1;
        assert!(port < 100_000);
        muxer.guest_packet(&from_guest(op::REQUEST, 1026, port), &[]);
    }
    assert_eq!(offered.lock().unwrap().len(), MAX_BY_GUEST);
    assert_eq!(muxer.refusals.len(), MAX_REFUSALS);
    // The host still gets through, and there is room again after closing.
    dial(&mut muxer, b"CONNECT 1024\n", Instant::now());
    assert_eq!(muxer.ids().count(), MAX_BY_GUEST + 1);
    while take(&mut muxer).is_some() {}
    for port in 1..=MAX_BY_GUEST as u32 {
        let close = Header { flags: shutdown::BOTH, ..from_guest(op::SHUTDOWN, 1026, port) };
        muxer.guest_packet(&close, &[]);
    }
    while take(&mut muxer).is_some() {}
    assert_eq!((muxer.by_guest, muxer.ids().count(), muxer.by_ports.len()), (0, 1, 1));
}

#[test]
fn patience_ends() {
    let (mut muxer, _) = muxer();
    let start = Instant::now();
    let mut silent = dial(&mut muxer, b"CONN", start);
    let mut unanswered = dial(&mut muxer, b"CONNECT 5\n", start + PATIENCE / 2);
    assert_eq!(take(&mut muxer).unwrap().0.op, op::REQUEST);
    assert_eq!(muxer.expire(start), Some(start + PATIENCE));
    assert_eq!(muxer.expire(start + PATIENCE), Some(start + PATIENCE * 3 / 2));
    drop(muxer.take_changes());
    assert_eq!(silent.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(muxer.expire(start + PATIENCE * 2), None);
    assert_eq!(take(&mut muxer).unwrap().0.op, op::RST);
    drop(muxer.take_changes());
    assert_eq!(unanswered.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(muxer.ids().count(), 0);
}

#[test]
fn turns_are_taken() {
    let (mut muxer, offered) = muxer();
    for port in [1, 2] {
        muxer.guest_packet(&from_guest(op::REQUEST, 1026, port), &[]);
        take(&mut muxer).unwrap();
    }
    for (_, host) in offered.lock().unwrap().iter_mut() {
        host.write_all(&[0; 20_000]).unwrap();
    }
    host_event(&mut muxer);
    let order: Vec<u32> = (0..4).map(|_| take(&mut muxer).unwrap().0.dst_port).collect();
    assert_ne!(order[0], order[1]);
    assert_eq!(order[..2], order[2..]);
}
