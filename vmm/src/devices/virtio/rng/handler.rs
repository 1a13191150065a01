//! Fills the driver's buffers.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::sys::epoll::EpollFlags;
use vm_memory::{Address, Bytes};

use super::device::broken;
use super::entropy;
use crate::devices::virtio::device::{ActiveQueue, Interrupt, SavedQueue};
use crate::devices::virtio::serve::{Chain, saved, serve};
use crate::event_loop::{Handler, HandlerError, Registration, borrow};
use crate::memory::{GrowingRam, GuestRam};

/// Most bytes for one request; a driver copes with less than it asked for
/// (section 5.4.6.1).
pub(super) const MAX_BYTES: usize = 64 << 10;
/// Most descriptors of a request that are looked at.
const MAX_DESCRIPTORS: usize = 64;
/// Requests per wake-up.
const BUDGET: u16 = 16;

pub(super) struct RngHandler {
    queue: ActiveQueue,
    memory: GrowingRam,
    interrupt: Arc<dyn Interrupt>,
}

impl RngHandler {
    pub(super) fn new(
        queue: ActiveQueue,
        memory: GrowingRam,
        interrupt: Arc<dyn Interrupt>,
    ) -> RngHandler {
        RngHandler { queue, memory, interrupt }
    }
}

/// Fills the writable buffers of one request; returns the number of bytes.
fn fill(memory: &GuestRam, chain: Chain) -> u32 {
    let mut total = 0;
    for descriptor in chain.take(MAX_DESCRIPTORS).filter(|descriptor| descriptor.is_write_only()) {
        let mut address = descriptor.addr();
        let mut left = (descriptor.len() as usize).min(MAX_BYTES - total);
        while left > 0 {
            let mut block = [0; 1024];
            let piece = &mut block[..left.min(1024)];
            if !entropy::fill(piece) || memory.write_slice(piece, address).is_err() {
                return total as u32;
            }
            left -= piece.len();
            total += piece.len();
            let Some(next) = address.checked_add(piece.len() as u64) else { return total as u32 };
            address = next;
        }
    }
    total as u32
}

impl Handler for RngHandler {
    fn start(&mut self, registration: &Registration) -> Result<(), HandlerError> {
        let kick = borrow(self.queue.kick.as_raw_fd());
        registration.watch(kick, EpollFlags::EPOLLIN, 0).map_err(broken)
    }

    fn stop(&mut self, registration: &Registration) {
        registration.forget(borrow(self.queue.kick.as_raw_fd()));
    }

    fn ready(
        &mut self,
        _token: u64,
        _flags: EpollFlags,
        _registration: &Registration,
    ) -> Result<(), HandlerError> {
        let memory = self.memory.now();
        let work = |chain: Chain| fill(&memory, chain);
        serve((0, &mut self.queue), &memory, &*self.interrupt, BUDGET, work).map_err(broken)
    }

    fn queues(&self) -> Vec<(usize, SavedQueue)> {
        vec![(0, saved(&self.queue))]
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
}
