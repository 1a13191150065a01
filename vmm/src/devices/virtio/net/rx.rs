//! From the tap into the guest's buffers (virtio 1.2, sections 5.1.6.3 and 5.1.6.4).
//!
//! How large a frame is, one knows when it was read: so there has to be room for the largest
//! before. Buffers of the driver's for 64 KiB are many, though, and each costs something here
//! and in the kernel, while most frames are small. So there are two ways:
//!
//! - after a large frame, the next ones are read into as many buffers as the largest may
//!   need, and buffers that a frame did not need are not taken;
//! - else a frame is read into as few as one of Ethernet's needs, and, behind them, into
//!   memory of ours. What lies there of a frame that is larger is copied into further buffers,
//!   once: the frames after it are read the first way.
//!
//! Without room for the largest frame the tap is not read and frames wait there; the driver's
//! next buffers are the next event.

use smallvec::SmallVec;
use virtio_bindings::virtio_net as net;
use virtio_queue::{Error, QueueT};
use vm_memory::GuestMemoryMmap;
use vm_memory::volatile_memory::VolatileSlice;

use super::handler::{Lane, Pause};
use super::tap::MAX_SLICES;
use super::used::{Publisher, Used};
use super::view::View;
use super::{ETHERNET, HEADER, MAX_FRAME};
use crate::devices::virtio::device::ActiveQueue;

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
/// Buffers that most frames lie in.
const USUAL_FRAME: usize = 20;
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
    /// What does not fit into buffers: where frames are merged as long as the largest, and a
    /// byte that tells of one that is larger.
    spill: Box<[u8]>,
}

/// A buffer that was taken from the ring and not given back yet.
struct Buffer {
    head: u16,
    len: usize,
    slices: usize,
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
        Rx { ring, used, mergeable, largest, large: 1, least: SMALL, spill }
    }

    /// Fills buffers as long as there are frames and buffers.
    pub(super) fn serve(
        &mut self,
        memory: &GuestMemoryMmap,
        lane: &mut Lane,
    ) -> Result<Pause, Error> {
        let mut room = Room::new();
        let mut view = View::new(&self.ring.queue, memory)?;
        let pause = self.fill(&mut view, &mut room, lane);
        // No frame came for these.
        let unused = room.buffers.now().len() as u16;
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
        view: &mut View<'a>,
        room: &mut Room<'a>,
        lane: &mut Lane,
    ) -> Result<Pause, Error> {
        for frames in 0..BUDGET {
            if let Some(wait) = lane.throttled() {
                return Ok(Pause::Throttled(wait));
            }
            // Room for the largest frame is dearer than this question.
            if frames > 0 && self.large > 0 && !lane.tap.has_frame() {
                return Ok(Pause::Idle);
            }
            let wanted = self.wanted(view, room)?;
            match self.find(view, room, wanted)? {
                Found::Room => {}
                Found::TooFew => return Ok(Pause::Idle),
                Found::Nonsense => {
                    lane.counters.malformed.add(1);
                    continue;
                }
            }
            let (slices, inside) = room.place(self.mergeable);
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

    /// Bytes for which there is to be room: those of the largest frame, and one more that
    /// tells of a larger one, or fewer, where what is beyond would fit all the same.
    fn wanted(&self, view: &mut View, room: &Room) -> Result<usize, Error> {
        let enough = self.largest.div_ceil(self.least).saturating_sub(room.buffers.now().len());
        let few = self.large == 0 && view.has(&self.ring.queue, enough)?;
        Ok(if few { SMALL.min(self.largest + 1) } else { self.largest + 1 })
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
        while !room.holds(self.mergeable, bytes, queue.size()) {
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
                // In so many pieces, the largest frame would need more than one call.
                let pieces = slices * self.largest.div_ceil(len) > MAX_SLICES;
                self.least = self.least.min(if pieces { 1 } else { len });
            }
        }
        Ok(Found::Room)
    }

    /// Gives the buffers back that `read` bytes lie in.
    fn give(&mut self, view: &View, room: &mut Room, read: usize) -> Result<(), Error> {
        let mut batch: SmallVec<[Used; USUAL_FRAME]> = SmallVec::new();
        let (mut left, mut slices) = (read, 0);
        for buffer in room.buffers.now() {
            let used = left.min(buffer.len);
            batch.push((buffer.head, used as u32));
            slices += buffer.slices;
            room.bytes -= buffer.len;
            left -= used;
            if left == 0 {
                break;
            }
        }
        // The kernel leaves these two bytes of the header alone.
        write_at(room.slices.now(), NUM_BUFFERS, &(batch.len() as u16).to_le_bytes());
        room.buffers.drop_front(batch.len());
        room.slices.drop_front(slices);
        self.used.publish(&mut self.ring.queue, view, &batch)
    }
}

impl<'a> Room<'a> {
    fn new() -> Room<'a> {
        let (buffers, slices) = (Fifo::with_capacity(USUAL), Fifo::with_capacity(USUAL));
        Room { buffers, slices, bytes: 0 }
    }

    /// Whether a frame of `bytes` fits, or as much as ever will: all of a ring of `size`
    /// buffers, or what one system call takes.
    fn holds(&self, mergeable: bool, bytes: usize, size: u16) -> bool {
        if !mergeable {
            return !self.buffers.now().is_empty();
        }
        self.bytes >= bytes
            || self.buffers.now().len() >= usize::from(size)
            || self.slices.now().len() >= MAX_SLICES
    }

    /// What the next frame is read into, and how many bytes that is. Without merging, all but
    /// the first buffer are for other frames.
    fn place(&self, mergeable: bool) -> (&[VolatileSlice<'a>], usize) {
        let slices = self.slices.now();
        match self.buffers.now().first() {
            Some(first) if !mergeable => (&slices[..first.slices], first.len),
            _ if slices.len() <= MAX_SLICES => (slices, self.bytes),
            _ => {
                let slices = &slices[..MAX_SLICES];
                (slices, slices.iter().map(VolatileSlice::len).sum())
            }
        }
    }

    /// Adds a chain, and gives its bytes and slices. None when it is no buffer: too short for
    /// a header, longer than any driver's, partly for reading, or not in guest memory.
    fn add(&mut self, view: &View<'a>, head: u16) -> Option<(usize, usize)> {
        let slices = &mut self.slices.all;
        let before = slices.len();
        // The caller gives all back where it is none.
        let len = view.gather(head, true, MAX_BUFFER, slices).ok().filter(|len| *len >= HEADER)?;
        let slices = slices.len() - before;
        self.buffers.all.push(Buffer { head, len, slices });
        self.bytes += len;
        Some((len, slices))
    }
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
