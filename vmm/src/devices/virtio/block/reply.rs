//! The outcome of a request as the driver is told: one status byte, and the
//! number of bytes written to its buffers. The one place where errors are
//! translated.

use virtio_bindings::virtio_blk as blk;
use vm_memory::{Bytes, GuestAddress};

use super::disk::DiskError;
use super::request::ParseError;
use crate::memory::GuestRam;

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    /// VIRTIO_BLK_S_*.
    pub(super) status: u8,
    /// Bytes of data before the status.
    pub(super) data: u32,
}

impl Reply {
    fn error(status: u32) -> Reply {
        Reply { status: status as u8, data: 0 }
    }

    /// Writes the status, if the chain has room for it; returns the length for
    /// the used ring.
    pub(super) fn send(self, memory: &GuestRam, status: Option<GuestAddress>) -> u32 {
        match status.map(|address| memory.write_obj(self.status, address)) {
            Some(Ok(())) => self.data + 1,
            Some(Err(_)) | None => 0,
        }
    }
}

impl From<u32> for Reply {
    fn from(data: u32) -> Reply {
        Reply { status: blk::VIRTIO_BLK_S_OK as u8, data }
    }
}

impl From<ParseError> for Reply {
    fn from(error: ParseError) -> Reply {
        Reply::error(match error {
            ParseError::Unsupported(_) => blk::VIRTIO_BLK_S_UNSUPP,
            ParseError::TooLong
            | ParseError::Order
            | ParseError::Short
            | ParseError::Memory
            | ParseError::RangeList(_) => blk::VIRTIO_BLK_S_IOERR,
        })
    }
}

impl From<DiskError> for Reply {
    fn from(error: DiskError) -> Reply {
        Reply::error(match error {
            DiskError::Unsupported => blk::VIRTIO_BLK_S_UNSUPP,
            DiskError::Bounds
            | DiskError::Length
            | DiskError::ReadOnly
            | DiskError::Memory
            | DiskError::Io(_) => blk::VIRTIO_BLK_S_IOERR,
        })
    }
}
