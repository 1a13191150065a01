//! All connections of one guest: which packet belongs to whom, and whose turn it
//! is to send. Knows sockets, but neither rings nor epoll: what to watch comes
//! out as [`Change`]s.
//!
//! Everything is bounded: connections, those that the guest made, refusals that
//! wait for an rx buffer. At the last bound the tx ring is left alone until the
//! guest takes what is due (virtio 1.2, 5.10.6.2 allows exactly that).

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use protocol::vsock::{GUEST_CID, HOST_CID};
use vm_memory::{ReadVolatile, VolatileSlice, WriteVolatile};

use super::connection::{Connection, HostStream, Ports};
use super::greeting::{Greeting, Progress};
use super::packet::{Header, TYPE_STREAM, op};

/// Most connections at once.
pub const MAX_CONNECTIONS: usize = 1024;
/// Most of them that the guest may have made, so that a storm of its own cannot
/// keep the host from connecting.
pub const MAX_BY_GUEST: usize = 256;
/// Most refusals that wait for an rx buffer.
const MAX_REFUSALS: usize = 128;
/// How long the host may take for its first line, and the guest for its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Ports that we use for the host's end, apart from well-known ones.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// Takes one end of a stream that the guest wants to `port` of the host; false
/// refuses.
pub type OnConnect = Arc<dyn Fn(u32, OwnedFd) -> bool + Send + Sync>;

/// Something to do with epoll, in this order.
pub enum Change {
    /// Watch the connection's socket, edge-triggered.
    Watch(u64),
    /// Watch it for room as well, or no longer.
    Writable(u64, bool),
    /// The connection is gone; stop watching and close.
    Close(UnixStream),
}

impl HostStream for UnixStream {
    fn take(&mut self, into: &mut VolatileSlice) -> io::Result<usize> {
        self.read_volatile(into).map_err(io_error)
    }

    // SIGPIPE is ignored, as Rust's start-up does in every program.
    fn put(&mut self, from: &VolatileSlice) -> io::Result<usize> {
        self.write_volatile(from).map_err(io_error)
    }

    fn half_close(&mut self, how: Shutdown) {
        // It fails only when the peer is gone, which reads and writes tell too.
        let _ = self.shutdown(how);
    }
}

/// By fcntl(2): std would use an ioctl(2), which the jail does not allow.
pub(super) fn set_nonblocking(socket: &impl AsFd) -> nix::Result<()> {
    fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

fn io_error(error: vm_memory::VolatileMemoryError) -> io::Error {
    match error {
        vm_memory::VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}

struct Link {
    connection: Connection<UnixStream>,
    by_guest: bool,
    /// It stands in the queue of those that may have a packet.
    queued: bool,
    watches_room: bool,
}

enum Entry {
    Greeting(Greeting),
    Link(Box<Link>),
}

/// See the module.
pub struct Muxer {
    entries: HashMap<u64, Entry>,
    by_ports: HashMap<Ports, u64>,
    /// Entries that must get on before a moment, oldest first. The patience is
    /// the same for all, so that order of arrival is order of expiry.
    deadlines: VecDeque<(Instant, u64)>,
    queue: VecDeque<u64>,
    refusals: VecDeque<Header>,
    changes: Vec<Change>,
    next_id: u64,
    next_port: u32,
    by_guest: usize,
    on_connect: OnConnect,
}

impl Muxer {
    /// A muxer whose connections get ids from `first_id` on.
    pub fn new(first_id: u64, on_connect: OnConnect) -> Muxer {
        Muxer {
            entries: HashMap::new(),
            by_ports: HashMap::new(),
            deadlines: VecDeque::new(),
            queue: VecDeque::new(),
            refusals: VecDeque::new(),
            changes: Vec::new(),
            next_id: first_id,
            next_port: FIRST_PORT,
            by_guest: 0,
            on_connect,
        }
    }

    /// What to do with epoll after any other call.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// The socket behind `id`, and whether to watch it for room.
    pub fn socket(&self, id: u64) -> Option<(&UnixStream, bool)> {
        match self.entries.get(&id)? {
            Entry::Greeting(greeting) => Some((&greeting.stream, false)),
            Entry::Link(link) => Some((link.connection.stream(), link.watches_room)),
        }
    }

    /// All ids.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.entries.keys().copied()
    }

    /// Whether another host connection can be taken.
    pub fn has_room(&self) -> bool {
        self.entries.len() < MAX_CONNECTIONS
    }

    /// Takes a host connection, a non-blocking socket.
    pub fn accept(&mut self, stream: UnixStream, now: Instant) {
        let id = self.new_id();
        self.entries.insert(id, Entry::Greeting(Greeting::new(stream)));
        self.deadlines.push_back((now + PATIENCE, id));
        self.changes.push(Change::Watch(id));
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// A socket became ready.
    pub fn host_ready(&mut self, id: u64, readable: bool, writable: bool, hung_up: bool) {
        match self.entries.get_mut(&id) {
            // It may be gone while its event was under way.
            None => {}
            Some(Entry::Link(link)) => {
                link.connection.host_ready(readable, writable, hung_up);
                self.settle(id);
            }
            Some(Entry::Greeting(greeting)) => match greeting.advance() {
                Progress::More => {}
                Progress::Bad => self.remove(id),
                Progress::Port(port) => self.connect(id, port),
            },
        }
    }

    /// The host said where it wants to go.
    fn connect(&mut self, id: u64, port: u32) {
        let Some(Entry::Greeting(greeting)) = self.entries.remove(&id) else { return };
        let ports = Ports { host: self.free_port(port), guest: port };
        let connection = Connection::request(greeting.stream, ports);
        self.insert(id, connection, false);
    }

    /// At most [`MAX_CONNECTIONS`] ports are taken, so that this ends.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = if host == LAST_PORT { FIRST_PORT } else { host + 1 };
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    fn insert(&mut self, id: u64, connection: Connection<UnixStream>, by_guest: bool) {
        self.by_ports.insert(connection.ports(), id);
        self.by_guest += usize::from(by_guest);
        let link = Link { connection, by_guest, queued: false, watches_room: false };
        self.entries.insert(id, Entry::Link(Box::new(link)));
        self.settle(id);
    }

    /// Whether the guest's packets may be taken now.
    pub fn takes_packets(&self) -> bool {
        self.refusals.len() < MAX_REFUSALS
    }

    /// Takes a packet of the guest. Its answers bound this: see
    /// [`Muxer::takes_packets`].
    pub fn guest_packet(&mut self, header: &Header, payload: &[VolatileSlice]) {
        // 5.10.6.4: packets of another source are none of this guest's.
        if header.src_cid != GUEST_CID {
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let id = self.by_ports.get(&ports).copied();
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            return self.refuse(header);
        }
        match id.and_then(|id| Some((id, self.entries.get_mut(&id)?))) {
            Some((id, Entry::Link(link))) => {
                link.connection.guest_packet(header, payload);
                self.settle(id);
            }
            _ if header.op == op::REQUEST => self.guest_connects(ports, header),
            _ => self.refuse(header),
        }
    }

    fn refuse(&mut self, header: &Header) {
        // An RST is never answered, or two ends would do so for ever.
        if header.op != op::RST && self.takes_packets() {
            self.refusals.push_back(header.refusal());
        }
    }

    fn guest_connects(&mut self, ports: Ports, header: &Header) {
        if self.by_guest >= MAX_BY_GUEST || !self.has_room() {
            return self.refuse(header);
        }
        let Some(ours) = self.offer(ports.host) else { return self.refuse(header) };
        let id = self.new_id();
        self.insert(id, Connection::grant(ours, ports, header), true);
        self.changes.push(Change::Watch(id));
    }

    /// Makes a socket pair and gives one end away.
    fn offer(&self, port: u32) -> Option<UnixStream> {
        let (ours, theirs) = UnixStream::pair().ok()?;
        set_nonblocking(&ours).ok()?;
        (self.on_connect)(port, theirs.into()).then_some(ours)
    }

    /// Whether a packet may be due to the guest.
    pub fn has_packet(&self) -> bool {
        !self.refusals.is_empty() || !self.queue.is_empty()
    }

    /// The next packet for the guest, each connection in its turn.
    pub fn next_packet(&mut self, room: &mut [VolatileSlice]) -> Option<Header> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(refusal);
        }
        while let Some(id) = self.queue.pop_front() {
            let Some(Entry::Link(link)) = self.entries.get_mut(&id) else { continue };
            link.queued = false;
            let header = link.connection.next_packet(room);
            self.settle(id);
            if header.is_some() {
                return header;
            }
        }
        None
    }

    /// Gives up on those who took too long. Gives the moment of the next check.
    pub fn expire(&mut self, now: Instant) -> Option<Instant> {
        while let Some(&(deadline, id)) = self.deadlines.front() {
            match self.entries.get_mut(&id) {
                Some(Entry::Greeting(_)) if deadline <= now => self.remove(id),
                Some(Entry::Link(link)) if link.connection.is_waiting() => {
                    if deadline > now {
                        return Some(deadline);
                    }
                    link.connection.abandon();
                    self.settle(id);
                }
                Some(Entry::Greeting(_)) => return Some(deadline),
                _ => {}
            }
            self.deadlines.pop_front();
        }
        None
    }

    /// Follows up a change of a connection's state.
    fn settle(&mut self, id: u64) {
        let Some(Entry::Link(link)) = self.entries.get_mut(&id) else { return };
        let connection = &link.connection;
        if connection.is_detached() && self.by_ports.get(&connection.ports()) == Some(&id) {
            self.by_ports.remove(&connection.ports());
        }
        if connection.is_finished() {
            return self.remove(id);
        }
        if connection.has_packet() && !link.queued {
            link.queued = true;
            self.queue.push_back(id);
        }
        if connection.wants_write() != link.watches_room {
            link.watches_room = !link.watches_room;
            self.changes.push(Change::Writable(id, link.watches_room));
        }
    }

    fn remove(&mut self, id: u64) {
        let stream = match self.entries.remove(&id) {
            None => return,
            Some(Entry::Greeting(greeting)) => greeting.stream,
            Some(Entry::Link(link)) => {
                self.by_guest -= usize::from(link.by_guest);
                link.connection.into_stream()
            }
        };
        self.changes.push(Change::Close(stream));
    }
}

#[cfg(test)]
#[path = "muxer_tests.rs"]
mod tests;
