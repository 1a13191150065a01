//! The whole device on its event loop, with a small driver on the other side.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::super::Vsock;
use super::super::packet::{Header, TYPE_STREAM, op, shutdown};
use super::*;
use crate::devices::virtio::device::{Activation, VirtioDevice};
use crate::event_loop::{EventLoop, HandlerId};
use crate::memory::GuestRam;
use protocol::vsock::{GUEST_CID, HOST_CID};

struct NoInterrupt;

impl Interrupt for NoInterrupt {
    fn queue(&self, _index: u16) {}
}

const SIZE: u16 = 16;
const WRITE: u16 = 2;

/// The driver's side of one split ring; descriptor n has buffer n.
struct Ring {
    memory: GuestRam,
    base: u64,
    kick: EventFd,
    avail: u16,
    used: u16,
}

impl Ring {
    const AVAIL: u64 = 0x400;
    const USED: u64 = 0x600;
    const BUFFERS: u64 = 0x1000;
    const BUFFER: u64 = 0x1_1000;

    fn new(memory: &GuestRam, base: u64) -> (Ring, ActiveQueue) {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_size(SIZE);
        queue.set_desc_table_address(Some(base as u32), Some(0));
        queue.set_avail_ring_address(Some((base + Self::AVAIL) as u32), Some(0));
        queue.set_used_ring_address(Some((base + Self::USED) as u32), Some(0));
        queue.set_ready(true);
        let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let active = ActiveQueue { queue, kick: kick.try_clone().unwrap() };
        (Ring { memory: Arc::clone(memory), base, kick, avail: 0, used: 0 }, active)
    }

    fn buffer(&self, n: u16) -> GuestAddress {
        GuestAddress(self.base + Self::BUFFERS + u64::from(n) * Self::BUFFER)
    }

    fn offer(&mut self, n: u16, len: u32, flags: u16) {
        let at = |offset: u64| GuestAddress(self.base + offset);
        let descriptor = u64::from(n) * 16;
        self.memory.write_obj(self.buffer(n).0, at(descriptor)).unwrap();
        self.memory.write_obj(len, at(descriptor + 8)).unwrap();
        self.memory.write_obj(u32::from(flags), at(descriptor + 12)).unwrap();
        let slot = Self::AVAIL + 4 + 2 * u64::from(self.avail % SIZE);
        self.memory.write_obj(n, at(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.memory.write_obj(self.avail, at(Self::AVAIL + 2)).unwrap();
        self.kick.write(1).unwrap();
    }

    /// The next used element, if any: (descriptor, length).
    fn used(&mut self) -> Option<(u16, u32)> {
        let at = |offset: u64| GuestAddress(self.base + Self::USED + offset);
        let index: u16 = self.memory.read_obj(at(2)).unwrap();
        if index == self.used {
            return None;
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let slot = 4 + 8 * u64::from(self.used % SIZE);
        self.used = self.used.wrapping_add(1);
        let id: u32 = self.memory.read_obj(at(slot)).unwrap();
        Some((id as u16, self.memory.read_obj(at(slot + 4)).unwrap()))
    }

    fn wait(&mut self) -> (u16, u32) {
        let start = Instant::now();
        loop {
            if let Some(used) = self.used() {
                return used;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "the device is silent");
            std::thread::yield_now();
        }
    }
}

struct Guest {
    rx: Ring,
    tx: Ring,
    event: Ring,
    received: u32,
}

struct Machine {
    events: EventLoop,
    id: HandlerId,
    failures: Receiver<HandlerError>,
    offered: Arc<Mutex<Vec<UnixStream>>>,
    dir: tempfile::TempDir,
}

fn boot(state: Option<&[u8]>) -> (Machine, Guest, Vsock) {
    let memory: GuestRam =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap());
    let (rx, rx_queue) = Ring::new(&memory, 0);
    let (tx, tx_queue) = Ring::new(&memory, 2 << 20);
    let (event, event_queue) = Ring::new(&memory, 4 << 20);
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("vsock")).unwrap();
    let offered = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&offered);
    let on_connect: OnConnect = Arc::new(move |_, fd| {
        sink.lock().unwrap().push(fd.into());
        true
    });
    let mut device = Vsock::new(Some(listener.into()), on_connect).unwrap();
    if let Some(state) = state {
        device.restore(state).unwrap();
    }
    let queues = vec![Some(rx_queue), Some(tx_queue), Some(event_queue)];
    let interrupt = Arc::new(NoInterrupt);
    let activation = Activation { memory: memory.into(), queues, features: 0, interrupt };
    let handler = device.activate(activation).unwrap();
    let events = EventLoop::spawn("vsock-test", || {}).unwrap();
    let (sender, failures) = channel();
    let id = events.add(handler, Box::new(move |error| drop(sender.send(error))));
    let machine = Machine { events, id, failures, offered, dir };
    (machine, Guest { rx, tx, event, received: 0 }, device)
}

impl Guest {
    fn send(&mut self, op: u16, ports: (u32, u32), flags: u32, payload: &[u8]) {
        let header = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: ports.1,
            dst_port: ports.0,
            len: payload.len() as u32,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: 1 << 18,
            fwd_cnt: self.received,
        };
        let at = self.tx.buffer(0);
        self.tx.memory.write_slice(&header.encode(), at).unwrap();
        let after = GuestAddress(at.0 + HEADER_SIZE as u64);
        self.tx.memory.write_slice(payload, after).unwrap();
        self.tx.offer(0, (HEADER_SIZE + payload.len()) as u32, 0);
        self.tx.wait();
    }

    fn fill(&mut self) {
        for n in 0..SIZE {
            self.rx.offer(n, 4096, WRITE);
        }
    }

    /// Takes a packet and gives the buffer back.
    fn take(&mut self, wait: bool) -> Option<(Header, Vec<u8>)> {
        let (n, len) = if wait { self.rx.wait() } else { self.rx.used()? };
        let mut bytes = vec![0; len as usize];
        self.rx.memory.read_slice(&mut bytes, self.rx.buffer(n)).unwrap();
        self.rx.offer(n, 4096, WRITE);
        let payload = bytes.split_off(HEADER_SIZE);
        self.received += payload.len() as u32;
        Some((Header::decode(bytes[..].try_into().unwrap()), payload))
    }
}

fn byte(i: usize) -> u8 {
    (i * 7 + i / 253) as u8
}

#[test]
fn streams_arrive_whole_both_ways_with_slow_ends() {
    const TOTAL: usize = 3 << 20;
    let (machine, mut guest, _) = boot(None);
    guest.fill();
    guest.send(op::REQUEST, (1026, 5000), 0, &[]);
    assert_eq!(guest.take(true).unwrap().0.op, op::RESPONSE);
    let mut host = machine.offered.lock().unwrap().pop().unwrap();
    let mut reader = host.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let data: Vec<u8> = (0..TOTAL).map(byte).collect();
        host.write_all(&data).unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let reader = std::thread::spawn(move || {
        let (mut all, mut part) = (Vec::<u8>::new(), vec![0; 50_000]);
        loop {
            match reader.read(&mut part).unwrap() {
                0 => return all,
                count => all.extend(&part[..count]),
            }
            if all.len() % 7 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let (mut sent, mut forwarded, mut got, mut ended) = (0, 0u32, Vec::new(), false);
    while sent < TOTAL || !ended {
        while let Some((header, payload)) = guest.take(false) {
            forwarded = header.fwd_cnt;
            got.extend(payload);
            match header.op {
                op::CREDIT_REQUEST => guest.send(op::CREDIT_UPDATE, (1026, 5000), 0, &[]),
                op::SHUTDOWN => ended = true,
                op::RW | op::CREDIT_UPDATE => {}
                other => panic!("op {other}"),
            }
        }
        let credit = (1 << 18) - (sent - forwarded as usize);
        let len = credit.min(TOTAL - sent).min(60_000);
        if len > 0 {
            let data: Vec<u8> = (sent..sent + len).map(byte).collect();
            guest.send(op::RW, (1026, 5000), 0, &data);
            sent += len;
        }
    }
    guest.send(op::SHUTDOWN, (1026, 5000), shutdown::BOTH, &[]);
    writer.join().unwrap();
    let all = reader.join().unwrap();
    assert!(all.iter().copied().eq((0..TOTAL).map(byte)), "guest to host");
    assert!(got.iter().copied().eq((0..TOTAL).map(byte)), "host to guest");
    // Room that the slow reader made may be told of first.
    let last = loop {
        let (header, _) = guest.take(true).unwrap();
        if header.op != op::CREDIT_UPDATE {
            break header.op;
        }
    };
    assert_eq!(last, op::RST);
    assert!(machine.failures.try_recv().is_err());
}

#[test]
fn the_host_dials_through_the_listener() {
    let (machine, mut guest, _) = boot(None);
    let mut host = UnixStream::connect(machine.dir.path().join("vsock")).unwrap();
    host.write_all(b"CONNECT 1024\nx").unwrap();
    // The ring has no buffers yet.
    std::thread::sleep(Duration::from_millis(20));
    guest.fill();
    let (request, _) = guest.take(true).unwrap();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 1024));
    guest.send(op::RESPONSE, (request.src_port, 1024), 0, &[]);
    assert_eq!(guest.take(true).unwrap().1, b"x");
    let mut answer = [0; 64];
    let count = host.read(&mut answer).unwrap();
    assert!(protocol::vsock::is_ok(&answer[..count - 1]));
    // Paused and resumed, the stream goes on.
    let handler = machine.events.take(machine.id).unwrap();
    assert_eq!(handler.queues().len(), 3);
    host.write_all(b"while paused").unwrap();
    machine.events.add(handler, Box::new(|error| panic!("{error}")));
    assert_eq!(guest.take(true).unwrap().1, b"while paused");
}

#[test]
fn a_restored_device_resets_the_transport() {
    let (_machine, _, device) = boot(None);
    let saved = device.save();
    let (_machine, mut guest, _) = boot(Some(&saved));
    guest.event.offer(0, 8, WRITE);
    assert_eq!(guest.event.wait(), (0, 4));
    let event: u32 = guest.event.memory.read_obj(guest.event.buffer(0)).unwrap();
    assert_eq!(event, TRANSPORT_RESET);
    // Nothing to reset when the driver had not run.
    let mut fresh = Vsock::new(None, Arc::new(|_, _| false)).unwrap();
    let state = fresh.save();
    fresh.restore(&state).unwrap();
    assert_eq!(fresh.save(), state);
    assert!(fresh.restore(b"\xff").is_err());
}

#[test]
fn bad_chains_come_back_and_a_broken_ring_stops_the_device() {
    let (machine, mut guest, _) = boot(None);
    guest.fill();
    // Too short, device-writable, payload missing.
    guest.tx.offer(0, 10, 0);
    assert_eq!(guest.tx.wait(), (0, 0));
    guest.tx.offer(0, 100, WRITE);
    assert_eq!(guest.tx.wait(), (0, 0));
    let header = Header { len: 5000, ..Header::default() };
    guest.tx.memory.write_slice(&header.encode(), guest.tx.buffer(0)).unwrap();
    guest.tx.offer(0, 100, 0);
    assert_eq!(guest.tx.wait(), (0, 0));
    // Still alive.
    guest.send(op::REQUEST, (1, 2), 0, &[]);
    assert_eq!(guest.take(true).unwrap().0.op, op::RESPONSE);
    // An index that ran away.
    let at = GuestAddress(guest.tx.base + Ring::AVAIL + 2);
    guest.tx.memory.write_obj(guest.tx.avail.wrapping_add(1000), at).unwrap();
    guest.tx.kick.write(1).unwrap();
    let error = machine.failures.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(error.device, "vsock");
}
