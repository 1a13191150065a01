//! The virtio-fs device as the transport sees it (virtio 1.2, 5.11).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use protocol::machine::FS_TAG;

use super::handler::FsHandler;
use super::policy::ShareConfig;
use super::state::FsState;
use super::tree::ShareTree;
use crate::devices::virtio::device::{ActivateError, Activation, VirtioDevice};
use crate::devices::virtio::serve::read_config;
use crate::event_loop::Handler;

/// Device id of a file system.
const ID: u32 = 26;
/// Bytes of the tag in the configuration space (5.11.4).
const TAG_SIZE: usize = 36;
/// Forgets only.
const HIPRIO_SIZE: u16 = 64;
/// Linux puts at most as many pages into a request as the ring has descriptors;
/// 1 MiB needs 256 and some.
const REQUEST_SIZE: u16 = 512;
/// Most request queues.
const MAX_REQUEST_QUEUES: u32 = 16;

/// Counters, whether the guest has it mounted, and the tree.
#[derive(Clone, Default)]
pub struct FsHandle {
    pub(super) requests: Arc<AtomicU64>,
    pub(super) mounted: Arc<AtomicBool>,
    tree: Arc<Mutex<Option<Arc<ShareTree>>>>,
}

impl FsHandle {
    /// Requests served so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The tree that is served, once the guest's driver is there. Files are touched
    /// on the device's thread alone.
    pub fn tree(&self) -> Option<Arc<ShareTree>> {
        self.tree.lock().expect("no panic while it is held").clone()
    }

    pub(super) fn serves(&self, tree: Arc<ShareTree>) {
        *self.tree.lock().expect("no panic while it is held") = Some(tree);
    }

    /// Whether the guest holds node ids of ours.
    pub fn is_mounted(&self) -> bool {
        self.mounted.load(Ordering::Relaxed)
    }
}

/// See the module.
pub struct Fs {
    shares: Vec<ShareConfig>,
    queue_sizes: Vec<u16>,
    config: [u8; TAG_SIZE + 4],
    handle: FsHandle,
}

impl Fs {
    /// A device that serves `shares` over `request_queues` queues (1 to 16), all
    /// on the thread of its event loop. Files are touched only there.
    pub fn new(shares: Vec<ShareConfig>, request_queues: u32) -> Fs {
        let request_queues = request_queues.clamp(1, MAX_REQUEST_QUEUES);
        let mut config = [0; TAG_SIZE + 4];
        config[..FS_TAG.len()].copy_from_slice(FS_TAG.as_bytes());
        config[TAG_SIZE..].copy_from_slice(&request_queues.to_le_bytes());
        let mut queue_sizes = vec![HIPRIO_SIZE];
        queue_sizes.extend((0..request_queues).map(|_| REQUEST_SIZE));
        Fs { shares, queue_sizes, config, handle: FsHandle::default() }
    }

    /// For statistics.
    pub fn handle(&self) -> FsHandle {
        self.handle.clone()
    }

    fn state(&self) -> FsState {
        let request_queues = self.queue_sizes.len() as u32 - 1;
        FsState { request_queues, mounted: self.handle.is_mounted() }
    }
}

impl VirtioDevice for Fs {
    fn id(&self) -> u32 {
        ID
    }

    fn name(&self) -> &'static str {
        "fs"
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// None: no notification queue, no DAX window yet.
    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        if activation.queues.iter().skip(1).all(Option::is_none) {
            return Err(failed("no request queue is enabled"));
        }
        self.handle.mounted.store(false, Ordering::Relaxed);
        Ok(Box::new(FsHandler {
            memory: activation.memory,
            queues: activation.queues,
            interrupt: activation.interrupt,
            shares: self.shares.clone(),
            handle: self.handle(),
            server: None,
        }))
    }

    fn save(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.state()).expect("two plain fields always encode")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), ActivateError> {
        let state: FsState = postcard::from_bytes(state).map_err(failed)?;
        if state.mounted {
            return Err(failed("the machine was saved while its guest had the shares mounted"));
        }
        if state.request_queues != self.state().request_queues {
            return Err(failed("saved with another number of request queues"));
        }
        Ok(())
    }
}

fn failed(error: impl ToString) -> ActivateError {
    ActivateError { device: "fs", message: error.to_string() }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
