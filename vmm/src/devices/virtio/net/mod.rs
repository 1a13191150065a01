//! A network interface whose other end is a tap (virtio 1.2, section 5.1).
//!
//! ```text
//!  device.rs      identity, configuration; makes the handler
//!  handler.rs     rings, epoll, timer, control queue
//!    rx.rs          tap -> guest: one readv into as many buffers as a frame may need
//!    tx.rs          guest -> tap: one writev from the guest's buffers
//!      header.rs      the header that precedes each frame
//!      guard.rs       what a guest may send
//!    limit.rs       token buckets
//!    view.rs        a ring as mapped memory
//!    used.rs        used buffers in batches, one interrupt for all
//!  tap.rs         the descriptor
//!  counters.rs    what passed and what did not
//!  state.rs       what is saved
//! ```
//!
//! One thread serves all interfaces of a machine. A handler is the whole of a device, as the
//! seam has it (`device.rs` of the parent), so that a thread for each pair of queues would
//! want a second seam; a thread for each device would be one for each slot that is empty, or
//! one that is made later and inherits the main thread's filter, which would then have to
//! allow what this one does. The interfaces of one machine belong to one tenant, and none of
//! them keeps the others waiting for longer than a budget of frames.
//!
//! What was checked is what is sent: the header and the first bytes of a frame are copied out
//! of guest memory once, checked there, and sent from there. Everything else goes straight
//! between guest memory and the tap.

mod counters;
mod device;
mod guard;
mod handler;
mod header;
mod limit;
mod rx;
mod state;
mod tap;
mod tx;
mod used;
mod view;

pub use counters::Counters;
pub use device::{Net, NetError};
pub use state::{NetHandlerState, NetState};
pub use tap::Tap;

/// Bytes of `struct virtio_net_hdr_v1` (section 5.1.6).
const HEADER: usize = 12;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Largest frame, one that is still to be cut into segments included (section 5.1.6.3.1).
const MAX_FRAME: usize = 65_550;

#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
#[cfg(test)]
mod tests;
