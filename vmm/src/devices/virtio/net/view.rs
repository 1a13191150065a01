//! A split virtqueue (virtio 1.2, section 2.7) as mapped memory.
//!
//! virtio-queue translates a guest address for each index and each descriptor that it reads,
//! which for a frame of 64 KiB in 43 buffers is most of what the frame costs. Here the three
//! parts of a queue are looked up once for an event; the queue itself, its indices included,
//! stays virtio-queue's.

use std::cell::Cell;
use std::num::Wrapping;
use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::volatile_memory::{VolatileMemory, VolatileSlice};
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

/// Most descriptors of a chain; Linux uses up to 19 (MAX_SKB_FRAGS and two).
const MAX_DESCRIPTORS: usize = 64;
/// Flags and index, before the entries of the available and of the used ring.
const ENTRIES: usize = 4;

/// See the module.
pub(super) struct View<'a> {
    memory: &'a GuestMemoryMmap,
    /// Where the last buffer was, and the next one will be.
    region: Cell<Option<&'a GuestRegionMmap>>,
    table: VolatileSlice<'a>,
    available: VolatileSlice<'a>,
    used: VolatileSlice<'a>,
    /// A power of two (section 2.7), by virtio-queue.
    size: u16,
    /// The driver's index when it was last read.
    seen: Wrapping<u16>,
}

/// A chain of one descriptor, whose buffer lies in one piece of memory.
pub(super) struct Plain<'a> {
    pub(super) head: u16,
    pub(super) address: GuestAddress,
    pub(super) slice: VolatileSlice<'a>,
}

/// A chain is none: it has buffers of the other direction, too many or too large ones, or
/// some that are not in memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoBuffer;

impl<'a> View<'a> {
    /// # Errors
    /// When a part is not in memory, or lies across two regions of it (2 GiB apart, where
    /// Linux allocates nothing).
    pub(super) fn new(queue: &Queue, memory: &'a GuestMemoryMmap) -> Result<View<'a>, Error> {
        let entries = usize::from(queue.size());
        let part = |address, bytes| {
            memory.get_slice(GuestAddress(address), bytes).map_err(Error::GuestMemory)
        };
        Ok(View {
            memory,
            region: Cell::new(memory.iter().next()),
            table: part(queue.desc_table(), entries * size_of::<Descriptor>())?,
            available: part(queue.avail_ring(), ENTRIES + entries * size_of::<u16>())?,
            used: part(queue.used_ring(), ENTRIES + entries * size_of::<Element>())?,
            size: queue.size(),
            seen: Wrapping(queue.next_avail()),
        })
    }

    /// Chains that are available and not taken.
    ///
    /// # Errors
    /// When the driver's index claims more than there are entries.
    fn waiting(&mut self, queue: &Queue) -> Result<u16, Error> {
        let index = self.available.load(2, Ordering::Acquire).map_err(volatile)?;
        self.seen = Wrapping(u16::from_le(index));
        let waiting = self.seen - Wrapping(queue.next_avail());
        if waiting.0 > self.size { Err(Error::InvalidAvailRingIndex) } else { Ok(waiting.0) }
    }

    /// Whether so many chains wait at least.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(super) fn has(&mut self, queue: &Queue, chains: usize) -> Result<bool, Error> {
        let known = self.seen - Wrapping(queue.next_avail());
        Ok(usize::from(known.0) >= chains || usize::from(self.waiting(queue)?) >= chains)
    }

    /// Has the driver kick when it brings the next chain. True when one is there already.
    ///
    /// # Errors
    /// None of a ring that is mapped.
    pub(super) fn watch(&self, queue: &mut Queue) -> Result<bool, Error> {
        queue.enable_notification(self.memory)
    }

    /// Takes the next chain; gives its head, which may lie outside of the table.
    ///
    /// # Errors
    /// When the driver broke the ring.
    #[inline]
    pub(super) fn take(&mut self, queue: &mut Queue) -> Result<Option<u16>, Error> {
        let next = queue.next_avail();
        if self.seen.0 == next && self.waiting(queue)? == 0 {
            return Ok(None);
        }
        let head = self.head(next)?;
        queue.set_next_avail(next.wrapping_add(1));
        Ok(Some(head))
    }

    /// Takes the next chain, if it is a buffer to write at least `least` bytes to, in one piece:
    /// what Linux brings for frames to lie in, some 270 for each MiB. None of any other, which
    /// [`take`](Self::take) gives.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    #[inline]
    pub(super) fn take_plain(
        &mut self,
        queue: &mut Queue,
        least: usize,
    ) -> Result<Option<Plain<'a>>, Error> {
        let next = queue.next_avail();
        if self.seen.0 == next && self.waiting(queue)? == 0 {
            return Ok(None);
        }
        let head = self.head(next)?;
        let Some(descriptor) = descriptor(&self.table, head) else { return Ok(None) };
        let (address, len) = (descriptor.addr(), descriptor.len() as usize);
        if descriptor.flags() != VRING_DESC_F_WRITE as u16 || len < least {
            return Ok(None);
        }
        let Some(slice) = self.slice(address, len) else { return Ok(None) };
        queue.set_next_avail(next.wrapping_add(1));
        Ok(Some(Plain { head, address, slice }))
    }

    /// The head of the chain that the driver made available as number `count`.
    #[inline]
    fn head(&self, count: u16) -> Result<u16, Error> {
        let place = ENTRIES + self.entry(count) * size_of::<u16>();
        self.available.get_ref::<u16>(place).map(|head| u16::from_le(head.load())).map_err(volatile)
    }

    /// The entry of a ring for number `count`.
    #[inline]
    fn entry(&self, count: u16) -> usize {
        usize::from(count & (self.size - 1))
    }

    /// Adds what the buffers of the chain at `head` are in memory to `slices`, in order; gives
    /// their bytes, of which there may be `most`. `writable` says whose they have to be.
    ///
    /// # Errors
    /// When it is no such chain; what was added before one saw that is in `slices`.
    #[inline]
    pub(super) fn gather(
        &self,
        head: u16,
        writable: bool,
        most: usize,
        slices: &mut Vec<VolatileSlice<'a>>,
    ) -> Result<usize, NoBuffer> {
        let first = descriptor(&self.table, head).ok_or(NoBuffer)?;
        if first.flags() == if writable { VRING_DESC_F_WRITE as u16 } else { 0 }
            && let Some(slice) = self.slice(first.addr(), first.len() as usize)
            && (1..=most).contains(&slice.len())
        {
            slices.push(slice);
            return Ok(slice.len());
        }
        self.walk(first, writable, most, slices)
    }

    /// As [`gather`](Self::gather), for a chain of any form that begins with `descriptor`.
    #[inline(never)]
    fn walk(
        &self,
        mut descriptor: Descriptor,
        writable: bool,
        most: usize,
        slices: &mut Vec<VolatileSlice<'a>>,
    ) -> Result<usize, NoBuffer> {
        let (mut table, mut indirect) = (self.table, false);
        let (mut bytes, mut buffers) = (0usize, 0);
        loop {
            let (flags, len) = (u32::from(descriptor.flags()), descriptor.len() as usize);
            if flags & VRING_DESC_F_INDIRECT != 0 {
                let whole = len.is_multiple_of(size_of::<Descriptor>());
                if indirect || !whole || flags & VRING_DESC_F_NEXT != 0 {
                    return Err(NoBuffer);
                }
                table = self.slice(descriptor.addr(), len).ok_or(NoBuffer)?;
                indirect = true;
                descriptor = self::descriptor(&table, 0).ok_or(NoBuffer)?;
                continue;
            }
            bytes += len;
            buffers += 1;
            let fits = buffers <= MAX_DESCRIPTORS && bytes <= most;
            if !fits || (flags & VRING_DESC_F_WRITE != 0) != writable {
                return Err(NoBuffer);
            }
            if let Some(slice) = self.slice(descriptor.addr(), len).filter(|_| len > 0) {
                slices.push(slice);
            } else {
                for slice in self.memory.get_slices(descriptor.addr(), len) {
                    slices.push(slice.map_err(|_| NoBuffer)?);
                }
            }
            if flags & VRING_DESC_F_NEXT == 0 {
                return Ok(bytes);
            }
            descriptor = self::descriptor(&table, descriptor.next()).ok_or(NoBuffer)?;
        }
    }

    /// Guest memory that lies in one region.
    #[inline(always)]
    pub(super) fn slice(&self, address: GuestAddress, len: usize) -> Option<VolatileSlice<'a>> {
        match self.region.get().and_then(|region| within(region, address, len)) {
            Some(slice) => Some(slice),
            None => self.slice_elsewhere(address, len),
        }
    }

    #[cold]
    fn slice_elsewhere(&self, address: GuestAddress, len: usize) -> Option<VolatileSlice<'a>> {
        let region = self.memory.find_region(address)?;
        self.region.set(Some(region));
        within(region, address, len)
    }

    /// Writes an entry of the used ring; the driver sees it with the next
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// When `head` is none.
    #[inline]
    pub(super) fn put(&self, place: Wrapping<u16>, head: u16, len: u32) -> Result<(), Error> {
        if head >= self.size {
            return Err(Error::InvalidDescriptorIndex);
        }
        let element = Element { id: u32::from(head).to_le(), len: len.to_le() };
        let entry = ENTRIES + self.entry(place.0) * size_of::<Element>();
        self.used.get_ref(entry).map_err(volatile)?.store(element);
        Ok(())
    }

    /// Tells the driver that the used ring goes up to `index`.
    ///
    /// # Errors
    /// None of a ring that is mapped.
    pub(super) fn publish(&self, index: Wrapping<u16>) -> Result<(), Error> {
        self.used.store(index.0.to_le(), 2, Ordering::Release).map_err(volatile)
    }
}

/// `struct virtq_used_elem` (section 2.7.8).
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Element {
    id: u32,
    len: u32,
}

#[allow(unsafe_code)]
// SAFETY: two numbers without padding.
unsafe impl ByteValued for Element {}

#[inline(always)]
fn within(
    region: &GuestRegionMmap,
    address: GuestAddress,
    len: usize,
) -> Option<VolatileSlice<'_>> {
    region.get_slice(region.to_region_addr(address)?, len).ok()
}

fn descriptor(table: &VolatileSlice, index: u16) -> Option<Descriptor> {
    let place = usize::from(index) * size_of::<Descriptor>();
    table.get_ref::<Descriptor>(place).ok().map(|reference| reference.load())
}

fn volatile(error: vm_memory::VolatileMemoryError) -> Error {
    Error::GuestMemory(error.into())
}
