//! The vsock device as the transport sees it (virtio 1.2, 5.10).

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use protocol::vsock::GUEST_CID;

use super::handler::VsockHandler;
use super::muxer::{OnConnect, set_nonblocking};
use super::state::VsockState;
use crate::devices::virtio::device::{ActivateError, Activation, VirtioDevice};
use crate::event_loop::Handler;

/// Device id of vsock.
const ID: u32 = 19;
/// rx, tx, event. Linux fills the whole rx ring with 4 KiB buffers, so that its
/// size is guest memory.
const QUEUE_SIZES: [u16; 3] = [128, 128, 8];

/// See the module.
pub struct Vsock {
    listener: Option<UnixListener>,
    on_connect: OnConnect,
    active: bool,
    /// The next activation continues a saved machine.
    restored: bool,
}

impl Vsock {
    /// A device that takes host connections from `listener` and offers those of
    /// the guest to `on_connect`, on the thread of its event loop.
    ///
    /// # Errors
    /// When the listener cannot be made non-blocking.
    pub fn new(listener: Option<OwnedFd>, on_connect: OnConnect) -> std::io::Result<Vsock> {
        let listener = listener.map(UnixListener::from);
        if let Some(listener) = &listener {
            set_nonblocking(listener)?;
        }
        Ok(Vsock { listener, on_connect, active: false, restored: false })
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u32 {
        ID
    }

    fn name(&self) -> &'static str {
        "vsock"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// None: streams only (5.10.3).
    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = GUEST_CID.to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| config.get(at)).copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        let queues: Option<Vec<_>> = activation.queues.into_iter().take(3).collect();
        let queues = queues
            .and_then(|queues| queues.try_into().ok())
            .ok_or_else(|| failed("a queue is missing"))?;
        // The device outlives its handlers: a driver may reset it and begin anew.
        let listener = self.listener.as_ref().map(UnixListener::try_clone).transpose();
        let handler = VsockHandler::new(
            activation.memory,
            queues,
            activation.interrupt,
            listener.map_err(failed)?,
            OnConnect::clone(&self.on_connect),
            std::mem::take(&mut self.restored),
        )
        .map_err(failed)?;
        self.active = true;
        Ok(Box::new(handler))
    }

    fn save(&self) -> Vec<u8> {
        let state = VsockState { cid: GUEST_CID, active: self.active };
        postcard::to_stdvec(&state).expect("two plain fields always encode")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), ActivateError> {
        let state: VsockState = postcard::from_bytes(state).map_err(failed)?;
        if state.cid != GUEST_CID {
            return Err(failed("saved with another context id"));
        }
        self.restored = state.active;
        Ok(())
    }
}

fn failed(error: impl ToString) -> ActivateError {
    ActivateError { device: "vsock", message: error.to_string() }
}
