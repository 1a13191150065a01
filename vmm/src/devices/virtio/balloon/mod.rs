//! Memory that the guest gives back (virtio 1.2, section 5.5): on request
//! (inflating), and by itself (free page reporting).
//!
//! ```text
//! host: BalloonHandle --target, config interrupt--> driver --PFNs--> inflateq
//!                                                   driver --ranges--> reporting_vq
//!                           handler: check, merge -> Reclaim -> the host's kernel
//! ```

mod device;
mod handle;
mod handler;
mod pages;
mod reclaim;
mod state;

pub use device::Balloon;
pub use handle::BalloonHandle;
pub use reclaim::{Backing, MmapReclaim, Reclaim};
pub use state::BalloonState;

#[cfg(test)]
mod tests;
