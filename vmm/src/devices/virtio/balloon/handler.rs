//! Serves the queues.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::sys::epoll::EpollFlags;

use super::device::broken;
use super::handle::BalloonHandle;
use super::pages;
use super::reclaim::Reclaim;
use crate::devices::virtio::device::{ActiveQueue, Interrupt, SavedQueue};
use crate::devices::virtio::serve::{Chain, saved, serve};
use crate::event_loop::{Handler, HandlerError, Registration, borrow};
use crate::memory::{GrowingRam, GuestRam};

/// Requests per queue and wake-up.
const BUDGET: u16 = 16;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Page numbers that the guest gives.
    Inflate,
    /// Page numbers that it takes back: a page comes back by being touched.
    Deflate,
    /// Ranges that are free for now.
    Report,
}

pub(super) struct BalloonHandler {
    /// (index, use, queue)
    pub(super) queues: Vec<(usize, Role, ActiveQueue)>,
    pub(super) memory: GrowingRam,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) reclaim: Arc<dyn Reclaim>,
    pub(super) handle: BalloonHandle,
}

/// Gives back what one request names. A range that the host's kernel refuses
/// stays with the guest, which loses nothing by it.
fn work(
    role: Role,
    memory: &GuestRam,
    reclaim: &dyn Reclaim,
    handle: &BalloonHandle,
    chain: Chain,
) -> u32 {
    let ranges = match role {
        Role::Inflate => pages::inflated(memory, chain),
        Role::Report => pages::reported(memory, chain),
        Role::Deflate => Vec::new(),
    };
    for range in ranges {
        let done = reclaim.reclaim(range.gpa, range.len).is_ok();
        if done && role == Role::Report {
            handle.add_reported(range.len);
        }
    }
    // Nothing was written to the buffers as such (section 5.5.6.7.2).
    0
}

impl Handler for BalloonHandler {
    fn start(&mut self, registration: &Registration) -> Result<(), HandlerError> {
        for (index, _, queue) in &self.queues {
            let kick = borrow(queue.kick.as_raw_fd());
            registration.watch(kick, EpollFlags::EPOLLIN, *index as u64).map_err(broken)?;
        }
        Ok(())
    }

    fn stop(&mut self, registration: &Registration) {
        for (_, _, queue) in &self.queues {
            registration.forget(borrow(queue.kick.as_raw_fd()));
        }
    }

    fn ready(
        &mut self,
        token: u64,
        _flags: EpollFlags,
        _registration: &Registration,
    ) -> Result<(), HandlerError> {
        let found = self.queues.iter_mut().find(|(index, ..)| *index as u64 == token);
        let Some((index, role, queue)) = found else { return Ok(()) };
        let (role, memory, handle) = (*role, self.memory.now(), &self.handle);
        let reclaim = &*self.reclaim;
        let work = |chain: Chain| work(role, &memory, reclaim, handle, chain);
        serve((*index as u16, queue), &memory, &*self.interrupt, BUDGET, work).map_err(broken)
    }

    fn queues(&self) -> Vec<(usize, SavedQueue)> {
        self.queues.iter().map(|(index, _, queue)| (*index, saved(queue))).collect()
    }

    fn save(&self) -> Vec<u8> {
        // All that lasts is in the handle, which the device saves.
        Vec::new()
    }
}
