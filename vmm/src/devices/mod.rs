//! What the guest can talk to.

pub mod bus;
pub mod console;
pub mod pci;
pub mod power;
pub mod virtio;
