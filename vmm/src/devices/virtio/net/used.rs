//! Used buffers, several at once, and whether the driver wants to hear of them.
//!
//! `Queue::add_used` makes each buffer visible by itself. Linux takes the buffers of a merged
//! frame as soon as it sees the first, and drops the frame when the others are not there yet
//! (receive_mergeable in drivers/net/virtio_net.c): they have to appear together.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::view::View;

/// A buffer to give back: the head of its chain, and the bytes that were written to it.
pub(super) type Used = (u16, u32);

/// What of a queue the driver was told.
pub(super) struct Publisher {
    /// Index of the used ring when it was last asked whether to interrupt.
    told: Wrapping<u16>,
}

impl Publisher {
    pub(super) fn new(queue: &Queue) -> Publisher {
        Publisher { told: Wrapping(queue.next_used()) }
    }

    /// Gives `batch` back, no more than the queue has entries, all at once.
    ///
    /// # Errors
    /// When one of it is no head of a chain.
    pub(super) fn publish(
        &self,
        queue: &mut Queue,
        view: &View,
        batch: &[Used],
    ) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut next = Wrapping(queue.next_used());
        for &(head, len) in batch {
            view.put(next, head, len)?;
            next += 1;
        }
        publish_to(queue, view, next)
    }

    /// How many buffers were published since the driver was last told, or asked.
    pub(super) fn untold(&self, queue: &Queue) -> u16 {
        (Wrapping(queue.next_used()) - self.told).0
    }

    /// Whether the driver wants an interrupt for what was published since the last call
    /// (sections 2.7.7.2 and 2.7.10). The queue cannot tell: it does not know of buffers that
    /// it did not add one by one.
    pub(super) fn due(&mut self, queue: &Queue, memory: &GuestMemoryMmap) -> Result<bool, Error> {
        let (old, new) = (self.told, Wrapping(queue.next_used()));
        if old == new {
            return Ok(false);
        }
        self.told = new;
        // What was published is visible before the driver's wish is read: either the driver
        // sees it, or we see that it went to sleep.
        fence(Ordering::SeqCst);
        let read = |offset: u64| -> Result<u16, Error> {
            let address = queue.avail_ring().checked_add(offset).ok_or(Error::AddressOverflow)?;
            memory.load(GuestAddress(address), Ordering::Relaxed).map_err(Error::GuestMemory)
        };
        if queue.event_idx_enabled() {
            let event = Wrapping(u16::from_le(read(4 + 2 * u64::from(queue.size()))?));
            return Ok(new - event - Wrapping(1) < new - old);
        }
        Ok(u16::from_le(read(0)?) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
    }
}

/// Tells the driver that the used ring goes up to `next`, all at once.
///
/// # Errors
/// As [`View::publish`].
pub(super) fn publish_to(queue: &mut Queue, view: &View, next: Wrapping<u16>) -> Result<(), Error> {
    queue.set_next_used(next.0);
    view.publish(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::testing::{Ring, memory};

    fn queue(ring: &Ring, event_idx: bool) -> Queue {
        let mut queue = Queue::new(ring.size).unwrap();
        queue.set_desc_table_address(Some(ring.base as u32), None);
        queue.set_avail_ring_address(Some(ring.avail() as u32), None);
        queue.set_used_ring_address(Some(ring.used_ring() as u32), None);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }

    #[test]
    fn a_batch_appears_at_once_and_in_order() {
        let memory = memory();
        let ring = Ring::new(&memory, 0, 4);
        let mut queue = queue(&ring, false);
        queue.set_next_used(u16::MAX - 1);
        let publisher = Publisher::new(&queue);
        let view = View::new(&queue, &memory).unwrap();
        publisher.publish(&mut queue, &view, &[]).unwrap();
        publisher.publish(&mut queue, &view, &[(0, 10), (1, 11), (2, 12), (3, 13)]).unwrap();
        assert_eq!((queue.next_used(), ring.used(u16::MAX - 1)), (2, vec![10, 11, 12, 13]));
        assert!(publisher.publish(&mut queue, &view, &[(4, 0), (0, 0)]).is_err());
        assert!(publisher.publish(&mut queue, &view, &[(0, 0), (4, 0)]).is_err());
    }

    #[test]
    fn the_driver_is_interrupted_as_it_wishes() {
        let memory = memory();
        let ring = Ring::new(&memory, 0, 8);
        let set = |offset: u64, value: u16| {
            memory.write_obj(value, GuestAddress(ring.avail() + offset)).unwrap();
        };
        let mut queue_ = queue(&ring, false);
        let mut publisher = Publisher::new(&queue_);
        let publish = |queue: &mut Queue, publisher: &mut Publisher, count: usize| {
            let view = View::new(queue, &memory).unwrap();
            publisher.publish(queue, &view, &vec![(0, 0); count]).unwrap();
            publisher.due(queue, &memory).unwrap()
        };
        assert!(!publish(&mut queue_, &mut publisher, 0), "nothing happened");
        assert!(publish(&mut queue_, &mut publisher, 2));
        set(0, VRING_AVAIL_F_NO_INTERRUPT as u16);
        assert!(!publish(&mut queue_, &mut publisher, 2));

        let mut queue_ = queue(&ring, true);
        let mut publisher = Publisher::new(&queue_);
        let event = 4 + 2 * 8;
        set(event, 0);
        assert!(publish(&mut queue_, &mut publisher, 1));
        assert!(!publish(&mut queue_, &mut publisher, 1), "it did not look since");
        // Also where the wish lies within a batch: 2..=5 are published.
        set(event, 3);
        assert!(publish(&mut queue_, &mut publisher, 4));
        set(event, 8);
        assert!(!publish(&mut queue_, &mut publisher, 2));
        assert!(publish(&mut queue_, &mut publisher, 1));
    }
}
