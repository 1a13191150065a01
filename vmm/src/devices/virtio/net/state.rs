//! The network device as data. Taps do not outlive their process: whoever restores a machine
//! brings others, of an interface that the guest cannot tell from the one it had.

use serde::{Deserialize, Serialize};

/// What the guest was told; checked when a state is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest packet.
    pub mtu: u16,
    /// Pairs of queues that there are.
    pub pairs: u16,
}

/// What the handler knows beside its queues. Buckets of the limits begin full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetHandlerState {
    /// Pairs of queues that the driver uses.
    pub active: u16,
}
