//! One stream between a host socket and a guest socket, as a state machine that
//! knows neither epoll nor rings: packets and readiness go in, packets come out.
//!
//! ```text
//!            REQUEST to guest          RESPONSE, or we granted the guest's REQUEST
//!  requested ---------------> waiting ------------------------> established
//!      |      RST, timeout, host gone                                |
//!      +---------------------------+          SHUTDOWN(both), RST, violation
//!                                  v                                 v
//!                              finished <--- backlog written --- lingering
//! ```
//!
//! *Lingering*: the guest is done, what it wrote before is still on its way to a
//! slow host reader. The ports are free again meanwhile.

use std::io::{self, ErrorKind};
use std::net::Shutdown;

use vm_memory::VolatileSlice;

use super::backlog::Backlog;
use super::credit::Credit;
use super::packet::{Header, TYPE_STREAM, after, op, shutdown, total};
use protocol::vsock::{GUEST_CID, HOST_CID};

/// The host's end: a non-blocking stream socket, or its double in tests.
pub trait HostStream {
    /// As read(2) of a non-blocking socket.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there now.
    fn take(&mut self, into: &mut VolatileSlice) -> io::Result<usize>;
    /// As write(2) of a non-blocking socket, without SIGPIPE.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room now.
    fn put(&mut self, from: &VolatileSlice) -> io::Result<usize>;
    /// As shutdown(2).
    fn half_close(&mut self, how: Shutdown);
}

/// What names a connection: (port on the host, port in the guest).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    /// Port on the host.
    pub host: u32,
    /// Port in the guest.
    pub guest: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Our REQUEST was not sent yet.
    Requested,
    /// The guest has not answered our REQUEST.
    Waiting,
    /// Data flows.
    Established,
    /// The guest is done; see the module.
    Lingering,
}

/// Packets that are due beside data.
#[derive(Debug, Default)]
struct Due {
    response: bool,
    reset: bool,
    credit: bool,
}

/// See the module.
pub struct Connection<S> {
    stream: S,
    ports: Ports,
    state: State,
    due: Due,
    credit: Credit,
    backlog: Backlog,
    /// The stream may have something to read: no read has said otherwise since
    /// the last event.
    readable: bool,
    /// The host closed its end altogether.
    hung_up: bool,
    /// Everything that the host wrote was read.
    host_ended: bool,
    /// The host reads no more.
    host_deaf: bool,
    /// [`shutdown`] flags from the guest, and those that we sent.
    guest_shut: u32,
    told_shut: u32,
    /// A CREDIT_REQUEST is under way.
    credit_asked: bool,
}

impl<S: HostStream> Connection<S> {
    /// A connection that the host asks for.
    pub fn request(stream: S, ports: Ports) -> Self {
        Self::new(stream, ports, State::Requested)
    }

    /// A connection that the guest asked for with `request`.
    pub fn grant(stream: S, ports: Ports, request: &Header) -> Self {
        let mut connection = Self::new(stream, ports, State::Established);
        connection.credit.learn(request);
        connection.due.response = true;
        connection
    }

    fn new(stream: S, ports: Ports, state: State) -> Self {
        Connection {
            stream,
            ports,
            state,
            due: Due::default(),
            credit: Credit::default(),
            backlog: Backlog::default(),
            readable: true,
            hung_up: false,
            host_ended: false,
            host_deaf: false,
            guest_shut: 0,
            told_shut: 0,
            credit_asked: false,
        }
    }

    /// The ports.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The host's end.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Gives the host's end back.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// The guest has not answered yet.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Requested | State::Waiting)
    }

    /// The guest knows nothing of the connection any more: the ports are free.
    pub fn is_detached(&self) -> bool {
        self.state == State::Lingering && !self.due.reset
    }

    /// Nothing is left to do: close the stream.
    pub fn is_finished(&self) -> bool {
        self.is_detached() && (self.backlog.is_empty() || self.host_deaf)
    }

    /// Whether to be told when the stream takes more.
    pub fn wants_write(&self) -> bool {
        !self.backlog.is_empty() && !self.host_deaf
    }

    /// The host's end became ready.
    pub fn host_ready(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        self.hung_up |= hung_up;
        if hung_up && self.is_waiting() {
            self.abandon();
        }
        if writable {
            self.flush();
        }
    }

    /// The guest did not answer in time, or nobody wants the answer any more.
    pub fn abandon(&mut self) {
        let asked = self.state == State::Waiting;
        self.leave();
        self.due.reset = asked;
    }

    /// Takes a packet of the guest.
    pub fn guest_packet(&mut self, header: &Header, payload: &[VolatileSlice]) {
        match (self.state, header.op) {
            // Late packets of a connection that is being reset.
            (State::Lingering, _) => {}
            (_, op::RST) => self.leave(),
            (State::Waiting, op::RESPONSE) => {
                self.state = State::Established;
                self.credit.learn(header);
                self.backlog.greet(format!("OK {}\n", self.ports.host).as_bytes());
                self.flush();
            }
            (State::Established, op::RW) => self.data(header, payload),
            (State::Established, op::CREDIT_UPDATE) => self.learn(header),
            (State::Established, op::CREDIT_REQUEST) => {
                self.learn(header);
                self.due.credit = true;
            }
            (State::Established, op::SHUTDOWN) => {
                self.learn(header);
                self.guest_shuts(header.flags & shutdown::BOTH);
            }
            _ => self.violation(),
        }
    }

    fn learn(&mut self, header: &Header) {
        self.credit.learn(header);
        self.credit_asked = false;
    }

    fn data(&mut self, header: &Header, payload: &[VolatileSlice]) {
        self.learn(header);
        let len = total(payload);
        if self.guest_shut & shutdown::SEND != 0 || self.credit.receive(len).is_err() {
            return self.violation();
        }
        let mut done = 0;
        if self.backlog.is_empty() {
            for slice in payload {
                match self.write(slice) {
                    Some(count) => {
                        done += count;
                        if count < slice.len() {
                            break;
                        }
                    }
                    None => break,
                }
            }
            self.credit.forward(done);
        }
        if self.host_deaf {
            // Nobody will read it: gone, and its room is free again.
            return self.credit.forward(len - done);
        }
        for piece in after(payload, done).flatten() {
            self.backlog.push(&piece);
        }
    }

    /// Writes once; `None` when nothing was taken.
    fn write(&mut self, slice: &VolatileSlice) -> Option<usize> {
        if self.host_deaf {
            return None;
        }
        loop {
            match self.stream.put(slice) {
                Ok(count) => return Some(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(_) => {
                    self.host_deaf = true;
                    return None;
                }
            }
        }
    }

    /// Writes what waits in the backlog.
    fn flush(&mut self) {
        while !self.backlog.is_empty() && !self.host_deaf {
            let mut backlog = std::mem::take(&mut self.backlog);
            let written = self.write(&backlog.front());
            if let Some(count) = written {
                self.credit.forward(backlog.pop(count));
            }
            self.backlog = backlog;
            if written.is_none_or(|count| count == 0) {
                break;
            }
        }
        if self.host_deaf {
            self.credit.forward(self.backlog.clear());
        }
        if self.backlog.is_empty() && self.guest_shut & shutdown::SEND != 0 {
            self.stream.half_close(Shutdown::Write);
        }
    }

    fn guest_shuts(&mut self, flags: u32) {
        let news = flags & !self.guest_shut;
        self.guest_shut |= flags;
        if news & shutdown::RECEIVE != 0 {
            self.stream.half_close(Shutdown::Read);
        }
        if news & shutdown::SEND != 0 {
            self.flush();
        }
        if self.guest_shut == shutdown::BOTH {
            // 5.10.6.5: both ends are done, so that the connection is reset. The
            // backlog still goes to the host.
            self.state = State::Lingering;
            self.due.reset = true;
        }
    }

    /// The guest is done with the connection.
    fn leave(&mut self) {
        self.guest_shuts(shutdown::BOTH);
        self.state = State::Lingering;
        self.due = Due::default();
    }

    /// The guest did what the specification forbids.
    fn violation(&mut self) {
        self.leave();
        self.due.reset = true;
    }

    fn may_read(&self) -> bool {
        self.state == State::Established
            && self.readable
            && !self.host_ended
            && self.guest_shut & shutdown::RECEIVE == 0
    }

    fn shutdown_due(&self) -> Option<u32> {
        let mut flags = 0;
        if self.host_ended {
            flags |= if self.hung_up { shutdown::BOTH } else { shutdown::SEND };
        }
        if self.host_deaf {
            flags |= shutdown::RECEIVE;
        }
        (self.state == State::Established && flags & !self.told_shut != 0).then_some(flags)
    }

    /// Whether [`Connection::next_packet`] may have one.
    pub fn has_packet(&self) -> bool {
        let reading = self.may_read() && (self.credit.available() > 0 || !self.credit_asked);
        self.due.reset
            || self.state == State::Requested
            || self.state == State::Established
                && (self.due.response
                    || self.due.credit
                    || self.credit.worth_telling()
                    || self.shutdown_due().is_some()
                    || reading)
    }

    /// The next packet for the guest; its payload is put into `room`.
    pub fn next_packet(&mut self, room: &mut [VolatileSlice]) -> Option<Header> {
        let (op, flags, len) = self.next_op(room)?;
        let mut header = Header {
            src_cid: HOST_CID,
            dst_cid: GUEST_CID,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: len as u32,
            kind: TYPE_STREAM,
            op,
            flags,
            ..Header::default()
        };
        self.credit.tell(&mut header);
        Some(header)
    }

    fn next_op(&mut self, room: &mut [VolatileSlice]) -> Option<(u16, u32, usize)> {
        if std::mem::take(&mut self.due.reset) {
            return Some((op::RST, 0, 0));
        }
        if self.state == State::Requested {
            self.state = State::Waiting;
            return Some((op::REQUEST, 0, 0));
        }
        if self.state != State::Established {
            return None;
        }
        if std::mem::take(&mut self.due.response) {
            return Some((op::RESPONSE, 0, 0));
        }
        if self.may_read() {
            let credit = self.credit.available();
            if credit == 0 && !self.credit_asked {
                self.credit_asked = true;
                return Some((op::CREDIT_REQUEST, 0, 0));
            }
            let len = self.read(room, credit);
            if len > 0 {
                self.due.credit = false;
                self.credit.send(len);
                return Some((op::RW, 0, len));
            }
            // A buffer without room for payload must not stop the others.
            self.due.credit |= total(room) == 0;
        }
        if let Some(flags) = self.shutdown_due() {
            self.told_shut = flags;
            return Some((op::SHUTDOWN, flags, 0));
        }
        if std::mem::take(&mut self.due.credit) || self.credit.worth_telling() {
            return Some((op::CREDIT_UPDATE, 0, 0));
        }
        None
    }

    /// Reads at most `limit` bytes into `room`.
    fn read(&mut self, room: &mut [VolatileSlice], limit: usize) -> usize {
        let mut done = 0;
        for slice in room {
            let want = slice.len().min(limit - done);
            let Ok(mut into) = slice.subslice(0, want) else { break };
            if want == 0 {
                break;
            }
            match self.stream.take(&mut into) {
                Ok(0) => self.host_ended = true,
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(_) => {
                    // ECONNRESET: the host closed without reading our bytes.
                    self.host_ended = true;
                    self.host_deaf = true;
                    self.credit.forward(self.backlog.clear());
                }
            }
            if done < want || !self.readable || self.host_ended {
                break;
            }
        }
        done
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
