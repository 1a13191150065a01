//! From the tap into the guest's buffers (virtio 1.2, sections 5.1.6.3 and 5.1.6.4).
//!
//! How large a frame is, one knows when it was read: so there is room for the largest before,
//! and buffers that it did not need are not taken. Without that much room the tap is not read
//! and frames wait there; the driver's next buffers are the next event.

use std::collections::VecDeque;

use virtio_bindings::virtio_net as net;
use virtio_queue::{DescriptorChain, Error, QueueOwnedT, QueueT};
use vm_memory::bitmap::Bitmap;
use vm_memory::volatile_memory::VolatileSlice;
use vm_memory::{Bytes, GuestMemory, GuestMemoryMmap};

use super::handler::{Lane, Pause};
use super::tap::MAX_VECTORS;
use super::used::{Publisher, Used};
use super::{ETHERNET, HEADER, MAX_FRAME};
use crate::devices::virtio::device::ActiveQueue;

/// Frames before others get their turn.
const BUDGET: usize = 64;
/// Most descriptors of a buffer.
const MAX_DESCRIPTORS: usize = 64;
/// Bytes that a VLAN tag adds to a frame.
const VLAN: usize = 4;
/// Place of `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;

/// The receive queue of a pair.
pub(super) struct Rx {
    pub(super) ring: ActiveQueue,
    used: Publisher,
    /// A frame may lie in several buffers.
    mergeable: bool,
    /// Bytes of the largest frame, with its header.
    largest: usize,
}

/// A buffer that was taken from the ring and not given back yet.
struct Buffer {
    head: u16,
    len: usize,
    slices: usize,
}

/// Buffers that the next frames go to, in the ring's order.
#[derive(Default)]
struct Room<'a> {
    buffers: VecDeque<Buffer>,
    /// Of all buffers, in order.
    slices: VecDeque<VolatileSlice<'a>>,
    bytes: usize,
}

/// What became of an attempt to make room.
enum Found {
    Room,
    /// The driver has to bring more first.
    TooFew,
    /// It brought something that is no buffer.
    Nonsense,
}

impl Rx {
    pub(super) fn new(ring: ActiveQueue, features: u64, mtu: u16) -> Rx {
        let has = |bit: u32| features & 1 << bit != 0;
        let segments = has(net::VIRTIO_NET_F_GUEST_CSUM)
            && (has(net::VIRTIO_NET_F_GUEST_TSO4) || has(net::VIRTIO_NET_F_GUEST_TSO6));
        let whole = ETHERNET + VLAN + usize::from(mtu);
        let largest = HEADER + if segments { MAX_FRAME.max(whole) } else { whole };
        let mergeable = has(net::VIRTIO_NET_F_MRG_RXBUF);
        Rx { used: Publisher::new(&ring.queue), ring, mergeable, largest }
    }

    /// Fills buffers as long as there are frames and buffers.
    pub(super) fn serve(
        &mut self,
        memory: &GuestMemoryMmap,
        lane: &mut Lane,
    ) -> Result<Pause, Error> {
        let mut room = Room::default();
        let pause = self.fill(memory, &mut room, lane);
        // No frame came for these.
        let unused = room.buffers.len() as u16;
        let queue = &mut self.ring.queue;
        queue.set_next_avail(queue.next_avail().wrapping_sub(unused));
        pause
    }

    /// Whether the driver is to be interrupted.
    pub(super) fn due(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Error> {
        self.used.due(&self.ring.queue, memory)
    }

    fn fill<'a>(
        &mut self,
        memory: &'a GuestMemoryMmap,
        room: &mut Room<'a>,
        lane: &mut Lane,
    ) -> Result<Pause, Error> {
        for _ in 0..BUDGET {
            if let Some(wait) = lane.throttled() {
                return Ok(Pause::Throttled(wait));
            }
            match self.find(memory, room)? {
                Found::Room => {}
                Found::TooFew => return Ok(Pause::Idle),
                Found::Nonsense => {
                    lane.counters.malformed.add(1);
                    continue;
                }
            }
            // Without merging, the others are for other frames.
            let usable = if self.mergeable { room.slices.len() } else { room.first_slices() };
            match lane.tap.read(room.slices.iter().take(usable)) {
                Ok(0) | Err(nix::Error::EAGAIN) => return Ok(Pause::Idle),
                Ok(read) if read < HEADER || read > self.largest => lane.counters.malformed.add(1),
                Ok(read) => {
                    self.give(memory, room, read)?;
                    lane.passed(read - HEADER);
                }
                Err(nix::Error::EINTR) => {}
                Err(_) => {
                    // Its interface may be gone. What changes that is an event.
                    lane.counters.tap.add(1);
                    return Ok(Pause::Idle);
                }
            }
        }
        Ok(Pause::Again)
    }

    /// Takes buffers until the largest frame fits, and a byte more that tells of a larger one.
    fn find<'a>(
        &mut self,
        memory: &'a GuestMemoryMmap,
        room: &mut Room<'a>,
    ) -> Result<Found, Error> {
        let queue = &mut self.ring.queue;
        let mut promised = false;
        while !room.holds(self.mergeable, self.largest + 1, queue.size()) {
            let Some(mut chain) = queue.iter(memory)?.next() else {
                if promised {
                    return Err(Error::InvalidAvailRingIndex);
                }
                promised = queue.enable_notification(memory)?;
                if !promised {
                    return Ok(Found::TooFew);
                }
                continue;
            };
            promised = false;
            let head = chain.head_index();
            if !room.add(memory, head, &mut chain) {
                // All of them go back, so that none is taken out of turn.
                let mut batch: Vec<Used> = room.buffers.drain(..).map(|b| (b.head, 0)).collect();
                batch.push((head, 0));
                *room = Room::default();
                self.used.publish(queue, memory, &batch)?;
                return Ok(Found::Nonsense);
            }
        }
        Ok(Found::Room)
    }

    /// Gives the buffers back that `read` bytes lie in.
    fn give(
        &mut self,
        memory: &GuestMemoryMmap,
        room: &mut Room,
        read: usize,
    ) -> Result<(), Error> {
        let mut batch: Vec<Used> = Vec::with_capacity(2);
        let mut left = read;
        for buffer in &room.buffers {
            let used = left.min(buffer.len);
            batch.push((buffer.head, used as u32));
            left -= used;
            if left == 0 {
                break;
            }
        }
        // The kernel leaves these two bytes of the header alone.
        write_at(&room.slices, NUM_BUFFERS, (batch.len() as u16).to_le_bytes());
        for buffer in room.buffers.drain(..batch.len()) {
            room.bytes -= buffer.len;
            for slice in room.slices.drain(..buffer.slices) {
                slice.bitmap().mark_dirty(0, slice.len());
            }
        }
        self.used.publish(&mut self.ring.queue, memory, &batch)
    }
}

impl<'a> Room<'a> {
    /// Whether a frame of `bytes` fits, or as much as ever will: all of a ring of `size`
    /// buffers, or what one system call takes.
    fn holds(&self, mergeable: bool, bytes: usize, size: u16) -> bool {
        if !mergeable {
            return !self.buffers.is_empty();
        }
        self.bytes >= bytes
            || self.buffers.len() >= usize::from(size)
            || self.slices.len() >= MAX_VECTORS
    }

    fn first_slices(&self) -> usize {
        self.buffers.front().map_or(0, |buffer| buffer.slices)
    }

    /// Adds a chain; false when it is no buffer: too short for a header, longer than any
    /// driver's, partly for reading, or not in guest memory.
    fn add(
        &mut self,
        memory: &'a GuestMemoryMmap,
        head: u16,
        chain: &mut DescriptorChain<&'a GuestMemoryMmap>,
    ) -> bool {
        let (before, mut len, mut more) = (self.slices.len(), 0, true);
        for descriptor in chain.take(MAX_DESCRIPTORS) {
            if !descriptor.is_write_only() {
                return false;
            }
            for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize) {
                let Ok(slice) = slice else { return false };
                len += slice.len();
                self.slices.push_back(slice);
            }
            more = descriptor.has_next();
        }
        let slices = self.slices.len() - before;
        self.buffers.push_back(Buffer { head, len, slices });
        self.bytes += len;
        if more || len < HEADER {
            // The caller gives all back.
            self.buffers.pop_back();
            return false;
        }
        true
    }
}

/// Writes to what `slices` are together.
fn write_at(slices: &VecDeque<VolatileSlice>, offset: usize, bytes: [u8; 2]) {
    let mut skip = offset;
    let mut bytes = bytes.iter();
    for slice in slices {
        while skip < slice.len() {
            let Some(&byte) = bytes.next() else { return };
            // In bounds: cannot fail.
            let _ = slice.write_obj(byte, skip);
            skip += 1;
        }
        skip -= slice.len();
    }
}
