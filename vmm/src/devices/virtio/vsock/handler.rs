//! The running vsock device: rings and epoll around the [`Muxer`].

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{SockFlag, accept4};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::muxer::{Change, Muxer, OnConnect};
use super::packet::{Buffers, HEADER_SIZE};
use crate::devices::virtio::device::{ActiveQueue, Interrupt, SavedQueue};
use crate::event_loop::{Handler, HandlerError, Registration, borrow};
use crate::memory::GrowingRam;

/// Index of the queue that carries packets to the guest.
pub const RX: usize = 0;
/// Index of the queue that carries packets from the guest.
pub const TX: usize = 1;
/// Index of the queue that carries events to the guest.
pub const EVENT: usize = 2;

/// Tokens; connections follow from [`FIRST_CONNECTION`] on.
const LISTENER: u64 = 3;
const TIMER: u64 = 4;
const FIRST_CONNECTION: u64 = 16;

/// Chains of one ring that are served before other handlers get their turn.
const BUDGET: usize = 256;
/// Host connections that are accepted before others get their turn.
const ACCEPT_BUDGET: usize = 64;
/// How long nothing is accepted after the bound or the kernel refused.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

/// See the module.
pub struct VsockHandler {
    memory: GrowingRam,
    rx: ActiveQueue,
    tx: ActiveQueue,
    event: ActiveQueue,
    interrupt: Arc<dyn Interrupt>,
    muxer: Muxer,
    listener: Option<UnixListener>,
    /// Nothing is accepted before this moment.
    accept_again: Option<Instant>,
    timer: TimerFd,
    /// The moment for which the timer is set.
    armed: Option<Instant>,
    /// The guest must learn that all its connections are gone.
    reset_due: bool,
}

impl VsockHandler {
    pub(super) fn new(
        memory: GrowingRam,
        [rx, tx, event]: [ActiveQueue; 3],
        interrupt: Arc<dyn Interrupt>,
        listener: Option<UnixListener>,
        on_connect: OnConnect,
        reset_due: bool,
    ) -> nix::Result<VsockHandler> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(VsockHandler {
            memory,
            rx,
            tx,
            event,
            interrupt,
            muxer: Muxer::new(FIRST_CONNECTION, on_connect),
            listener,
            accept_again: None,
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            armed: None,
            reset_due,
        })
    }

    /// Serves everything that can be served, within the budget.
    fn pump(&mut self, registration: &Registration) -> Result<(), HandlerError> {
        let memory = self.memory.now();
        self.send_reset(&memory)?;
        self.serve_tx(&memory)?;
        self.serve_rx(&memory)?;
        if self.muxer.takes_packets() {
            // It may have been stalled by refusals that are out now.
            self.serve_tx(&memory)?;
        }
        self.apply(registration)
    }

    /// Takes packets of the guest.
    fn serve_tx(&mut self, memory: &GuestMemoryMmap) -> Result<(), HandlerError> {
        let queue = &mut self.tx.queue;
        let (mut left, mut promised) = (BUDGET, false);
        while self.muxer.takes_packets() {
            let Some(chain) = pop(queue, memory, promised)? else {
                promised = queue.enable_notification(memory).map_err(failed)?;
                if promised {
                    continue;
                }
                break;
            };
            promised = false;
            let head = chain.head_index();
            // A chain that is no packet is given back and forgotten.
            if let Ok((header, buffers)) = Buffers::read(memory, chain) {
                self.muxer.guest_packet(&header, &buffers.payload);
            }
            queue.add_used(memory, head, 0).map_err(failed)?;
            left -= 1;
            if left == 0 {
                rekick(&self.tx)?;
                break;
            }
        }
        if left < BUDGET && self.tx.queue.needs_notification(memory).map_err(failed)? {
            self.interrupt.queue(TX as u16);
        }
        Ok(())
    }

    /// Gives packets to the guest.
    fn serve_rx(&mut self, memory: &GuestMemoryMmap) -> Result<(), HandlerError> {
        let queue = &mut self.rx.queue;
        let (mut left, mut promised) = (BUDGET, false);
        while self.muxer.has_packet() {
            let Some(chain) = pop(queue, memory, promised)? else {
                // Only a starving ring wants to hear of new buffers.
                promised = queue.enable_notification(memory).map_err(failed)?;
                if promised {
                    continue;
                }
                break;
            };
            promised = false;
            let head = chain.head_index();
            let used = match Buffers::write(memory, chain) {
                Err(_) => 0,
                Ok(mut buffers) => {
                    let Some(header) = self.muxer.next_packet(&mut buffers.payload) else {
                        queue.go_to_previous_position();
                        break;
                    };
                    // The room was checked, so that this cannot fail.
                    let _ = buffers.set_header(&header);
                    HEADER_SIZE as u32 + header.len
                }
            };
            queue.add_used(memory, head, used).map_err(failed)?;
            left -= 1;
            if left == 0 {
                rekick(&self.rx)?;
                break;
            }
        }
        if left < BUDGET && self.rx.queue.needs_notification(memory).map_err(failed)? {
            self.interrupt.queue(RX as u16);
        }
        Ok(())
    }

    /// Tells the guest after a restore that no connection survived.
    fn send_reset(&mut self, memory: &GuestMemoryMmap) -> Result<(), HandlerError> {
        if !self.reset_due {
            return Ok(());
        }
        let queue = &mut self.event.queue;
        let Some(mut chain) = pop(queue, memory, false)? else {
            let _ = queue.enable_notification(memory).map_err(failed)?;
            return Ok(());
        };
        let head = chain.head_index();
        let event = TRANSPORT_RESET.to_le_bytes();
        let room = chain.find(|d| d.is_write_only() && d.len() as usize >= event.len());
        let written = room.is_some_and(|d| memory.write_slice(&event, d.addr()).is_ok());
        let used = if written { event.len() as u32 } else { 0 };
        queue.add_used(memory, head, used).map_err(failed)?;
        self.reset_due = !written;
        self.interrupt.queue(EVENT as u16);
        Ok(())
    }

    /// Does with epoll what the muxer asks for, and sets the timer.
    fn apply(&mut self, registration: &Registration) -> Result<(), HandlerError> {
        for change in self.muxer.take_changes() {
            match change {
                Change::Watch(id) => self.watch(registration, id)?,
                Change::Writable(id, on) => {
                    if let Some((socket, _)) = self.muxer.socket(id) {
                        registration.change(socket.as_fd(), interest(on), id).map_err(failed)?;
                    }
                }
                Change::Close(stream) => registration.forget(stream.as_fd()),
            }
        }
        self.set_timer()
    }

    fn watch(&self, registration: &Registration, id: u64) -> Result<(), HandlerError> {
        let Some((socket, room)) = self.muxer.socket(id) else { return Ok(()) };
        registration.watch(socket.as_fd(), interest(room), id).map_err(failed)
    }

    fn set_timer(&mut self) -> Result<(), HandlerError> {
        let now = Instant::now();
        let next = [self.muxer.expire(now), self.accept_again].into_iter().flatten().min();
        if next == self.armed {
            return Ok(());
        }
        self.armed = next;
        match next {
            None => self.timer.unset(),
            Some(moment) => {
                // Zero would disarm it.
                let wait = moment.saturating_duration_since(now).max(Duration::from_millis(1));
                let wait = Expiration::OneShot(TimeSpec::from_duration(wait));
                self.timer.set(wait, TimerSetTimeFlags::empty())
            }
        }
        .map_err(failed)
    }

    fn accept(&mut self, registration: &Registration) -> Result<(), HandlerError> {
        let Some(listener) = &self.listener else { return Ok(()) };
        let now = Instant::now();
        for _ in 0..ACCEPT_BUDGET {
            let full = !self.muxer.has_room();
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let result =
                if full { Err(nix::Error::EMFILE) } else { accept4(listener.as_raw_fd(), flags) };
            match result {
                Ok(fd) => self.muxer.accept(adopt(fd), now),
                Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => {}
                Err(nix::Error::EAGAIN) => break,
                Err(_) => {
                    // Out of something: those who knock wait in the backlog.
                    registration.forget(listener.as_fd());
                    self.accept_again = Some(now + ACCEPT_PAUSE);
                    break;
                }
            }
        }
        Ok(())
    }

    fn timer(&mut self, registration: &Registration) -> Result<(), HandlerError> {
        // The timer is non-blocking; what it counts does not matter.
        let mut count = [0; 8];
        let _ = nix::unistd::read(&self.timer, &mut count);
        self.armed = None;
        if self.accept_again.is_some_and(|moment| moment <= Instant::now()) {
            self.accept_again = None;
            self.listen(registration)?;
        }
        Ok(())
    }

    fn listen(&self, registration: &Registration) -> Result<(), HandlerError> {
        match &self.listener {
            Some(listener) => {
                registration.watch(listener.as_fd(), EpollFlags::EPOLLIN, LISTENER).map_err(failed)
            }
            None => Ok(()),
        }
    }

    fn rings(&self) -> [(usize, &ActiveQueue); 3] {
        [(RX, &self.rx), (TX, &self.tx), (EVENT, &self.event)]
    }
}

impl Handler for VsockHandler {
    fn start(&mut self, registration: &Registration) -> Result<(), HandlerError> {
        for (index, ring) in self.rings() {
            registration
                .watch(borrow(ring.kick.as_raw_fd()), EpollFlags::EPOLLIN, index as u64)
                .map_err(failed)?;
        }
        registration.watch(self.timer.as_fd(), EpollFlags::EPOLLIN, TIMER).map_err(failed)?;
        self.accept_again = None;
        self.listen(registration)?;
        for id in self.muxer.ids() {
            self.watch(registration, id)?;
        }
        self.pump(registration)
    }

    fn stop(&mut self, registration: &Registration) {
        // Whatever the muxer has left to close is closed first.
        let _ = self.apply(registration);
        for (_, ring) in self.rings() {
            registration.forget(borrow(ring.kick.as_raw_fd()));
        }
        registration.forget(self.timer.as_fd());
        if let Some(listener) = &self.listener {
            registration.forget(listener.as_fd());
        }
        for id in self.muxer.ids() {
            if let Some((socket, _)) = self.muxer.socket(id) {
                registration.forget(socket.as_fd());
            }
        }
    }

    fn ready(
        &mut self,
        token: u64,
        flags: EpollFlags,
        registration: &Registration,
    ) -> Result<(), HandlerError> {
        match token {
            LISTENER => self.accept(registration)?,
            TIMER => self.timer(registration)?,
            ring if ring < LISTENER => {
                let kick = &self.rings()[ring as usize].1.kick;
                let _ = kick.read();
            }
            id => {
                let gone = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                let readable = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | gone;
                let writable = EpollFlags::EPOLLOUT | gone;
                self.muxer.host_ready(
                    id,
                    flags.intersects(readable),
                    flags.intersects(writable),
                    flags.intersects(EpollFlags::EPOLLHUP),
                );
            }
        }
        self.pump(registration)
    }

    fn queues(&self) -> Vec<(usize, SavedQueue)> {
        self.rings().map(|(index, ring)| (index, ring.queue.state().into())).into()
    }

    /// Empty: connections end with the process that holds their sockets. See
    /// [`super::state`].
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// Edge-triggered, so that a stream which waits for credit or for an rx buffer
/// costs neither wake-ups nor epoll_ctl.
fn interest(room: bool) -> EpollFlags {
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    if room { flags | EpollFlags::EPOLLOUT } else { flags }
}

#[allow(unsafe_code)]
fn adopt(fd: i32) -> UnixStream {
    // SAFETY: accept4 just made this descriptor and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }.into()
}

/// The next chain. A ring whose index makes no sense, or promises a chain that
/// cannot be read, is an error, not an empty ring: it would be polled for ever.
fn pop<'a>(
    queue: &mut Queue,
    memory: &'a GuestMemoryMmap,
    promised: bool,
) -> Result<Option<DescriptorChain<&'a GuestMemoryMmap>>, HandlerError> {
    let chain = queue.iter(memory).map_err(failed)?.next();
    if promised && chain.is_none() {
        return Err(failed("the available ring cannot be read"));
    }
    Ok(chain)
}

fn rekick(ring: &ActiveQueue) -> Result<(), HandlerError> {
    ring.kick.write(1).map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> HandlerError {
    HandlerError { device: "vsock", message: error.to_string() }
}

#[cfg(test)]
#[path = "handler_tests.rs"]
mod tests;
