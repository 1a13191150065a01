//! Identity and activation. There is no configuration and no state.

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::handler::RngHandler;
use crate::devices::virtio::device::{ActivateError, Activation, VirtioDevice};
use crate::event_loop::Handler;

const NAME: &str = "rng";

/// The entropy device.
pub struct Rng;

/// An [`ActivateError`] or a handler error of this device.
pub(super) fn broken(message: impl ToString) -> crate::event_loop::HandlerError {
    crate::event_loop::HandlerError { device: NAME, message: message.to_string() }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        let queue = activation.queues.first_mut().and_then(Option::take);
        let queue =
            queue.ok_or(ActivateError { device: NAME, message: "no request queue".into() })?;
        Ok(Box::new(RngHandler::new(queue, activation.memory, activation.interrupt)))
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), ActivateError> {
        if state.is_empty() {
            Ok(())
        } else {
            Err(ActivateError { device: NAME, message: "it has no state".into() })
        }
    }
}
