//! From the guest's buffers to the tap (virtio 1.2, section 5.1.6.2).

use virtio_queue::{Error, QueueOwnedT, QueueT};
use vm_memory::volatile_memory::VolatileSlice;
use vm_memory::{GuestMemory, GuestMemoryMmap};

use super::guard::{CHECKED, Guard};
use super::handler::{Lane, Pause};
use super::header;
use super::used::{Publisher, Used};
use super::{ETHERNET, HEADER, MAX_FRAME};
use crate::devices::virtio::device::ActiveQueue;
use crate::devices::virtio::serve::Chain;

/// Frames before others get their turn.
const BUDGET: usize = 64;
/// Most descriptors of a frame; Linux uses up to 19 (MAX_SKB_FRAGS and two).
const MAX_DESCRIPTORS: usize = 64;

/// The transmit queue of a pair.
pub(super) struct Tx {
    pub(super) ring: ActiveQueue,
    used: Publisher,
    features: u64,
    /// The tap takes nothing at the moment.
    pub(super) blocked: bool,
}

/// What the driver wants to be sent.
struct Frame<'a> {
    /// Copies of the header and of the first bytes, of which `copied` there are.
    head: [u8; HEADER + CHECKED],
    copied: usize,
    /// Where the others are.
    rest: Vec<VolatileSlice<'a>>,
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
        Tx { used: Publisher::new(&ring.queue), ring, features, blocked: false }
    }

    /// Sends as long as there are frames.
    pub(super) fn serve(
        &mut self,
        memory: &GuestMemoryMmap,
        guard: Option<&Guard>,
        lane: &mut Lane,
    ) -> Result<Pause, Error> {
        let mut batch = Vec::new();
        let pause = self.send(memory, guard, lane, &mut batch)?;
        self.used.publish(&mut self.ring.queue, memory, &batch)?;
        Ok(pause)
    }

    /// Whether the driver is to be interrupted.
    pub(super) fn due(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Error> {
        self.used.due(&self.ring.queue, memory)
    }

    fn send(
        &mut self,
        memory: &GuestMemoryMmap,
        guard: Option<&Guard>,
        lane: &mut Lane,
        batch: &mut Vec<Used>,
    ) -> Result<Pause, Error> {
        let queue = &mut self.ring.queue;
        let mut promised = false;
        while batch.len() < BUDGET.min(usize::from(queue.size())) {
            if let Some(wait) = lane.throttled() {
                return Ok(Pause::Throttled(wait));
            }
            let Some(chain) = queue.iter(memory)?.next() else {
                if promised {
                    return Err(Error::InvalidAvailRingIndex);
                }
                promised = queue.enable_notification(memory)?;
                if !promised {
                    return Ok(Pause::Idle);
                }
                continue;
            };
            promised = false;
            let head = chain.head_index();
            match send(memory, guard, lane, chain, self.features) {
                Outcome::Done => batch.push((head, 0)),
                Outcome::Blocked => {
                    queue.go_to_previous_position();
                    self.blocked = true;
                    return Ok(Pause::Idle);
                }
            }
        }
        Ok(Pause::Again)
    }
}

/// Sends the frame of one chain, or does not.
fn send(
    memory: &GuestMemoryMmap,
    guard: Option<&Guard>,
    lane: &mut Lane,
    chain: Chain,
    features: u64,
) -> Outcome {
    let Some(mut frame) = Frame::take(memory, chain) else {
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
        match lane.tap.write(&frame.head[..frame.copied], &frame.rest) {
            Ok(_) => lane.passed(frame.len),
            Err(nix::Error::EINTR) => continue,
            Err(nix::Error::EAGAIN) => return Outcome::Blocked,
            Err(_) => lane.counters.tap.add(1),
        }
        return Outcome::Done;
    }
}

impl<'a> Frame<'a> {
    /// The frame in a chain; none when there is something for the device to write to, too
    /// many descriptors or one that cannot be read, or too few or too many bytes.
    fn take(memory: &'a GuestMemoryMmap, mut chain: Chain<'a>) -> Option<Frame<'a>> {
        let (mut rest, mut bytes, mut more) = (Vec::with_capacity(4), 0usize, false);
        for descriptor in chain.by_ref().take(MAX_DESCRIPTORS) {
            if descriptor.is_write_only() {
                return None;
            }
            bytes += descriptor.len() as usize;
            if bytes > HEADER + MAX_FRAME {
                return None;
            }
            for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize) {
                rest.push(slice.ok()?);
            }
            more = descriptor.has_next();
        }
        if more || bytes < HEADER + ETHERNET {
            return None;
        }
        let mut head = [0; HEADER + CHECKED];
        let copied = copy(&mut rest, &mut head);
        Some(Frame { head, copied, rest, len: bytes - HEADER })
    }
}

/// Moves the first bytes of `slices` to `head`; how many there were.
fn copy(slices: &mut Vec<VolatileSlice>, head: &mut [u8]) -> usize {
    let (mut copied, mut whole) = (0, 0);
    for slice in slices.iter_mut() {
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
    slices.drain(..whole);
    copied
}
