//! The block device as data: what the guest was told about its disk, which must
//! not change under it.

use serde::{Deserialize, Serialize};

/// Checked when a state is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Capacity in sectors of 512 bytes.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Serial number.
    pub serial: String,
}
