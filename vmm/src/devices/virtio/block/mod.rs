//! A disk in a raw file (virtio 1.2, section 5.2).
//!
//! ```text
//! chain -> Request::parse -> Disk::execute -> Reply::send -> used ring
//!          what is asked     what is done     what is told
//! ```
//!
//! Requests are served one after the other on the device's event loop; a device
//! that should not make others wait gets a loop of its own.

mod device;
mod disk;
mod handler;
mod reply;
mod request;
mod state;
mod vectored;

pub use device::Block;
pub use disk::{Disk, DiskError, SECTOR};
pub use state::BlockState;

#[cfg(test)]
mod tests;
