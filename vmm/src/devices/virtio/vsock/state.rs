//! What of a vsock device outlives its process: its identity, nothing else.
//!
//! A connection's host end is a socket of this process and of a peer that lives
//! on while the machine is saved, so that no connection can survive a restore.
//! The specification has a word for it: after a restore the device sends
//! VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (virtio 1.2, 5.10.6.7), and the driver
//! resets all its connections while its listening sockets stay.

use serde::{Deserialize, Serialize};

/// Saved form of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's context id.
    pub cid: u64,
    /// The driver ran, so that it must hear of the reset.
    pub active: bool,
}
