//! Identity, configuration and activation.

use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::{GuestMemory, GuestMemoryRegion};

use super::handle::BalloonHandle;
use super::handler::{BalloonHandler, Role};
use super::reclaim::Reclaim;
use crate::devices::virtio::device::{ActivateError, Activation, VirtioDevice};
use crate::devices::virtio::serve::read_config;
use crate::event_loop::{Handler, HandlerError};
use crate::memory::GuestRam;

const NAME: &str = "balloon";
/// Deflates by itself before the guest runs out of memory (section 5.5.3).
const F_DEFLATE_ON_OOM: u32 = 2;
/// Reports free pages (section 5.5.3).
const F_REPORTING: u32 = 5;

/// Queues by their index in the specification (section 5.5.2). Statistics and
/// free page hints are not offered; Linux closes the gap that they leave, and
/// so has the reporting queue at 2 rather than at 4.
const QUEUES: [(usize, Role); 4] =
    [(0, Role::Inflate), (1, Role::Deflate), (2, Role::Report), (4, Role::Report)];

/// The memory balloon.
pub struct Balloon {
    handle: BalloonHandle,
    reclaim: Arc<dyn Reclaim>,
}

pub(super) fn broken(message: impl ToString) -> HandlerError {
    HandlerError { device: NAME, message: message.to_string() }
}

fn refused(message: impl ToString) -> ActivateError {
    ActivateError { device: NAME, message: message.to_string() }
}

impl Balloon {
    /// A balloon in `memory`, whose pages `reclaim` gives back, and the handle
    /// that sets its size.
    pub fn new(memory: &GuestRam, reclaim: Arc<dyn Reclaim>) -> (Balloon, BalloonHandle) {
        let handle = BalloonHandle::new(memory.iter().map(GuestMemoryRegion::len).sum());
        (Balloon { handle: handle.clone(), reclaim }, handle)
    }

    /// `struct virtio_balloon_config` (section 5.5.4): num_pages, actual.
    fn config(&self) -> [u8; 8] {
        let state = self.handle.state();
        let mut config = [0; 8];
        config[..4].copy_from_slice(&state.target_pages.to_le_bytes());
        config[4..].copy_from_slice(&state.actual_pages.to_le_bytes());
        config
    }
}

impl VirtioDevice for Balloon {
    fn id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn queue_sizes(&self) -> &[u16] {
        &[128; 5]
    }

    fn features(&self) -> u64 {
        1 << F_DEFLATE_ON_OOM | 1 << F_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (4, Ok(actual)) = (offset, <[u8; 4]>::try_from(data)) {
            self.handle.set_actual(u32::from_le_bytes(actual));
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        let mut queues = Vec::new();
        for (index, role) in QUEUES {
            if let Some(queue) = activation.queues.get_mut(index).and_then(Option::take) {
                queues.push((index, role, queue));
            }
        }
        if !matches!(queues[..], [(0, ..), (1, ..), ..]) {
            return Err(refused("the inflate or the deflate queue is missing"));
        }
        Ok(Box::new(BalloonHandler {
            queues,
            memory: activation.memory,
            interrupt: activation.interrupt,
            reclaim: self.reclaim.clone(),
            handle: self.handle.clone(),
        }))
    }

    fn save(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.handle.state()).expect("three numbers")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), ActivateError> {
        self.handle.restore(postcard::from_bytes(state).map_err(refused)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.handle.set_actual(0);
    }
}
