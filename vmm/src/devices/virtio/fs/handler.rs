//! The running virtio-fs device: its rings, on a thread of its own, since file
//! systems block.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fuse_backend_rs::abi::fuse_abi::Opcode;
use fuse_backend_rs::api::server::Server;
use nix::sys::epoll::EpollFlags;
use std::os::fd::AsRawFd;

use super::device::FsHandle;
use super::policy::ShareConfig;
use super::request;
use super::tree::ShareTree;
use crate::devices::virtio::device::{ActiveQueue, Interrupt, SavedQueue};
use crate::devices::virtio::serve;
use crate::event_loop::{Handler, HandlerError, Registration, borrow};
use crate::memory::GrowingRam;

/// Requests of one ring that are served before the others get their turn.
const BUDGET: u16 = 32;

/// See the module.
pub struct FsHandler {
    pub(super) memory: GrowingRam,
    pub(super) queues: Vec<Option<ActiveQueue>>,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) shares: Vec<ShareConfig>,
    pub(super) handle: FsHandle,
    /// Opened at the first start: the jail lets only this thread touch files.
    pub(super) server: Option<Server<Arc<ShareTree>>>,
}

impl FsHandler {
    fn serve(&mut self, index: usize) -> Result<(), HandlerError> {
        let Some(server) = &self.server else { return Ok(()) };
        let Some(Some(queue)) = self.queues.get_mut(index) else { return Ok(()) };
        let (memory, handle) = (self.memory.now(), &self.handle);
        serve::serve((index as u16, queue), &memory, &*self.interrupt, BUDGET, |chain| {
            let served = request::serve(server, &memory, chain);
            handle.requests.fetch_add(1, Ordering::Relaxed);
            match served.opcode {
                Some(op) if op == Opcode::Init as u32 => {
                    handle.mounted.store(true, Ordering::Relaxed);
                }
                Some(op) if op == Opcode::Destroy as u32 => {
                    handle.mounted.store(false, Ordering::Relaxed);
                }
                _ => {}
            }
            served.written
        })
        .map_err(failed)
    }

    fn active(&self) -> impl Iterator<Item = (usize, &ActiveQueue)> {
        self.queues.iter().enumerate().filter_map(|(i, queue)| Some((i, queue.as_ref()?)))
    }
}

impl Handler for FsHandler {
    fn start(&mut self, registration: &Registration) -> Result<(), HandlerError> {
        if self.server.is_none() {
            let tree = Arc::new(ShareTree::open(&self.shares).map_err(failed)?);
            self.handle.serves(tree.clone());
            self.server = Some(Server::new(tree));
        }
        for (index, queue) in self.active() {
            let kick = borrow(queue.kick.as_raw_fd());
            registration.watch(kick, EpollFlags::EPOLLIN, index as u64).map_err(failed)?;
        }
        (0..self.queues.len()).try_for_each(|index| self.serve(index))
    }

    fn stop(&mut self, registration: &Registration) {
        for (_, queue) in self.active() {
            registration.forget(borrow(queue.kick.as_raw_fd()));
        }
    }

    fn ready(&mut self, token: u64, _: EpollFlags, _: &Registration) -> Result<(), HandlerError> {
        self.serve(token as usize)
    }

    fn queues(&self) -> Vec<(usize, SavedQueue)> {
        self.active().map(|(index, queue)| (index, serve::saved(queue))).collect()
    }

    /// Empty: see [`super::state`].
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
}

fn failed(error: impl ToString) -> HandlerError {
    HandlerError { device: "fs", message: error.to_string() }
}
