//! What of a virtio-fs device outlives its process.
//!
//! Before the guest mounts the file system there is nothing to keep: that is the
//! state of a template, whose clone gets its shares before it mounts them.
//!
//! A *mounted* file system is more: the guest's kernel holds node ids and file
//! handles of this process, and to give them their meaning back each would have
//! to be saved as (share, path, lookup count) and (node, flags). Node ids are
//! made of the host's inode number, so that walking the same paths of the same
//! host file system gives the same ids again; unlinked files that are still open
//! have no path and need their contents saved. Until that is built, a device
//! that was mounted refuses to be restored.

use serde::{Deserialize, Serialize};

/// Saved form of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsState {
    /// Number of request queues that the driver was told.
    pub request_queues: u32,
    /// FUSE_INIT was served.
    pub mounted: bool,
}
