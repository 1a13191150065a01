//! The running device: pairs of queues, their taps, a timer for the limits, and the control
//! queue (virtio 1.2, section 5.1.6.5), which here only tells how many pairs are used.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use virtio_bindings::virtio_net as net;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::counters::{Counters, Queue};
use super::guard::Guard;
use super::limit::Limiter;
use super::rx::Rx;
use super::state::NetHandlerState;
use super::tap::Tap;
use super::tx::Tx;
use crate::devices::virtio::device::{ActiveQueue, Interrupt, SavedQueue};
use crate::devices::virtio::serve::{Chain, saved, serve};
use crate::event_loop::{Handler, HandlerError, Registration, borrow};
use crate::memory::GrowingRam;

/// Tokens: queues have their own index, taps and the timer follow.
pub(super) const TAP: u64 = 32;
pub(super) const TIMER: u64 = 64;
/// Commands per wake-up.
const CONTROL_BUDGET: u16 = 4;
/// Shortest wait for a limit: the buckets hold more than what comes in the meantime.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
/// How long the driver may not hear of a few small frames that are gone. Most often it finds
/// them itself before that, when an answer comes (virtnet_poll_cleantx in
/// drivers/net/virtio_net.c), and wants no word any more.
const LATER: Duration = SHORTEST_WAIT;

/// Why a queue is not served any further for now.
pub(super) enum Pause {
    /// An event will tell.
    Idle,
    /// Others have their turn first.
    Again,
    /// The limit is reached.
    Throttled(Duration),
}

/// What a queue of either direction works with.
pub(super) struct Lane<'a> {
    pub(super) tap: &'a Tap,
    pub(super) counters: &'a Queue,
    limiter: &'a mut Limiter,
    since: Instant,
}

impl Lane<'_> {
    /// How long the limit keeps the next frame waiting.
    pub(super) fn throttled(&mut self) -> Option<Duration> {
        if self.limiter.is_free() {
            return None;
        }
        let now = self.since.elapsed().as_nanos();
        let wait = self.limiter.wait(u64::try_from(now).unwrap_or(u64::MAX));
        if wait.is_some() {
            self.counters.rate.add(1);
        }
        wait
    }

    /// A frame passed.
    pub(super) fn passed(&mut self, bytes: usize) {
        self.limiter.spend(bytes);
        self.counters.passed(bytes);
    }
}

/// Two queues and a tap's.
pub(super) struct Pair {
    pub(super) rx: Rx,
    pub(super) tx: Tx,
    pub(super) tap: Arc<Tap>,
}

/// See the module.
pub(super) struct NetHandler {
    pub(super) memory: GrowingRam,
    pub(super) interrupt: Arc<dyn Interrupt>,
    /// Those that the driver set up.
    pub(super) pairs: Vec<Pair>,
    /// The first of them, which the driver uses.
    pub(super) active: usize,
    /// Index and queue.
    pub(super) control: Option<(usize, ActiveQueue)>,
    pub(super) features: u64,
    pub(super) guard: Option<Arc<Guard>>,
    pub(super) counters: Arc<Counters>,
    pub(super) to_guest: Limiter,
    pub(super) from_guest: Limiter,
    /// Origin of the limits' clock.
    pub(super) since: Instant,
    pub(super) timer: TimerFd,
    /// For when the timer is set.
    pub(super) armed: Option<Instant>,
    /// Whether a limit waits for it.
    pub(super) limited: bool,
}

/// A timer for the limits, and for word that waits.
pub(super) fn timer() -> nix::Result<TimerFd> {
    TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)
}

impl NetHandler {
    fn receive(&mut self, index: usize, memory: &GuestMemoryMmap) -> Result<(), HandlerError> {
        let Some(pair) = self.pairs[..self.active].get_mut(index) else { return Ok(()) };
        let mut lane = Lane {
            tap: &pair.tap,
            counters: &self.counters.0[index].to_guest,
            limiter: &mut self.to_guest,
            since: self.since,
        };
        let pause = pair.rx.serve(memory, &mut lane).map_err(failed)?;
        let wait = again(pause, &pair.rx.ring)?;
        if pair.rx.due(memory).map_err(failed)? {
            pair.tx.answered();
            self.interrupt.queue(2 * index as u16);
        }
        self.wait(wait)
    }

    fn transmit(&mut self, index: usize, memory: &GuestMemoryMmap) -> Result<(), HandlerError> {
        let Some(pair) = self.pairs[..self.active].get_mut(index) else { return Ok(()) };
        if pair.tx.blocked {
            return Ok(());
        }
        let mut lane = Lane {
            tap: &pair.tap,
            counters: &self.counters.0[index].from_guest,
            limiter: &mut self.from_guest,
            since: self.since,
        };
        let guard = self.guard.as_deref();
        let pause = pair.tx.serve(memory, guard, &mut lane).map_err(failed)?;
        let wait = again(pause, &pair.tx.ring)?;
        let light = pair.tx.light();
        if !light && pair.tx.due(memory).map_err(failed)? {
            self.interrupt.queue(2 * index as u16 + 1);
        }
        self.wait(wait)?;
        if light { self.arm(LATER) } else { Ok(()) }
    }

    /// Tells the driver of all frames that are gone.
    fn tell(&mut self, memory: &GuestMemoryMmap) -> Result<(), HandlerError> {
        for (pair, index) in self.pairs.iter_mut().zip(0..) {
            if pair.tx.due(memory).map_err(failed)? {
                self.interrupt.queue(2 * index + 1);
            }
        }
        Ok(())
    }

    /// Has all queues served after a limit's wait.
    fn wait(&mut self, wait: Option<Duration>) -> Result<(), HandlerError> {
        let Some(wait) = wait else { return Ok(()) };
        self.limited = true;
        self.arm(wait)
    }

    /// Has the timer come after `wait`, if it does not come before.
    fn arm(&mut self, wait: Duration) -> Result<(), HandlerError> {
        let wait = wait.max(SHORTEST_WAIT);
        // A bucket without an end: nobody waits for it.
        let Some(moment) = Instant::now().checked_add(wait) else { return Ok(()) };
        if self.armed.is_some_and(|armed| armed <= moment) {
            return Ok(());
        }
        self.armed = Some(moment);
        let wait = Expiration::OneShot(TimeSpec::from_duration(wait));
        self.timer.set(wait, TimerSetTimeFlags::empty()).map_err(failed)
    }

    /// Serves all queues.
    fn all(&mut self, memory: &GuestMemoryMmap) -> Result<(), HandlerError> {
        for index in 0..self.active {
            self.transmit(index, memory)?;
            self.receive(index, memory)?;
        }
        Ok(())
    }

    fn obey(&mut self) -> Result<(), HandlerError> {
        let memory = self.memory.now();
        let Some((at, ring)) = &mut self.control else { return Ok(()) };
        let (pairs, active) = (&self.pairs, &mut self.active);
        let work = |chain: Chain| answer(&memory, chain, |wanted| use_pairs(pairs, active, wanted));
        serve((*at as u16, ring), &memory, &*self.interrupt, CONTROL_BUDGET, work)
            .map_err(failed)?;
        // Those that are new may have something.
        self.all(&memory)
    }

    /// All descriptors that are watched, with what for and their token.
    fn watched(&self) -> Vec<(BorrowedFd<'_>, EpollFlags, u64)> {
        let input = EpollFlags::EPOLLIN;
        let kick = |ring: &ActiveQueue| borrow(ring.kick.as_raw_fd());
        let mut watched = vec![(self.timer.as_fd(), input, TIMER)];
        for (index, pair) in self.pairs.iter().enumerate() {
            let index = index as u64;
            // By edge: a kick need not be read, and a tap with frames for which there is no
            // buffer costs nothing.
            let edge = input | EpollFlags::EPOLLET;
            watched.push((kick(&pair.rx.ring), edge, 2 * index));
            watched.push((kick(&pair.tx.ring), edge, 2 * index + 1));
            let both = edge | EpollFlags::EPOLLOUT;
            watched.push((pair.tap.as_fd(), both, TAP + index));
        }
        if let Some((index, ring)) = &self.control {
            watched.push((kick(ring), input, *index as u64));
        }
        watched
    }
}

/// Has a queue that has more to do kick itself; gives what it has to wait for.
fn again(pause: Pause, ring: &ActiveQueue) -> Result<Option<Duration>, HandlerError> {
    match pause {
        Pause::Idle => Ok(None),
        Pause::Again => ring.kick.write(1).map_err(failed).map(|()| None),
        Pause::Throttled(wait) => Ok(Some(wait)),
    }
}

/// Has the kernel put frames into the first `wanted` taps' queues, and no others.
fn use_pairs(pairs: &[Pair], active: &mut usize, wanted: usize) -> bool {
    if !(1..=pairs.len()).contains(&wanted) {
        return false;
    }
    let switched = pairs.iter().enumerate().skip(1);
    let switched = switched.map(|(index, pair)| pair.tap.enable(index < wanted));
    let done = switched.fold(true, |done, result| done & result.is_ok());
    if done {
        *active = wanted;
    }
    done
}

/// Does one command and acknowledges it (section 5.1.6.5); gives the bytes written.
fn answer(memory: &GuestMemoryMmap, mut chain: Chain, set: impl FnOnce(usize) -> bool) -> u32 {
    /// Class, command, number of pairs.
    const COMMAND: usize = 4;
    const MAX_DESCRIPTORS: usize = 8;
    let (mut command, mut len, mut acknowledge) = ([0; COMMAND], 0, None);
    for descriptor in chain.by_ref().take(MAX_DESCRIPTORS) {
        if descriptor.is_write_only() {
            acknowledge = Some(descriptor.addr()).filter(|_| descriptor.len() > 0);
            break;
        }
        // Longer ones are of no class that we know.
        let end = len + descriptor.len() as usize;
        let Some(place) = command.get_mut(len..end) else { return 0 };
        if memory.read_slice(place, descriptor.addr()).is_err() {
            return 0;
        }
        len = end;
    }
    let Some(acknowledge) = acknowledge else { return 0 };
    let class = u32::from(command[0]) == net::VIRTIO_NET_CTRL_MQ
        && u32::from(command[1]) == net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
    let wanted = usize::from(u16::from_le_bytes([command[2], command[3]]));
    let done = class && len == COMMAND && set(wanted);
    let status = if done { net::VIRTIO_NET_OK } else { net::VIRTIO_NET_ERR };
    u32::from(memory.write_obj(status as u8, acknowledge).is_ok())
}

impl Handler for NetHandler {
    fn start(&mut self, registration: &Registration) -> Result<(), HandlerError> {
        // Here and not where the device is activated: this thread alone may change a tap.
        if let Some(pair) = self.pairs.first() {
            pair.tap.configure(self.features).map_err(failed)?;
        }
        let active = self.active;
        if !use_pairs(&self.pairs, &mut self.active, active) {
            return Err(failed("a queue of the tap cannot be switched"));
        }
        for (fd, flags, token) in self.watched() {
            registration.watch(fd, flags, token).map_err(failed)?;
        }
        (self.armed, self.limited) = (None, false);
        self.pairs.iter_mut().for_each(|pair| pair.tx.blocked = false);
        let memory = self.memory.now();
        self.all(&memory)
    }

    fn stop(&mut self, registration: &Registration) {
        self.watched().into_iter().for_each(|(fd, ..)| registration.forget(fd));
        // Nobody else would after it. A ring that is broken was reported when it was served.
        let _ = self.tell(&self.memory.now());
    }

    fn ready(
        &mut self,
        token: u64,
        flags: EpollFlags,
        _registration: &Registration,
    ) -> Result<(), HandlerError> {
        if self.control.as_ref().is_some_and(|(index, _)| *index as u64 == token) {
            return self.obey();
        }
        let memory = self.memory.now();
        match token {
            TIMER => {
                let mut count = [0; 8];
                let _ = nix::unistd::read(&self.timer, &mut count);
                self.armed = None;
                self.tell(&memory)?;
                if std::mem::take(&mut self.limited) { self.all(&memory) } else { Ok(()) }
            }
            TAP.. => {
                let index = (token - TAP) as usize;
                if flags.contains(EpollFlags::EPOLLOUT)
                    && let Some(pair) = self.pairs.get_mut(index)
                    && std::mem::take(&mut pair.tx.blocked)
                {
                    self.transmit(index, &memory)?;
                }
                self.receive(index, &memory)
            }
            queue => {
                let index = (queue / 2) as usize;
                if queue % 2 == 0 {
                    self.receive(index, &memory)
                } else {
                    self.transmit(index, &memory)
                }
            }
        }
    }

    fn queues(&self) -> Vec<(usize, SavedQueue)> {
        let mut queues = Vec::new();
        for (index, pair) in self.pairs.iter().enumerate() {
            queues.push((2 * index, pair.rx.saved()));
            queues.push((2 * index + 1, saved(&pair.tx.ring)));
        }
        queues.extend(self.control.as_ref().map(|(index, ring)| (*index, saved(ring))));
        queues
    }

    fn save(&self) -> Vec<u8> {
        let state = NetHandlerState { active: self.active as u16 };
        postcard::to_stdvec(&state).expect("a number")
    }
}

fn failed(error: impl std::fmt::Display) -> HandlerError {
    HandlerError { device: "net", message: error.to_string() }
}
