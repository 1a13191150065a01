//! virtio-vsock (virtio 1.2, section 5.10) to Unix sockets, both ways.
//!
//! ```text
//!  device.rs      identity, configuration; makes the handler
//!  handler.rs     rings, epoll, timer
//!    muxer.rs       who is who, whose turn it is, bounds
//!      greeting.rs    the host's CONNECT line
//!      connection.rs  one stream as a state machine
//!        credit.rs      flow control
//!        backlog.rs     what a slow host reader has not taken
//!    packet.rs      headers and guest buffers
//!  state.rs       what is saved (and why so little)
//! ```

mod backlog;
pub mod connection;
mod credit;
mod device;
mod greeting;
mod handler;
pub mod muxer;
pub mod packet;
pub mod state;

pub use device::Vsock;
pub use muxer::OnConnect;
