//! The balloon as data.

use serde::{Deserialize, Serialize};

/// What the host and the driver told the balloon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Pages that the host wants (`num_pages`).
    pub target_pages: u32,
    /// Pages that the driver gave (`actual`).
    pub actual_pages: u32,
    /// Bytes that free page reporting gave back so far.
    pub reported_bytes: u64,
}
