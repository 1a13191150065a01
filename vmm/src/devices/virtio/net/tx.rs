//! From the guest's buffers to the tap (virtio 1.2, section 5.1.6.2).

use virtio_queue::{Error, QueueT};
use vm_memory::GuestMemoryMmap;
use vm_memory::volatile_memory::VolatileSlice;

use super::guard::{CHECKED, Guard};
use super::handler::{Lane, Pause};
use super::header;
use super::used::{Publisher, Used};
use super::view::View;
use super::{ETHERNET, HEADER, MAX_FRAME};
use crate::devices::virtio::device::ActiveQueue;

/// Frames before others get their turn.
const BUDGET: usize = 64;
/// Slices that most frames have at most.
const USUAL_SLICES: usize = 20;
/// Bytes of frames that are gone, of which the driver need not hear at once: a small part of what
/// a socket may have on the way.
const LIGHT: usize = 8 << 10;
/// The part of the ring of which the same holds: the driver has enough of it left.
const LIGHT_PART: u16 = 4;

/// The transmit queue of a pair.
pub(super) struct Tx {
    pub(super) ring: ActiveQueue,
    used: Publisher,
    features: u64,
    /// The tap takes nothing at the moment.
    pub(super) blocked: bool,
    /// Bytes that are gone since the driver was last told.
    untold: usize,
}

/// What the driver wants to be sent.
struct Frame<'a, 'm> {
    /// Copies of the header and of the first bytes, of which `copied` there are.
    head: [u8; HEADER + CHECKED],
    copied: usize,
    /// Where the others are.
    rest: &'a [VolatileSlice<'m>],
    /// Bytes without the header.
    len: usize,
}

/// What became of a frame.
enum Outcome {
    /// Sent or dropped, and counted.
    Done,
    /// The tap takes no more; it was not sent.
    Blocked,
}

impl Tx {
    pub(super) fn new(ring: ActiveQueue, features: u64) -> Tx {
        Tx { used: Publisher::new(&ring.queue), ring, features, blocked: false, untold: 0 }
    }

    /// Sends as long as there are frames.
    pub(super) fn serve(
        &mut self,
        memory: &GuestMemoryMmap,
        guard: Option<&Guard>,
        lane: &mut Lane,
    ) -> Result<Pause, Error> {
        let mut view = View::new(&self.ring.queue, memory)?;
        let mut batch = Vec::with_capacity(BUDGET);
        let pause = self.send(&mut view, guard, lane, &mut batch)?;
        self.used.publish(&mut self.ring.queue, &view, &batch)?;
        Ok(pause)
    }

    /// Whether there is something to tell the driver that can wait for a moment, as cards do
    /// that moderate their interrupts: it frees memory then and does nothing else.
    pub(super) fn light(&self) -> bool {
        let queue = &self.ring.queue;
        let frames = self.used.untold(queue);
        !self.blocked && (1..=LIGHT).contains(&self.untold) && frames < queue.size() / LIGHT_PART
    }

    /// The driver is interrupted for the other queue of the pair. It looks at this one as well
    /// when it is Linux: that what is gone may wait again costs no other driver more than the
    /// same moment.
    pub(super) fn answered(&mut self) {
        self.untold = 0;
    }

    /// Whether the driver is to be interrupted.
    pub(super) fn due(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Error> {
        self.untold = 0;
        self.used.due(&self.ring.queue, memory)
    }

    fn send<'m>(
        &mut self,
        view: &mut View<'m>,
        guard: Option<&Guard>,
        lane: &mut Lane,
        batch: &mut Vec<Used>,
    ) -> Result<Pause, Error> {
        let queue = &mut self.ring.queue;
        let (mut promised, mut slices) = (false, Vec::with_capacity(USUAL_SLICES));
        while batch.len() < BUDGET.min(usize::from(queue.size())) {
            if let Some(wait) = lane.throttled() {
                return Ok(Pause::Throttled(wait));
            }
            let Some(head) = view.take(queue)? else {
                if promised {
                    return Err(Error::InvalidAvailRingIndex);
                }
                promised = view.watch(queue)?;
                if !promised {
                    return Ok(Pause::Idle);
                }
                continue;
            };
            promised = false;
            slices.clear();
            let frame = Frame::take(view, head, &mut slices);
            let len = frame.as_ref().map_or(0, |frame| frame.len);
            match send(frame, guard, lane, self.features) {
                Outcome::Done => {
                    batch.push((head, 0));
                    self.untold += len;
                }
                Outcome::Blocked => {
                    queue.set_next_avail(queue.next_avail().wrapping_sub(1));
                    self.blocked = true;
                    return Ok(Pause::Idle);
                }
            }
        }
        Ok(Pause::Again)
    }
}

/// Sends a frame, or does not.
fn send(frame: Option<Frame>, guard: Option<&Guard>, lane: &mut Lane, features: u64) -> Outcome {
    let Some(mut frame) = frame else {
        lane.counters.malformed.add(1);
        return Outcome::Done;
    };
    let (header, first) = frame.head[..frame.copied].split_at(HEADER);
    let fixed = match guard.map(|guard| guard.check(first)) {
        None => ETHERNET,
        Some(Some(fixed)) => fixed,
        Some(None) => {
            lane.counters.guard.add(1);
            return Outcome::Done;
        }
    };
    let header: &[u8; HEADER] = header.as_array().expect("it was split there");
    let Ok(header) = header::checked(header, frame.len, fixed, features) else {
        lane.counters.malformed.add(1);
        return Outcome::Done;
    };
    frame.head[..HEADER].copy_from_slice(&header);
    loop {
        match lane.tap.write(&frame.head[..frame.copied], frame.rest) {
            Ok(_) => lane.passed(frame.len),
            Err(nix::Error::EINTR) => continue,
            Err(nix::Error::EAGAIN) => return Outcome::Blocked,
            Err(_) => lane.counters.tap.add(1),
        }
        return Outcome::Done;
    }
}

impl<'a, 'm> Frame<'a, 'm> {
    /// The frame in a chain, whose buffers `slices` are to hold; none when it is no chain for
    /// reading, or has too few or too many bytes.
    fn take(
        view: &View<'m>,
        chain: u16,
        slices: &'a mut Vec<VolatileSlice<'m>>,
    ) -> Option<Frame<'a, 'm>> {
        let bytes = view.gather(chain, false, HEADER + MAX_FRAME, slices).ok()?;
        if bytes < HEADER + ETHERNET {
            return None;
        }
        let mut head = [0; HEADER + CHECKED];
        let (copied, whole) = copy(slices, &mut head);
        Some(Frame { head, copied, rest: &slices[whole..], len: bytes - HEADER })
    }
}

/// Copies the first bytes of `slices` to `head`, and takes them off what they lie in: gives
/// how many there were, and of how many slices nothing is left.
fn copy(slices: &mut [VolatileSlice], head: &mut [u8]) -> (usize, usize) {
    let (mut copied, mut whole) = (0, 0);
    for slice in slices {
        let count = slice.copy_to(&mut head[copied..]);
        copied += count;
        match slice.offset(count) {
            Ok(rest) if !rest.is_empty() => {
                *slice = rest;
                break;
            }
            _ => whole += 1,
        }
    }
    (copied, whole)
}
