//! Serves the request queue.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::sys::epoll::EpollFlags;

use super::device::broken;
use super::disk::Disk;
use super::reply::Reply;
use super::request::{Parsed, Request};
use crate::devices::virtio::device::{ActiveQueue, Interrupt, SavedQueue};
use crate::devices::virtio::serve::{Chain, saved, serve};
use crate::event_loop::{Handler, HandlerError, Registration, borrow};
use crate::memory::{GrowingRam, GuestRam};

/// Requests per wake-up.
const BUDGET: u16 = 16;

pub(super) struct BlockHandler {
    pub(super) queue: ActiveQueue,
    pub(super) memory: GrowingRam,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) disk: Arc<Disk>,
}

/// One request, from its chain to the length for the used ring.
pub(super) fn process(disk: &Disk, memory: &GuestRam, chain: Chain) -> u32 {
    let Parsed { status, request } = Request::parse(memory, chain);
    let reply = match request {
        Ok(request) => disk.execute(memory, &request).map_or_else(Reply::from, Reply::from),
        Err(error) => error.into(),
    };
    reply.send(memory, status)
}

impl Handler for BlockHandler {
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
        let (disk, memory) = (&*self.disk, self.memory.now());
        let work = |chain: Chain| process(disk, &memory, chain);
        serve((0, &mut self.queue), &memory, &*self.interrupt, BUDGET, work).map_err(broken)
    }

    fn queues(&self) -> Vec<(usize, SavedQueue)> {
        vec![(0, saved(&self.queue))]
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
}
