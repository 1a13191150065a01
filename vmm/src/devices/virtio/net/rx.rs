//! From the tap into the guest's buffers (virtio 1.2, sections 5.1.6.3 and 5.1.6.4).
//!
//! How large a frame is, one knows when it was read: so there has to be room for the largest
//! before. Buffers of the driver's for 64 KiB are many, though, and each costs something here
//! and in the kernel, while most frames are small. So there are two ways:
//!
//! - after a large frame, the next ones are read into as many buffers as the largest may
//!   need, and buffers that a frame did not need are for the next;
//! - else a frame is read into as few as one of Ethernet's needs, and, behind them, into
//!   memory of ours. What lies there of a frame that is larger is copied into further buffers,
//!   once: the frames after it are read the first way.
//!
//! Without room for the largest frame the tap is not read and frames wait there; the driver's
//! next buffers are the next event.
//!
//! Buffers that were taken and that no frame came for are kept for the next event: to look
//! for one costs as much as to be told that there is no frame.

use std::num::Wrapping;

use virtio_bindings::virtio_net as net;
use virtio_queue::{Error, QueueT};
use vm_memory::volatile_memory::VolatileSlice;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::handler::{Lane, Pause};
use super::tap::MAX_SLICES;
use super::used::{Publisher, Used, publish_to};
use super::view::{Plain, View};
use super::{ETHERNET, HEADER, MAX_FRAME};
use crate::devices::virtio::device::{ActiveQueue, SavedQueue};
use crate::devices::virtio::serve::saved;

/// Frames before others get their turn.
const BUDGET: usize = 64;
/// Frames after a large one for which there is room for the largest again.
const LINGER: u32 = 16;
/// Bytes of a small frame: Ethernet's largest, with the header. A buffer of Linux's is not
/// smaller (GOOD_PACKET_LEN in drivers/net/virtio_net.c).
const SMALL: usize = HEADER + ETHERNET + VLAN + 1500;
/// More than any buffer of a driver's.
const MAX_BUFFER: usize = u32::MAX as usize;
/// Buffers that an event takes without a further allocation: some frames of 64 KiB in pages.
const USUAL: usize = 64;
/// More than an event's frames need as long as others are served as well.
const MUCH: usize = 8 * USUAL;
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
    /// Frames for which there is to be room for the largest.
    large: u32,
    /// Bytes of the smallest buffer so far, or of a small frame, if those are fewer. A large
    /// frame may be lost where a driver brings smaller ones than ever, and few.
    least: usize,
    /// Buffers without a frame, in the ring's order, each in one piece.
    kept: Vec<Buffer>,
    /// What does not fit into buffers: where frames are merged as long as the largest, and a
    /// byte that tells of one that is larger.
    spill: Box<[u8]>,
}

/// A buffer that was taken from the ring and not given back yet.
struct Buffer {
    head: u16,
    len: usize,
    slices: usize,
    /// Where it is, if it is one descriptor's; others are not kept.
    address: Option<GuestAddress>,
}

/// Buffers that the next frames go to, in the ring's order.
struct Room<'a> {
    buffers: Fifo<Buffer>,
    /// Of all buffers, in order.
    slices: Fifo<VolatileSlice<'a>>,
    bytes: usize,
}

/// What is added at the end and taken off at the front, in one piece.
struct Fifo<T> {
    all: Vec<T>,
    gone: usize,
}

impl<T> Fifo<T> {
    /// For so many at first.
    fn with_capacity(count: usize) -> Fifo<T> {
        Fifo { all: Vec::with_capacity(count), gone: 0 }
    }

    fn now(&self) -> &[T] {
        &self.all[self.gone..]
    }

    /// All that was not taken off.
    fn rest(mut self) -> Vec<T> {
        self.all.drain(..self.gone);
        self.all
    }

    fn drop_front(&mut self, count: usize) {
        self.gone += count;
        if self.gone >= self.all.len() {
            self.all.clear();
            self.gone = 0;
        }
    }
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
        let used = Publisher::new(&ring.queue);
        let spill = vec![0; if mergeable { largest + 1 } else { 1 }].into();
        // The first frame finds out how large buffers are.
        Rx { ring, used, mergeable, largest, large: 1, least: SMALL, kept: Vec::new(), spill }
    }

    /// The queue's state, in which what is kept was not taken.
    pub(super) fn saved(&self) -> SavedQueue {
        let mut queue = saved(&self.ring);
        queue.next_avail = queue.next_avail.wrapping_sub(self.kept.len() as u16);
        queue
    }

    /// Fills buffers as long as there are frames and buffers.
    pub(super) fn serve(
        &mut self,
        memory: &GuestMemoryMmap,
        lane: &mut Lane,
    ) -> Result<Pause, Error> {
        let mut view = View::new(&self.ring.queue, memory)?;
        let kept = std::mem::take(&mut self.kept);
        // Memory does not go away.
        let mut room = Room::of(kept, &view).ok_or(Error::FindMemoryRegion)?;
        let pause = self.fill(&mut view, &mut room, lane);
        // No frame came for these.
        let mut unused = room.buffers.rest();
        let plain = unused.iter().take_while(|buffer| buffer.address.is_some()).count();
        let queue = &mut self.ring.queue;
        queue.set_next_avail(queue.next_avail().wrapping_sub((unused.len() - plain) as u16));
        unused.truncate(plain);
        if unused.capacity() > MUCH {
            unused.shrink_to(USUAL);
        }
        self.kept = unused;
        pause
    }

    /// Whether the driver is to be interrupted.
    pub(super) fn due(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Error> {
        self.used.due(&self.ring.queue, memory)
    }

    fn fill<'a>(
        &mut self,
        view: &mut View<'a>,
        room: &mut Room<'a>,
        lane: &mut Lane,
    ) -> Result<Pause, Error> {
        for frames in 0..BUDGET {
            if let Some(wait) = lane.throttled() {
                return Ok(Pause::Throttled(wait));
            }
            let enough = self.enough(view, room)?;
            // The driver's word of more buffers is dearer than this question.
            if frames > 0 && self.large > 0 && !enough && !lane.tap.has_frame() {
                return Ok(Pause::Idle);
            }
            // Of the largest frame, one byte more tells of a larger one.
            let few = self.large == 0 && enough;
            let wanted = if few { SMALL.min(self.largest + 1) } else { self.largest + 1 };
            match self.find(view, room, wanted)? {
                Found::Room => {}
                Found::TooFew => return Ok(Pause::Idle),
                Found::Nonsense => {
                    lane.counters.malformed.add(1);
                    continue;
                }
            }
            let (slices, inside) = room.place(self.mergeable, wanted);
            let beyond = self.spill.len().saturating_sub(if self.mergeable { inside } else { 0 });
            match lane.tap.read(slices, &mut self.spill[..beyond]) {
                Ok(0) | Err(nix::Error::EAGAIN) => return Ok(Pause::Idle),
                Ok(read) => {
                    let fits = if self.mergeable { self.largest } else { inside.min(self.largest) };
                    let whole = (HEADER..=fits).contains(&read);
                    if whole && self.complete(view, room, inside, read)? {
                        self.give(view, room, read)?;
                        lane.passed(read - HEADER);
                    } else {
                        lane.counters.malformed.add(1);
                    }
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

    /// Whether the driver has brought buffers for the largest frame.
    fn enough(&self, view: &mut View, room: &Room) -> Result<bool, Error> {
        let buffers = self.largest.div_ceil(self.least).saturating_sub(room.buffers.now().len());
        view.has(&self.ring.queue, buffers)
    }

    /// Moves what of a frame of `read` bytes does not lie in the first `inside` bytes of
    /// buffers there. False when there are too few.
    fn complete<'a>(
        &mut self,
        view: &mut View<'a>,
        room: &mut Room<'a>,
        inside: usize,
        read: usize,
    ) -> Result<bool, Error> {
        self.large = if read > SMALL { LINGER } else { self.large.saturating_sub(1) };
        if read <= inside {
            return Ok(true);
        }
        let found = self.find(view, room, read)?;
        if !matches!(found, Found::Room) || room.bytes < read {
            return Ok(false);
        }
        write_at(room.slices.now(), inside, &self.spill[..read - inside]);
        Ok(true)
    }

    /// Takes buffers until there is room for `bytes`.
    fn find<'a>(
        &mut self,
        view: &mut View<'a>,
        room: &mut Room<'a>,
        bytes: usize,
    ) -> Result<Found, Error> {
        let queue = &mut self.ring.queue;
        let mut promised = false;
        loop {
            let most = room.lacks(self.mergeable, queue.size());
            for _ in 0..most {
                if self.mergeable && room.bytes >= bytes {
                    break;
                }
                let Some(plain) = view.take_plain(queue, HEADER)? else { break };
                promised = false;
                let len = plain.slice.len();
                room.push(plain);
                if len < self.least {
                    self.least = least(len, 1, self.largest);
                }
            }
            if room.holds(self.mergeable, bytes, queue.size()) {
                return Ok(Found::Room);
            }
            let Some(head) = view.take(queue)? else {
                if promised {
                    return Err(Error::InvalidAvailRingIndex);
                }
                promised = view.watch(queue)?;
                if !promised {
                    return Ok(Found::TooFew);
                }
                continue;
            };
            promised = false;
            let Some((len, slices)) = room.add(view, head) else {
                // All of them go back, so that none is taken out of turn.
                let mut batch: Vec<Used> = room.buffers.now().iter().map(|b| (b.head, 0)).collect();
                batch.push((head, 0));
                *room = Room::new();
                self.used.publish(queue, view, &batch)?;
                return Ok(Found::Nonsense);
            };
            if len < self.least || slices > 1 {
                self.least = self.least.min(least(len, slices, self.largest));
            }
        }
    }

    /// Gives the buffers back that `read` bytes lie in.
    fn give(&mut self, view: &View, room: &mut Room, read: usize) -> Result<(), Error> {
        let queue = &mut self.ring.queue;
        let mut next = Wrapping(queue.next_used());
        let (mut left, mut count, mut slices) = (read, 0, 0);
        for buffer in room.buffers.now() {
            let used = left.min(buffer.len);
            view.put(next, buffer.head, used as u32)?;
            next += 1;
            count += 1;
            slices += buffer.slices;
            room.bytes -= buffer.len;
            left -= used;
            if left == 0 {
                break;
            }
        }
        // The kernel leaves these two bytes of the header alone.
        write_at(room.slices.now(), NUM_BUFFERS, &(count as u16).to_le_bytes());
        room.buffers.drop_front(count);
        room.slices.drop_front(slices);
        publish_to(queue, view, next)
    }
}

impl<'a> Room<'a> {
    fn new() -> Room<'a> {
        let (buffers, slices) = (Fifo::with_capacity(USUAL), Fifo::with_capacity(USUAL));
        Room { buffers, slices, bytes: 0 }
    }

    /// Of buffers that were kept. None when one is not in memory.
    fn of(kept: Vec<Buffer>, view: &View<'a>) -> Option<Room<'a>> {
        let mut slices = Vec::with_capacity(USUAL.max(kept.len()));
        let mut bytes = 0;
        for buffer in &kept {
            slices.push(view.slice(buffer.address?, buffer.len)?);
            bytes += buffer.len;
        }
        let (buffers, slices) = (Fifo { all: kept, gone: 0 }, Fifo { all: slices, gone: 0 });
        Some(Room { buffers, slices, bytes })
    }

    /// Whether a frame of `bytes` fits, or as much as ever will.
    fn holds(&self, mergeable: bool, bytes: usize, size: u16) -> bool {
        mergeable && self.bytes >= bytes || self.lacks(mergeable, size) == 0
    }

    /// How many buffers may be added, if each is one piece: there are no more than `size` in the
    /// ring, and a system call has its bound as well.
    fn lacks(&self, mergeable: bool, size: u16) -> usize {
        let buffers = self.buffers.now().len();
        if !mergeable {
            return 1usize.saturating_sub(buffers);
        }
        let slices = MAX_SLICES.saturating_sub(self.slices.now().len());
        usize::from(size).saturating_sub(buffers).min(slices)
    }

    /// What the next frame is read into, of which `wanted` bytes are, and how many there are.
    /// Without merging, all but the first buffer are for other frames.
    fn place(&self, mergeable: bool, wanted: usize) -> (&[VolatileSlice<'a>], usize) {
        let (mut slices, mut bytes) = (0, 0);
        for buffer in self.buffers.now() {
            slices += buffer.slices;
            bytes += buffer.len;
            if !mergeable || bytes >= wanted {
                break;
            }
        }
        if slices <= MAX_SLICES {
            return (&self.slices.now()[..slices], bytes);
        }
        let slices = &self.slices.now()[..MAX_SLICES];
        (slices, slices.iter().map(VolatileSlice::len).sum())
    }

    /// Adds a chain, and gives its bytes and slices. None when it is no buffer: too short for
    /// a header, longer than any driver's, partly for reading, or not in guest memory.
    fn add(&mut self, view: &View<'a>, head: u16) -> Option<(usize, usize)> {
        let slices = &mut self.slices.all;
        let before = slices.len();
        // The caller gives all back where it is none.
        let len = view.gather(head, true, MAX_BUFFER, slices).ok().filter(|len| *len >= HEADER)?;
        let slices = slices.len() - before;
        self.buffers.all.push(Buffer { head, len, slices, address: None });
        self.bytes += len;
        Some((len, slices))
    }

    /// Adds such a buffer.
    #[inline]
    fn push(&mut self, Plain { head, address, slice }: Plain<'a>) {
        let len = slice.len();
        self.slices.all.push(slice);
        self.buffers.all.push(Buffer { head, len, slices: 1, address: Some(address) });
        self.bytes += len;
    }
}

/// What is to be counted on for each buffer, since there is one of `len` bytes in `slices`.
fn least(len: usize, slices: usize, largest: usize) -> usize {
    // In so many pieces, the largest frame would need more than one call.
    if slices * largest.div_ceil(len) > MAX_SLICES { 1 } else { len }
}

/// Writes to what `slices` are together, from `offset` on.
fn write_at(slices: &[VolatileSlice], offset: usize, mut bytes: &[u8]) {
    let mut skip = offset;
    for slice in slices {
        if bytes.is_empty() {
            return;
        }
        let Ok(place) = slice.offset(skip) else {
            skip -= slice.len();
            continue;
        };
        let count = place.len().min(bytes.len());
        place.copy_from(&bytes[..count]);
        bytes = &bytes[count..];
        skip = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_into_no_more_than_it_needs() {
        let mut memory = vec![0; 3000];
        let mut room = Room::new();
        for (head, piece) in (0..).zip(memory.chunks_mut(300)) {
            let address = GuestAddress(u64::from(head) * 300);
            room.push(Plain { head, address, slice: VolatileSlice::from(piece) });
        }
        let placed = |mergeable, wanted| {
            let (slices, bytes) = room.place(mergeable, wanted);
            (slices.len(), bytes)
        };
        assert_eq!(placed(true, 1), (1, 300));
        assert_eq!(placed(true, 300), (1, 300));
        assert_eq!(placed(true, 301), (2, 600));
        assert_eq!(placed(true, 1530), (6, 1800));
        // All that there is.
        assert_eq!(placed(true, 3001), (10, 3000));
        assert_eq!(placed(false, 1530), (1, 300));
    }
}
